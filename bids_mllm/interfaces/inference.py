"""From held-out predictions to tests and intervals; plain functions, usable without nipype."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.interfaces.rows import Rows
from bids_mllm.outcomes import HeldOut
from bids_mllm.records import FloatArray, IntArray
from bids_mllm.score.correlation import concatenated_r, pearson_r_by_run
from bids_mllm.score.paired import block_scores
from bids_mllm.score.permutation import permutation_test


@dataclass(frozen=True)
class InferenceOptions:
    """How predictions are tested: `method` is block or circular, `block_length` in TRs."""

    n_permutations: int = 5000
    method: Literal["block", "circular"] = "block"
    block_length: int = 10
    seed: int = 0


def held_out_inference(
    rows: Rows,
    Y: FloatArray,
    predictions: Sequence[FloatArray],
    run_labels: Sequence[str],
    options: InferenceOptions,
    *,
    max_block_bytes: int,
) -> HeldOut:
    """Test the predictions of one model against the held-out rows of all outer folds.

    Parameters
    ----------
    rows
    Y : (n_rows, n_voxels) float
    predictions
        One array (n_test, n_voxels) an outer fold.
    run_labels
        Labels of the runs of the design.
    options
    max_block_bytes
        Bound of the working arrays.
    """
    test = np.sort(np.concatenate([fold.test for fold in rows.folds]))
    predicted = np.empty((len(test), Y.shape[1]), dtype=np.float32)
    for fold, own in zip(rows.folds, predictions, strict=True):
        predicted[np.searchsorted(test, fold.test)] = own
    truth, segment = Y[test], rows.segment_of_row[test]
    r_by_run, n_rows = pearson_r_by_run(truth, predicted, segment)
    p, p_max, facts = _tested(truth, predicted, segment, options, max_block_bytes)
    blocks = block_scores(truth, predicted, segment, block_length=options.block_length, max_block_bytes=max_block_bytes)
    return HeldOut(
        run_names=_names(segment, rows.run_of_row[test], run_labels),
        r_by_run=r_by_run.astype(np.float32),
        r_concatenated=concatenated_r(r_by_run, n_rows).astype(np.float32),
        p=p.astype(np.float32),
        p_max=p_max.astype(np.float32),
        block_products=blocks.products,
        block_energies=blocks.energies,
        facts=facts | {"RowsByRun": n_rows.tolist()},
    )


def _tested(
    truth: FloatArray, predicted: FloatArray, segment: IntArray, options: InferenceOptions, max_block_bytes: int
) -> tuple[FloatArray, FloatArray, dict[str, Any]]:
    """P of every voxel alone and family-wise, and how; NaN with the reason where there are too few rows."""
    try:
        outcome = permutation_test(
            truth, predicted, segment, method=options.method, block_length=options.block_length,
            n_permutations=options.n_permutations, seed=options.seed, max_block_bytes=max_block_bytes,
        )  # fmt: skip
    except DesignError as error:
        nothing = np.full(truth.shape[1], np.nan)
        return nothing, nothing, {"Method": None, "Reason": str(error)}
    facts = {
        "Method": outcome.method,
        "BlockLength": outcome.block_length,
        "Permutations": outcome.n_permutations,
        "Exchanged": outcome.exchanged,
        "Rows": outcome.n_rows,
        "SmallestP": outcome.smallest_p,
        "Alternative": "greater",
    }
    return outcome.p, outcome.p_max, facts


def _names(segment: IntArray, run: IntArray, run_labels: Sequence[str]) -> tuple[str, ...]:
    """Label of the run of each segment; parts of a run are numbered."""
    _, first = np.unique(segment, return_index=True)
    labels = [run_labels[run[place]] for place in first]
    return tuple(
        label if labels.count(label) == 1 else f"{label}, part {labels[:place].count(label) + 1}"
        for place, label in enumerate(labels)
    )
