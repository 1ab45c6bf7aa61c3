"""Which layer of a model fits where: depth profiles of regions, preferred depths and the cortical hierarchy.

Depths are relative, 0 for the embedding and 1 for the last layer, so that models of different size compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial, prod

import numpy as np

from bids_mllm.records import BoolArray, FloatArray, IntArray

NONE = -1
SMALLEST_N_ROIS = 3
# Rank correlations that differ at all differ by more than this; equal ones by rounding alone.
ROUNDING = 1e-9


def relative_depth(n_layers: int) -> FloatArray:
    """Relative depth of each layer: ``index / (n_layers - 1)``.

    Parameters
    ----------
    n_layers
        Layers with the embedding counted.

    Returns
    -------
    depths : (n_layers,) float64
        From 0 (embedding) to 1 (last layer); 0 for a single layer.
    """
    if n_layers < 1:
        raise ValueError(f"n_layers is {n_layers}, but a model has at least one layer.")
    return np.linspace(0.0, 1.0, n_layers)


def _depths_of(n_layers: int, depths: FloatArray | None) -> FloatArray:
    if depths is None:
        return relative_depth(n_layers)
    values = np.asarray(depths, dtype=np.float64)
    if values.shape != (n_layers,) or (np.diff(values) <= 0).any():
        raise ValueError(
            f"depths has the shape {values.shape} and the values {values.tolist()}, but one increasing depth "
            f"for each of {n_layers} layers was expected."
        )
    return values


def layer_profile(scores: FloatArray, members: Sequence[IntArray]) -> FloatArray:
    """Mean score of every layer over the voxels of every region.

    Correlations are averaged as they are, without Fisher's z. Each layer is averaged over the voxels in
    which it is finite.

    Parameters
    ----------
    scores : (n_layers, n_voxels) float
        NaN for voxels set aside.
    members
        For each region the positions (n_members,) of its voxels; regions may overlap.

    Returns
    -------
    profile : (n_rois, n_layers) float64
        NaN where a region has no finite voxel in a layer.
    """
    profile: FloatArray = np.full((len(members), len(scores)), np.nan)
    for row, own in enumerate(members):
        values = scores[:, own].astype(np.float64)
        finite = np.isfinite(values)
        count = finite.sum(axis=1)
        np.divide(np.where(finite, values, 0.0).sum(axis=1), count, out=profile[row], where=count > 0)
    return profile


def resample_profile(profile: FloatArray, n_points: int, *, depths: FloatArray | None = None) -> FloatArray:
    """Linear interpolation of a profile at `n_points` equal steps of relative depth.

    Parameters
    ----------
    profile : (..., n_layers) float
    n_points
        Points of the common grid from 0 to 1, at least 2.
    depths : (n_layers,) float, optional
        Relative depths of the layers, increasing, for a model of which some layers were left out; by
        default the layers are all there.

    Returns
    -------
    resampled : (..., n_points) float64
        NaN between layers of which one is NaN, and outside the depths that the layers cover.
    """
    n_layers = profile.shape[-1]
    if min(n_layers, n_points) < 2:
        raise ValueError(f"A profile of {n_layers} layers at {n_points} points; at least 2 of both are needed.")
    places, grid = _depths_of(n_layers, depths), relative_depth(n_points)
    upper = np.clip(np.searchsorted(places, grid), 1, n_layers - 1)
    # Rounded so that a point on a layer takes nothing, not even a NaN, from the layer beside it.
    share = np.round((grid - places[upper - 1]) / (places[upper] - places[upper - 1]), 12)
    below, above = profile[..., upper - 1].astype(np.float64), profile[..., upper].astype(np.float64)
    mixed = np.where(share == 0, below, np.where(share == 1, above, (1 - share) * below + share * above))
    return np.where((share >= 0) & (share <= 1), mixed, np.nan)


def preferred_depth_argmax(training_scores: FloatArray, *, depths: FloatArray | None = None) -> FloatArray:
    """Relative depth of the layer with the highest training-internal score in every voxel.

    Parameters
    ----------
    training_scores : (n_layers, n_voxels) float
        Scores from inside the training rows, never held-out ones. NaN layers are left out.
    depths : (n_layers,) float, optional
        Relative depths of the layers, increasing, where some were left out.

    Returns
    -------
    depth : (n_voxels,) float64 in [0, 1]
        The shallowest of layers with equal scores. NaN where all layers are NaN, the finite ones do not
        vary, or none has a positive score: there is no preference in what is not predicted.
    """
    places = _depths_of(len(training_scores), depths)
    chosen = places[np.maximum(_best_layer(training_scores), 0)]
    return np.where(_prefers(training_scores), chosen, np.nan)


def preferred_depth_mass(training_scores: FloatArray, *, depths: FloatArray | None = None) -> FloatArray:
    """Centre of mass of the layers in every voxel, in relative depth.

    ``depth = sum(w_l * depth_l) / sum(w_l)`` with ``w_l = score_l - min(score)``

    The weights are the scores above the minimum of the voxel's own profile, not the positive scores: a
    floor shared by all layers (the onset of every clip, say, which any layer encodes) would otherwise pull
    the centre towards .5. So a constant offset or a positive factor moves no centre; an offset can only
    decide whether any score is positive. A broad profile still lies nearer to .5 than its peak does:
    compare centres of mass with each other, not with depths of the peak.

    Parameters
    ----------
    training_scores : (n_layers, n_voxels) float
        Scores from inside the training rows, never held-out ones. NaN layers are left out.
    depths : (n_layers,) float, optional
        Relative depths of the layers, increasing, where some were left out.

    Returns
    -------
    depth : (n_voxels,) float64 in [0, 1]
        NaN where all layers are NaN, the finite ones do not vary, or none has a positive score.
    """
    places = _depths_of(len(training_scores), depths)
    finite, prefers = np.isfinite(training_scores), _prefers(training_scores)
    lowest = np.where(finite, training_scores, np.inf).min(axis=0)
    weights: FloatArray = np.zeros(training_scores.shape)
    np.subtract(training_scores, lowest, out=weights, where=finite & prefers)
    depth: FloatArray = np.full(prefers.shape, np.nan)
    np.divide(places @ weights, weights.sum(axis=0), out=depth, where=prefers)
    return depth


def _best_layer(scores: FloatArray) -> IntArray:
    """Layer (n_voxels,) with the highest finite score, the first of equals; -1 where there is none."""
    finite = np.isfinite(scores)
    best: IntArray = np.where(finite, scores, -np.inf).argmax(axis=0)
    return np.where(finite.any(axis=0), best, NONE)


def _prefers(scores: FloatArray) -> BoolArray:
    finite = np.isfinite(scores)
    highest = np.where(finite, scores, -np.inf).max(axis=0)
    lowest = np.where(finite, scores, np.inf).min(axis=0)
    return np.asarray((highest > lowest) & (highest > 0))


@dataclass(frozen=True)
class NestedDepth:
    """Layers chosen inside the training rows of each outer fold, and what they score on its held-out rows.

    Attributes
    ----------
    chosen_layer : (n_folds, n_voxels) int
        Index on the layer axis; -1 where all training scores are NaN.
    test_score : (n_voxels,) float64
        Held-out score of the fold's choice, mean over folds; NaN where any fold's is undefined.
    depth_argmax, depth_mass : (n_voxels,) float64 in [0, 1]
        Preferred relative depths, mean over folds; NaN where any fold's is undefined.
    """

    chosen_layer: IntArray
    test_score: FloatArray
    depth_argmax: FloatArray
    depth_mass: FloatArray


def nested_depth_scores(
    training_scores: FloatArray, test_scores: FloatArray, *, depths: FloatArray | None = None
) -> NestedDepth:
    """Choose the layer of every voxel inside the training rows and score the choice on the held-out rows.

    In each outer fold the layer is the one with the highest training-internal score; the held-out score is
    then looked up for that layer alone, so that the maximum over layers does not raise it. The choice is
    made wherever a score is finite, positive or not, since leaving out voxels would itself be a selection.

    Parameters
    ----------
    training_scores, test_scores : (n_folds, n_layers, n_voxels) float
        Scores from inside the training rows of each outer fold, and on its held-out rows. The choice and
        the depths rest on the first alone.
    depths : (n_layers,) float, optional
        Relative depths of the layers, increasing, where some were left out.

    Returns
    -------
    nested : NestedDepth
    """
    if training_scores.shape != test_scores.shape or training_scores.ndim != 3:
        raise ValueError(
            f"The training scores have the shape {training_scores.shape} and the test scores {test_scores.shape}; "
            "both must be (n_folds, n_layers, n_voxels)."
        )
    chosen = np.stack([_best_layer(fold) for fold in training_scores])
    held_out = np.take_along_axis(test_scores, np.maximum(chosen, 0)[:, None], axis=1)[:, 0].astype(np.float64)
    return NestedDepth(
        chosen_layer=chosen,
        test_score=np.where(chosen == NONE, np.nan, held_out).mean(axis=0),
        depth_argmax=np.mean([preferred_depth_argmax(fold, depths=depths) for fold in training_scores], axis=0),
        depth_mass=np.mean([preferred_depth_mass(fold, depths=depths) for fold in training_scores], axis=0),
    )


@dataclass(frozen=True)
class HierarchyCorrelation:
    """Rank correlation of preferred depth with the place of the region in the cortical hierarchy.

    Attributes
    ----------
    rho, p_value : float
        Spearman's rho over regions and its two-sided permutation p.
    smallest_p : float
        The smallest p that these ranks, ties included, and this number of permutations can reach.
    n_rois : int
        Regions with both values.
    n_permutations : int
        Permutations behind `p_value`; 0 where there is none.
    exact : bool
        Whether they are all permutations there are.
    """

    rho: float
    p_value: float
    smallest_p: float
    n_rois: int
    n_permutations: int
    exact: bool


def hierarchy_correlation(
    depths: FloatArray, ranks: FloatArray | IntArray, *, n_permutations: int = 10_000, seed: int = 0
) -> HierarchyCorrelation:
    """Spearman correlation over regions of preferred depth with rank in the cortical hierarchy.

    ``rho = r(rank(depths), rank(ranks))`` with mid-ranks for ties. The p is the share of permutations of
    the regions with ``|rho|`` as large or larger: over all ``n_rois!`` permutations where they are no more
    than `n_permutations`, else over random ones, ``(1 + count) / (1 + n_permutations)`` (Phipson & Smyth
    2010, doi 10.2202/1544-6115.1585).

    The unit of the test is the region, of one participant or of one mean. Regions are taken as exchangeable,
    which neighbours that share signal are not: the p is then too small.

    Parameters
    ----------
    depths : (n_rois,) float
        Preferred relative depth of each region; regions with NaN are set aside.
    ranks : (n_rois,) float or int
        Place of each region in the hierarchy, low for early sensory; ties are allowed.
    n_permutations
        Permutations at most, at least 1.
    seed
        Of the random permutations.

    Returns
    -------
    correlation : HierarchyCorrelation
        `rho` and both p are NaN for fewer than 3 regions and where one side does not vary.
    """
    from scipy.stats import rankdata

    depths, ranks = np.asarray(depths, dtype=np.float64), np.asarray(ranks, dtype=np.float64)
    if depths.shape != ranks.shape or depths.ndim != 1:
        raise ValueError(f"depths has the shape {depths.shape} and ranks {ranks.shape}; give both for each region.")
    if n_permutations < 1:
        raise ValueError(f"n_permutations is {n_permutations}, but must be at least 1.")
    known = np.isfinite(depths) & np.isfinite(ranks)
    n_rois = int(known.sum())
    if n_rois < SMALLEST_N_ROIS or np.ptp(depths[known]) == 0 or np.ptp(ranks[known]) == 0:
        return HierarchyCorrelation(np.nan, np.nan, np.nan, n_rois, n_permutations=0, exact=False)
    a, b = rankdata(depths[known]), rankdata(ranks[known])
    exact = factorial(n_rois) <= n_permutations
    null = _unit(_arrangements(b, n_permutations, exact, seed)) @ _unit(a)
    rho = float(_unit(a) @ _unit(b))
    # Random permutations are counted together with the one observed; all permutations hold it already.
    extra = 0 if exact else 1
    count = int(np.count_nonzero(np.abs(null) >= abs(rho) - ROUNDING))
    p_value = (count + extra) / (len(null) + extra)
    smallest_p = max(_share_of_extreme(a, b), 1 / (len(null) + extra))
    return HierarchyCorrelation(rho, p_value, smallest_p, n_rois, n_permutations=len(null), exact=exact)


def _unit(values: FloatArray) -> FloatArray:
    """Centre to mean 0 and scale to length 1 along the last axis."""
    centred = values - values.mean(axis=-1, keepdims=True)
    scaled: FloatArray = centred / np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return scaled


def _arrangements(values: FloatArray, n_permutations: int, exact: bool, seed: int) -> FloatArray:
    """All or random permutations of the values, shape (n_permutations, n_values)."""
    if exact:
        return np.array(list(permutations(values)))
    repeated = np.broadcast_to(values, (n_permutations, len(values)))
    return np.random.default_rng(seed).permuted(repeated, axis=1)


def _share_of_extreme(a: FloatArray, b: FloatArray) -> float:
    """Share of all permutations with the largest ``|rho|`` that the mid-ranks `a` and `b` (n_values,) allow."""
    a, rising = np.sort(a), np.sort(b)
    orders = {float(_unit(a) @ _unit(order)): order for order in (rising, rising[::-1])}
    largest = max(abs(rho) for rho in orders)
    ways = sum(_n_like(a, order) for rho, order in orders.items() if abs(rho) >= largest - ROUNDING)
    return ways / factorial(len(a))


def _n_like(a: FloatArray, b: FloatArray) -> int:
    """Permutations of `b` that give every tied group of `a` the same values as this order does.

    Within a group of `a` any order will do (g! of them), and the m values of a tied group of `b` are dealt
    out to the groups of `a` in m! / (m_1! m_2! ...) ways.
    """
    _, group_a, size_a = np.unique(a, return_inverse=True, return_counts=True)
    _, group_b, size_b = np.unique(b, return_inverse=True, return_counts=True)
    dealt = np.zeros((len(size_a), len(size_b)), dtype=int)
    np.add.at(dealt, (group_a, group_b), 1)
    within = prod(factorial(int(size)) for size in size_a)
    ways = prod(factorial(int(size)) for size in size_b)
    return within * ways // prod(factorial(int(size)) for size in dealt.ravel())
