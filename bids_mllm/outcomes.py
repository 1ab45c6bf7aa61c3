"""What is found on held-out data, as it is handed from the fits to the outputs: frozen dataclasses on numpy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bids_mllm.records import BoolArray, Condition, FloatArray, IntArray

#: Seconds between which a haemodynamic response peaks. The canonical double gamma does at 5 s; over people and regions
#: it is about 2 s earlier or later (Aguirre et al. 1998, doi:10.1006/nimg.1998.0369; Handwerker et al. 2004,
#: doi:10.1016/j.neuroimage.2003.11.029), and an asymmetric response to slow features looks up to 0.5 s later.
EXPECTED_PEAK = (3.0, 8.0)


@dataclass(frozen=True)
class ModelScores:
    """Scores of all feature spaces of one model in one participant; NaN for voxels set aside.

    Attributes
    ----------
    conditions, layers
        The axes 0 and 1 of the arrays.
    r, r2, cv_r2, alpha : (n_conditions, n_layers, n_voxels) float32
        Held-out Pearson r and R2 and training-internal R2 (each the mean over outer folds), and the
        chosen alpha (geometric mean over outer folds).
    r_concatenated : (n_conditions, n_layers, n_voxels) float32
        Held-out Pearson r of the rows of all outer folds together, each run z-scored by itself.
    alpha_edge : (n_conditions, n_layers, n_voxels) bool
        True where any fold chose the first or the last alpha of the grid.
    best_r, best_r2 : (n_voxels,) float32
        Held-out scores of the feature space with the highest `cv_r2` in each outer fold, mean over folds.
    best_condition, best_layer : (n_voxels,) int16
        Index into conditions and layers of the highest mean `cv_r2`; -1 for voxels set aside.
    condition_best_r : (n_conditions, n_voxels) float32
        As `best_r` with the layer chosen and the condition given.
    condition_best_layer : (n_conditions, n_voxels) int16
    fold_cv_r2 : (n_folds, n_conditions, n_layers) float32
        Mean over voxels of the positive part of the training-internal R2 of each outer fold, by which a feature space
        is chosen for a whole brain without its held-out rows.
    fold_names
        What each outer fold holds out.
    warnings
        Sentences for the report (feature spaces without variance, ...).
    """

    model: str
    conditions: tuple[Condition, ...]
    layers: tuple[int, ...]
    r: FloatArray
    r_concatenated: FloatArray
    r2: FloatArray
    cv_r2: FloatArray
    alpha: FloatArray
    alpha_edge: BoolArray
    best_r: FloatArray
    best_r2: FloatArray
    best_condition: IntArray
    best_layer: IntArray
    condition_best_r: FloatArray
    condition_best_layer: IntArray
    fold_cv_r2: FloatArray
    fold_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """Inference on the held-out predictions of one model in one participant: those of its nested choice.

    Attributes
    ----------
    run_names
        Runs (or parts of a run) with held-out rows.
    r_by_run : (n_runs, n_voxels) float32
        Pearson r within each of them.
    r_concatenated : (n_voxels,) float32
        Pearson r over all held-out rows, each run z-scored by itself.
    p, p_max : (n_voxels,) float32
        Permutation p of `r_concatenated` per voxel, and against the maximum over voxels.
    block_products, block_energies : (n_blocks, n_voxels) float32
        Parts of the correlation, with which models are compared on the same rows.
    facts
        How the test was made: method, block length, permutations, rows, smallest attainable p.
    """

    run_names: tuple[str, ...]
    r_by_run: FloatArray
    r_concatenated: FloatArray
    p: FloatArray
    p_max: FloatArray
    block_products: FloatArray
    block_energies: FloatArray
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class CeilingMap:
    """Noise ceiling of one participant: the highest correlation that a prediction can have on average.

    Attributes
    ----------
    ceiling : (n_voxels,) float32
        NaN where it is not defined.
    facts
        Method, viewings or participants, rows, and how it is extrapolated.
    """

    ceiling: FloatArray
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ClockCheck:
    """How long after fast features of the stimuli the best voxels of one participant follow.

    Attributes
    ----------
    features
        Names of the features, e.g. ``sound``.
    lags : (n_lags,) float
        Seconds.
    r : (n_features, n_lags) float
        Mean correlation of the best voxels, chosen on other volumes than those it is computed from.
    peaks, strengths : (n_features,) float
        Lag of the highest value in seconds, NaN where the curve does not stand out, and how many times it stands above
        what the same voxels give when their volumes are shifted in circle, NaN where there are too few volumes.
    facts
        Voxels, volumes, and how the check was made.
    """

    features: tuple[str, ...]
    lags: FloatArray
    r: FloatArray
    peaks: FloatArray
    strengths: FloatArray
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class BandScores:
    """Held-out scores of a banded ridge on several feature spaces, means over outer folds.

    Attributes
    ----------
    names
        Bands.
    spaces
        For each outer fold, the condition and layer taken for each band.
    r, r2 : (n_voxels,) float32
        Of the joint prediction.
    product_r2 : (n_bands, n_voxels) float32
        Product measure: parts that add up to `r2`; may be negative.
    r_without, r2_without : (n_bands, n_voxels) float32
        Of the joint fit without each band.
    weights : (n_bands, n_voxels) float32
        Weights of the bands.
    """

    names: tuple[str, ...]
    spaces: tuple[tuple[str, ...], ...]
    r: FloatArray
    r2: FloatArray
    product_r2: FloatArray
    r_without: FloatArray
    r2_without: FloatArray
    weights: FloatArray


@dataclass(frozen=True)
class PairScores:
    """Held-out scores of the instructions of one model alone and in pairs, means over outer folds.

    Attributes
    ----------
    model
    conditions
        Labels of the conditions.
    layers
        Layer taken in each outer fold.
    pairs
        Positions in `conditions`.
    r, r2 : (n_conditions, n_voxels) float32
        Of each condition alone.
    pair_r, pair_r2 : (n_pairs, n_voxels) float32
        Of each pair jointly, by banded ridge.
    """

    model: str
    conditions: tuple[str, ...]
    layers: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    r: FloatArray
    r2: FloatArray
    pair_r: FloatArray
    pair_r2: FloatArray
