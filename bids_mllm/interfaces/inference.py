"""From held-out predictions to tests and intervals; plain functions, usable without nipype."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.interfaces.rows import Rows
from bids_mllm.outcomes import HeldOut
from bids_mllm.records import FloatArray, Fold, IntArray
from bids_mllm.score.correlation import concatenated_r, pearson_r_by_run
from bids_mllm.score.held_out import mean_of_viewings
from bids_mllm.score.paired import block_scores
from bids_mllm.score.permutation import PermutationTest, join_tests, permutation_test


@dataclass(frozen=True)
class InferenceOptions:
    """How predictions are tested: `method` is block or circular, `block_length` in TRs."""

    n_permutations: int = 5000
    method: Literal["block", "circular"] = "block"
    block_length: int = 10
    seed: int = 0


def join_inference(parts: "Sequence[PartInference]") -> HeldOut:
    """Put together the inference on parts of the voxels, in their order; family-wise p are over all of them."""
    first = parts[0].held_out
    if len(parts) == 1:
        return first
    names = ("r_by_run", "r_concatenated", "p", "p_max", "block_products", "block_energies")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part.held_out, name) for part in parts], axis=-1) for name in names
    }
    tests = [part.test for part in parts if part.test is not None]
    if tests:
        joined["p_max"] = join_tests(tests).p_max.astype(np.float32)
    return replace(first, **joined)


@dataclass(frozen=True)
class PartInference:
    """Inference on some of the voxels, and the test by which family-wise p are put together; None without one."""

    held_out: HeldOut
    test: PermutationTest | None


def part_inference(
    rows: Rows,
    Y: FloatArray,
    predictions: Sequence[FloatArray],
    run_labels: Sequence[str],
    options: InferenceOptions,
    *,
    max_block_bytes: int,
) -> PartInference:
    """Test the predictions of one model against the held-out rows of all outer folds.

    Parameters
    ----------
    rows
    Y : (n_rows, n_voxels) float
    predictions
        One array (n_scored, n_voxels) an outer fold: of means of viewings where these are scored.
    run_labels
        Labels of the runs of the design.
    options
    max_block_bytes
        Bound of the working arrays.
    """
    scored = _scored(rows.folds)
    first = np.sort(scored[0])
    predicted = np.empty((len(first), Y.shape[1]), dtype=np.float32)
    for fold, own in zip(rows.folds, predictions, strict=True):
        predicted[np.searchsorted(first, fold.scored[0])] = own
    scored = scored[:, np.argsort(scored[0])]
    truth, segment = mean_of_viewings(Y, scored), rows.segment_of_row[first]
    r_by_run, n_rows = pearson_r_by_run(truth, predicted, segment)
    test, facts = _tested(truth, predicted, segment, options, max_block_bytes)
    untested = np.full(Y.shape[1], np.nan, dtype=np.float32)
    blocks = block_scores(truth, predicted, segment, block_length=options.block_length, max_block_bytes=max_block_bytes)
    held_out = HeldOut(
        run_names=_names(segment, rows.run_of_row, scored, run_labels),
        r_by_run=r_by_run.astype(np.float32),
        r_concatenated=concatenated_r(r_by_run, n_rows).astype(np.float32),
        p=untested if test is None else test.p.astype(np.float32),
        p_max=untested if test is None else test.p_max.astype(np.float32),
        block_products=blocks.products,
        block_energies=blocks.energies,
        facts=facts | {"RowsByRun": n_rows.tolist()},
    )
    return PartInference(held_out, test)


def _tested(
    truth: FloatArray, predicted: FloatArray, segment: IntArray, options: InferenceOptions, max_block_bytes: int
) -> tuple[PermutationTest | None, dict[str, Any]]:
    """Test every voxel alone and family-wise, and say how; None with the reason where there are too few rows."""
    try:
        outcome = permutation_test(
            truth, predicted, segment, method=options.method, block_length=options.block_length,
            n_permutations=options.n_permutations, seed=options.seed, max_block_bytes=max_block_bytes,
        )  # fmt: skip
    except DesignError as error:
        return None, {"Method": None, "Reason": str(error)}
    facts = {
        "Method": outcome.method,
        "BlockLength": outcome.block_length,
        "Permutations": outcome.n_permutations,
        "Exchanged": outcome.exchanged,
        "Rows": outcome.n_rows,
        "SmallestP": outcome.smallest_p,
        "Alternative": "greater",
    }
    return outcome, facts


def _scored(folds: Sequence[Fold]) -> IntArray:
    """Rows behind the scored rows of all folds, (n_viewings, n_scored); -1 where there are fewer viewings."""
    parts = [fold.scored for fold in folds]
    n_viewings = max(len(part) for part in parts)
    padded = [np.pad(part, ((0, n_viewings - len(part)), (0, 0)), constant_values=-1) for part in parts]
    return np.concatenate(padded, axis=1)


def _names(segment: IntArray, run_of_row: IntArray, scored: IntArray, run_labels: Sequence[str]) -> tuple[str, ...]:
    """Label of the run of each segment; parts of a run are numbered, and means of viewings named as such."""
    labels = [_name(scored[:, segment == number], run_of_row, run_labels) for number in np.unique(segment)]
    return tuple(
        label if labels.count(label) == 1 else f"{label}, part {labels[:place].count(label) + 1}"
        for place, label in enumerate(labels)
    )


def _name(scored: IntArray, run_of_row: IntArray, run_labels: Sequence[str]) -> str:
    """Label of the run, or what the labels of all runs that are averaged have in common."""
    counts = np.unique((scored >= 0).sum(axis=0)).tolist()
    first: str = run_labels[int(run_of_row[scored[0, 0]])]
    if counts == [1]:
        return first
    labels = [run_labels[run].split("_") for run in np.unique(run_of_row[scored[scored >= 0]])]
    common = [entity for entity in labels[0] if all(entity in label for label in labels)]
    number = " to ".join(str(count) for count in (counts[0], counts[-1])[-len(counts) :])
    return f"{'_'.join(common) or first} (mean of {number} viewings)"
