"""Run an extractor over clips, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import BidsMllmError
from bids_mllm.features.extractor import ExtractionPlan, Extractor
from bids_mllm.records import ClipMedia, Condition


def extract_clips(
    extractor: Extractor, plan: ExtractionPlan, media: Iterable[ClipMedia], *, model: str
) -> Mapping[Condition, NDArray[np.float32]]:
    """Return for each condition the features of all clips, shape (n_clips, n_layers, width).

    Clips are taken from `media` as they are needed, at most ``plan.batch_size`` at once.

    Raises
    ------
    BidsMllmError
        When a feature is not finite; names the model, the clip and the layer.
    """
    parts: dict[Condition, list[NDArray[np.float32]]] = {condition: [] for condition in plan.conditions}
    for batch in _batches(media, plan.batch_size):
        features = extractor.extract(batch)
        for condition in plan.conditions:
            _check(features[condition], batch, condition, model)
            parts[condition].append(features[condition])
    return {condition: np.concatenate(arrays) for condition, arrays in parts.items()}


def _batches(media: Iterable[ClipMedia], size: int) -> Iterator[list[ClipMedia]]:
    iterator = iter(media)
    while batch := list(islice(iterator, size)):
        yield batch


def _check(values: NDArray[np.float32], batch: list[ClipMedia], condition: Condition, model: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        clip = batch[int(bad[0, 0])].clip
        raise BidsMllmError(
            f"{model} gave a non-finite {condition.label} feature in layer {int(bad[0, 1])} for "
            f"{clip.stim_file} at {clip.start:.2f} s; run it with dtype float32 or bfloat16 instead of float16."
        )
