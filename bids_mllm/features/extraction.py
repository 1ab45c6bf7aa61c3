"""Run a loaded model over clips, batch by batch, and make batches smaller where memory runs out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import BidsMllmError, StimulusError
from bids_mllm.features.extractor import Extracted, ExtractionPlan, Extractor
from bids_mllm.records import ClipMedia, Condition

#: Media of one batch, decoded: what a film of large pictures may hold in memory at once.
BATCH_MEDIA_BYTES = 256 * 2**20
#: Share of the free memory that a batch may fill; the rest is for what was not foreseen.
SHARE_OF_FREE = 0.7


def choose_batch_size(plan: ExtractionPlan, *, free_bytes: float | None, media_bytes: int) -> int:
    """Return how many clips a batch holds: a power of two, at most what the plan and the memory allow.

    Powers of two keep the size, and with it the last bits of the results, the same while the free memory
    varies a little.

    Parameters
    ----------
    plan
        Its `batch_size` is the most that is of use.
    free_bytes
        Free memory on the device with the weights loaded; None where it is not known.
    media_bytes
        Decoded media of one clip.
    """
    bounds = [plan.batch_size, BATCH_MEDIA_BYTES // max(media_bytes, 1)]
    if plan.cost is not None and free_bytes is not None:
        bounds.append(int(SHARE_OF_FREE * free_bytes / max(plan.cost.clip_bytes, 1)))
    return int(2 ** math.floor(math.log2(max(1, min(bounds)))))


class BatchRunner:
    """A loaded model that is given batches of clips.

    Parameters
    ----------
    extractor
        The model.
    plan
        What it will do.
    model
        Its key, for messages.
    batch_size
        Clips of a batch to begin with.
    """

    def __init__(self, extractor: Extractor, plan: ExtractionPlan, *, model: str, batch_size: int) -> None:
        self._extractor = extractor
        self._plan = plan
        self.model = model
        self.batch_size = batch_size

    def run(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return what the model gives for the clips.

        Where memory runs out, the batch is halved from then on and its clips are run again.

        Raises
        ------
        BidsMllmError
            When one clip alone does not fit, or a feature is not finite.
        """
        parts: list[Extracted] = []
        done = 0
        while done < len(clips):
            batch = clips[done : done + self.batch_size]
            extracted = self._attempt(batch)
            if extracted is not None:
                parts.append(extracted)
                done += len(batch)
        return join_extracted(parts)

    def _attempt(self, batch: Sequence[ClipMedia]) -> Extracted | None:
        """Run one batch; None, with the batch size halved, where memory ran out."""
        try:
            extracted = self._extractor.extract(batch)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
        else:
            for condition in self._plan.conditions:
                _check(extracted.features[condition], batch, condition, self.model)
            return extracted
        # Outside the handler, so that the failed call's tensors are no longer referred to by its traceback.
        _free_memory()
        if len(batch) == 1:
            raise BidsMllmError(
                f"{self.model} runs out of memory with one clip ({reason[0]}); ask for fewer frames or pixels, fewer "
                "instructions or tokens, or a dtype of two bytes, or use a device with more memory."
            )
        self.batch_size = max(1, len(batch) // 2)
        return None


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    from bids_mllm.features.models.memory import is_out_of_memory

    return is_out_of_memory(error)


def _free_memory() -> None:
    from bids_mllm.features.models.memory import release_cached

    release_cached()


def join_extracted(parts: Sequence[Extracted]) -> Extracted:
    """Return the features and texts of consecutive batches as one."""
    first = parts[0]
    features = {c: np.concatenate([part.features[c] for part in parts]) for c in first.features}
    texts = {c: tuple(text for part in parts for text in part.texts[c]) for c in first.texts}
    return Extracted(features, texts)


def extract_clips(
    extractor: Extractor, plan: ExtractionPlan, media: Iterable[ClipMedia], *, model: str
) -> Mapping[Condition, NDArray[np.float32]]:
    """Return for each condition the features of all clips, shape (n_clips, n_layers, width).

    Clips are taken from `media` as they are needed, at most ``plan.batch_size`` at once.

    Raises
    ------
    StimulusError
        When the media of a clip are damaged.
    BidsMllmError
        When a feature is not finite; names the model, the clip and the layer.
    """
    runner = BatchRunner(extractor, plan, model=model, batch_size=plan.batch_size)
    return join_extracted([runner.run(batch) for batch in _batches(media, plan.batch_size)]).features


def _batches(media: Iterable[ClipMedia], size: int) -> Iterator[list[ClipMedia]]:
    iterator = iter(media)
    while batch := list(islice(iterator, size)):
        for clip in batch:
            if clip.fault is not None:
                raise StimulusError(clip.fault)
        yield batch


def _check(values: NDArray[np.float32], batch: Sequence[ClipMedia], condition: Condition, model: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        clip = batch[int(bad[0, 0])].clip
        raise BidsMllmError(
            f"{model} gave a non-finite {condition.label} feature in layer {int(bad[0, 1])} for "
            f"{clip.stim_file} at {clip.start:.2f} s; run it with dtype float32 or bfloat16 instead of float16."
        )
