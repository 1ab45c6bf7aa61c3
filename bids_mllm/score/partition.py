"""What feature spaces explain alone and together: nested partitions and the product measure.

A nested partition compares models fitted separately on each set of bands; the product measure splits the
predictions of one joint model. Both can be negative and neither is clipped: a negative part says that the
joint model predicts worse than a smaller one, or that the bands work against each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from bids_mllm.records import BoolArray, FloatArray
from bids_mllm.validation import check_in_allowed, check_same_samples

PartitionMeasure = Literal["R2", "normalized r"]
SplitMeasure = Literal["r2", "r"]
SPLIT_MEASURES = ("r2", "r")
# A mean of this share of the standard deviation moves R2 by its square at most: 1e-6.
LARGEST_MEAN = 1e-3


@dataclass(frozen=True)
class Partition:
    """Parts of the joint score of two feature spaces: ``unique_1 + unique_2 + shared = joint``.

    Attributes
    ----------
    unique_1, unique_2, shared, joint : (n_targets,) float64, or any one shape
        In units of `measure`; NaN in all four where one of the three scores is undefined.
    measure
        The score that was partitioned: ``"R2"`` or ``"normalized r"``.
    """

    unique_1: FloatArray
    unique_2: FloatArray
    shared: FloatArray
    joint: FloatArray
    measure: PartitionMeasure


@dataclass(frozen=True)
class PartitionShares:
    """The parts of a :class:`Partition` in percent of its joint score; together 100 where defined.

    Attributes
    ----------
    unique_1, unique_2, shared : float64, shape of the partition
    measure
        The score that was partitioned.
    """

    unique_1: FloatArray
    unique_2: FloatArray
    shared: FloatArray
    measure: PartitionMeasure


def partition_r2(r2_1: FloatArray, r2_2: FloatArray, r2_12: FloatArray) -> Partition:
    """Nested partition of the variance that two feature spaces explain.

    ``shared = R2_1 + R2_2 - R2_12``, ``unique_1 = R2_12 - R2_2``, ``unique_2 = R2_12 - R2_1``
    (commonality analysis; de Heer et al. 2017, doi 10.1523/JNEUROSCI.3267-16.2017).

    R2 is a share of variance and variances of independent parts add up, so this is the sound partition.
    Each of the three models is fitted anew and scored on the same held-out rows, the joint one with an
    own penalty for each feature space (banded ridge).

    Parameters
    ----------
    r2_1, r2_2, r2_12 : (n_targets,) float, or any one shape
        Held-out R2 of feature space 1, of feature space 2 and of both together.

    Returns
    -------
    partition : Partition
        In units of R2, nothing clipped; NaN where any of the three is not finite. A negative `shared` comes
        from suppression, a negative unique part from a joint model that generalises worse than the smaller one.
    """
    return _nested(r2_1, r2_2, r2_12, "R2")


def partition_normalized_r(nr_1: FloatArray, nr_2: FloatArray, nr_12: FloatArray) -> Partition:
    """Nested partition of the normalised correlation of two feature spaces, as arXiv 2506.08277 does it.

    ``shared = NBA_1 + NBA_2 - NBA_12``, ``unique_1 = NBA_1 - shared = NBA_12 - NBA_2``,
    ``unique_2 = NBA_12 - NBA_1``, with NBA the held-out r over the noise ceiling.

    Kept to compare with that study. Correlations are not additive: two independent feature spaces with
    r = .6 each have a joint r of .85, so this partition calls .35 shared where nothing is. The sound
    partition is that of R2, :func:`partition_r2`.

    Parameters
    ----------
    nr_1, nr_2, nr_12 : (n_targets,) float, or any one shape
        Normalised correlation of feature space 1, of feature space 2 and of both together.

    Returns
    -------
    partition : Partition
        In units of normalised r, nothing clipped; NaN where any of the three is not finite.
    """
    return _nested(nr_1, nr_2, nr_12, "normalized r")


def _nested(score_1: FloatArray, score_2: FloatArray, score_12: FloatArray, measure: PartitionMeasure) -> Partition:
    first, second, joint = _nan_where_any_is_undefined((score_1, score_2, score_12))
    return Partition(
        unique_1=joint - second,
        unique_2=joint - first,
        shared=first + second - joint,
        joint=joint,
        measure=measure,
    )


def _nan_where_any_is_undefined(scores: Sequence[FloatArray]) -> list[FloatArray]:
    shapes = {np.shape(one) for one in scores}
    if len(shapes) != 1:
        raise ValueError(f"The scores have the shapes {sorted(shapes)}, but all must have the same one.")
    values = [np.asarray(one, dtype=np.float64) for one in scores]
    defined = np.isfinite(values).all(axis=0)
    return [np.where(defined, one, np.nan) for one in values]


def partition_shares(partition: Partition) -> PartitionShares:
    """Unique and shared parts in percent of the joint score: ``100 * part / joint``.

    The ratio of a small joint score is unbounded, so the shares of a region are steadier when the
    partition is averaged over voxels first.

    Parameters
    ----------
    partition : Partition

    Returns
    -------
    shares : PartitionShares
        In percent; NaN where the joint score is not positive.
    """
    return PartitionShares(
        unique_1=_percent(partition.unique_1, partition.joint),
        unique_2=_percent(partition.unique_2, partition.joint),
        shared=_percent(partition.shared, partition.joint),
        measure=partition.measure,
    )


def _percent(part: FloatArray, joint: FloatArray) -> FloatArray:
    share: FloatArray = np.full(np.shape(joint), np.nan)
    np.divide(100.0 * part, joint, out=share, where=np.asarray(joint > 0))
    return share


def partition_sets(scores: Mapping[frozenset[int], FloatArray], n_bands: int) -> dict[frozenset[int], FloatArray]:
    """Nested partition of any number of bands: what exactly one set of bands shares and no other band has.

    With ``f(A)`` the joint score of the bands in A, U all bands and ``f`` of no band 0, the part of the
    Venn diagram that lies in every band of S and in none outside it is, by inclusion and exclusion::

        part(S) = - sum over B within S of (-1)^(|S| - |B|) * f(U without B)

    For two bands this is :func:`partition_r2`. The parts add up to ``f(U)``, and the parts that touch A to
    ``f(A)``. With three bands or more a part combines up to ``2^n_bands - 1`` scores, and so their noise.

    Parameters
    ----------
    scores
        Every set of bands that is not empty, as a frozenset of band indices from 0, to the joint score of a
        model of these bands, (n_targets,) float or any one shape. R2 is the sound score, as in the pair.
    n_bands
        Number of bands; ``2^n_bands - 1`` sets are expected.

    Returns
    -------
    parts : dict of frozenset to float64 array
        The same sets, from single bands (unique parts) to all bands, each with its exclusive part; nothing
        clipped. NaN where any score is not finite.
    """
    bands = frozenset(range(n_bands))
    sets = [members for members in _subsets(bands) if members]
    _check_sets(scores, sets, n_bands)
    joint = dict(zip(sets, _nan_where_any_is_undefined([scores[members] for members in sets]), strict=True))
    return {members: _exclusive_part(joint, bands, members) for members in sets}


def _exclusive_part(
    joint: Mapping[frozenset[int], FloatArray], bands: frozenset[int], members: frozenset[int]
) -> FloatArray:
    part: FloatArray = np.zeros(np.shape(joint[bands]))
    for removed in _subsets(members):
        if removed != bands:
            part = part - (-1.0) ** (len(members) - len(removed)) * joint[bands - removed]
    return part


def _subsets(members: frozenset[int]) -> list[frozenset[int]]:
    """All subsets, the empty one first, by size and then by their members."""
    ordered = sorted(members)
    return [frozenset(chosen) for size in range(len(ordered) + 1) for chosen in combinations(ordered, size)]


def _check_sets(scores: Iterable[frozenset[int]], expected: Sequence[frozenset[int]], n_bands: int) -> None:
    if n_bands < 1:
        raise ValueError(f"n_bands is {n_bands}, but a partition needs at least one band.")
    given = set(scores)
    missing = [sorted(members) for members in expected if members not in given]
    if missing:
        raise ValueError(f"A partition of {n_bands} bands needs a score of each of their sets; missing: {missing}.")
    unknown = sorted((sorted(members) for members in given - set(expected)), key=lambda bands: (len(bands), bands))
    if unknown:
        raise ValueError(f"A partition of {n_bands} bands has no place for the scores of the sets {unknown}.")


def product_measure(Y: FloatArray, band_predictions: FloatArray, *, measure: SplitMeasure = "r2") -> FloatArray:
    """Split the score of a joint model over its bands; the parts add up to the score of the summed prediction.

    With ``P_b`` the prediction of band b and ``P`` their sum::

        r2_b = sum(2 * Y * P_b - P_b * P) / sum(Y^2)
        r_b = cov(Y, P_b) / (std(Y) * std(P))

    One fit serves all bands, where a nested partition needs one for each set of bands, but the parts depend
    on how the fit weights the bands, correlated ones above all. A part can be NEGATIVE: a band whose
    prediction cancels another's, or that predicts badly. These are ``r2_score_split`` and
    ``correlation_score_split`` of himalaya (Dupre la Tour et al. 2022, doi 10.1016/j.neuroimage.2022.119728)
    in NumPy, which leave himalaya's process-wide backend alone.

    Parameters
    ----------
    Y : (n_rows, n_targets) float
        Held-out brain data. For ``"r2"`` every target has mean zero over the rows, as himalaya asks, since
        the split is about zero; a larger mean raises a ValueError. ``"r"`` removes all means itself.
    band_predictions : (n_bands, n_rows, n_targets) float
        The prediction of each band by its own weights in the joint model.
    measure
        ``"r2"`` or ``"r"``.

    Returns
    -------
    parts : (n_bands, n_targets) float64
        NaN in every band for targets that hold a non-finite value or are constant and, for ``"r"``, where
        the summed prediction is constant (himalaya: 0 there).
    """
    check_in_allowed(measure, SPLIT_MEASURES, "measure")
    if band_predictions.ndim != 3 or band_predictions.shape[2:] != Y.shape[1:]:
        raise ValueError(
            f"band_predictions has the shape {band_predictions.shape}, but (n_bands, n_rows, n_targets) with the "
            f"{Y.shape[1]} targets of Y was expected."
        )
    check_same_samples("Y", len(Y), "band_predictions", band_predictions.shape[1])
    usable = _usable_targets(Y, band_predictions)
    truth = Y[:, usable].astype(np.float64)
    joint = band_predictions.sum(axis=0, dtype=np.float64)[:, usable]
    parts: FloatArray = np.full((len(band_predictions), Y.shape[1]), np.nan)
    split = _r2_split if measure == "r2" else _r_split
    parts[:, usable] = split(truth, band_predictions, usable, joint)
    return parts


def _usable_targets(Y: FloatArray, band_predictions: FloatArray) -> BoolArray:
    usable: BoolArray = np.asarray(np.isfinite(Y).all(axis=0))
    for band in band_predictions:
        usable &= np.isfinite(band).all(axis=0)
    usable[usable] = np.ptp(Y[:, usable], axis=0) > 0
    return usable


def _r2_split(truth: FloatArray, bands: FloatArray, usable: BoolArray, joint: FloatArray) -> FloatArray:
    mean_share = np.abs(truth.mean(axis=0)) / truth.std(axis=0)
    if (mean_share > LARGEST_MEAN).any():
        raise ValueError(
            f"{np.count_nonzero(mean_share > LARGEST_MEAN)} of {mean_share.size} targets of Y have a mean of up to "
            f"{mean_share.max():.2g} standard deviations, but the R2 split is about zero; subtract the mean of Y first."
        )
    weight = 2.0 * truth - joint
    total = (truth**2).sum(axis=0)
    return np.stack([(weight * band[:, usable]).sum(axis=0) / total for band in bands])


def _r_split(truth: FloatArray, bands: FloatArray, usable: BoolArray, joint: FloatArray) -> FloatArray:
    varies = np.ptp(joint, axis=0) > 0
    truth = truth - truth.mean(axis=0)
    joint = joint - joint.mean(axis=0)
    norm = np.sqrt((truth**2).sum(axis=0) * (joint**2).sum(axis=0))
    norm[~varies | (norm == 0)] = np.nan
    return np.stack([(truth * band[:, usable]).sum(axis=0) / norm for band in bands])
