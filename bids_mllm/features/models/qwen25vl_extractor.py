"""A loaded Qwen2.5-VL: batches of clips in, pooled hidden states out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from bids_mllm.exceptions import CheckpointError, StimulusError
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.decoding import ClipInputs, Decoding, run
from bids_mllm.features.models.preprocess import preprocess_frames
from bids_mllm.features.models.progress import no_progress_bars
from bids_mllm.features.models.prompts import PromptBuilder
from bids_mllm.features.models.setup import Setup
from bids_mllm.records import ClipMedia, Condition, Pooling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(folder: Path, *, dtype: torch.dtype, device: str) -> Any:
    """Return the model in eval mode, or raise a CheckpointError when a weight is missing or misshapen."""
    try:
        with no_progress_bars():
            model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"The checkpoint {folder} cannot be loaded ({reason[0]}); copy it again or check its family."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"The checkpoint {folder} lacks {len(missing)} weights (first: {missing[0]}); copy it again."
        )
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> Any:
    """Return the checkpoint's tokenizer, which must be able to give character offsets."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The tokenizer of {folder} cannot be loaded ({type(error).__name__}); copy the checkpoint again."
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder} has no tokenizer.json, which is needed to locate the instruction.")
    return tokenizer


def end_tokens(model: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer, from the checkpoint's generation settings."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    return tuple(ids) if isinstance(ids, (list, tuple)) else (() if ids is None else (ids,))


class Qwen25VLExtractor:
    """The extractor of one checkpoint and one read-out.

    Parameters
    ----------
    setup
        What the checkpoint's small files say.
    readout
        Window, poolings, instructions and generated tokens.
    conditions
        The read-outs, in the order of the results.
    device
        Where the model runs; frames are prepared on the CPU so that every device sees the same numbers.
    """

    def __init__(self, setup: Setup, readout: ReadOut, conditions: Sequence[Condition], *, device: str) -> None:
        self._setup = setup
        self._readout = readout
        self._conditions = tuple(conditions)
        self._device = torch.device(device)
        torch.manual_seed(readout.seed)
        tokenizer = load_tokenizer(setup.folder)
        self._model: Any = load_model(setup.folder, dtype=DTYPES[setup.dtype], device=device)
        self._prompts = PromptBuilder(
            tokenizer,
            checkpoint.read_chat_template(setup.folder),
            media_token=tokenizer.convert_ids_to_tokens(self._model.config.video_token_id),
            order=setup.order,
        )
        self._decoding = Decoding(readout.max_new_tokens, end_tokens(self._model))

    def extract(self, clips: Sequence[ClipMedia]) -> Mapping[Condition, NDArray[np.float32]]:
        """Return for each condition an array (n_clips, n_layers, width) of float32.

        Clips of one frame size run together, so nothing is ever padded.
        """
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, clip in enumerate(clips):
            by_shape.setdefault(self._frames(clip).shape, []).append(i)
        results: dict[Condition, list[NDArray[np.float32]]] = {c: [] for c in self._conditions}
        order = [i for members in by_shape.values() for i in members]
        for members in by_shape.values():
            pooled = self._extract_alike([clips[i] for i in members])
            for condition, values in pooled.items():
                results[condition].append(values)
        back = np.argsort(order)
        return {condition: np.concatenate(parts)[back] for condition, parts in results.items()}

    def close(self) -> None:
        """Free the weights and the device's memory."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _frames(self, clip: ClipMedia) -> NDArray[np.uint8]:
        """Return the frames of a clip, checked."""
        if clip.frames is None or len(clip.frames) != self._setup.n_frames:
            found = "none" if clip.frames is None else str(len(clip.frames))
            raise StimulusError(
                f"Clip {clip.clip.index} of {clip.clip.stim_file} has {found} of the {self._setup.n_frames} "
                "frames that the model reads; check that the file has a video stream."
            )
        return clip.frames

    @torch.no_grad()
    def _inputs(self, clips: Sequence[ClipMedia]) -> ClipInputs:
        """Prepare the frames and run the vision tower once for all instructions."""
        prepared = [preprocess_frames(self._frames(clip), self._setup.frames) for clip in clips]
        patches = torch.cat([patches for patches, _ in prepared]).to(self._device)
        grid = torch.tensor([grid for _, grid in prepared], device=self._device)
        features = self._model.model.get_video_features(patches, grid, return_dict=True)
        frame_rate = self._setup.n_frames / self._readout.window
        seconds = torch.full((len(clips),), self._setup.frames.temporal_patch_size / frame_rate)
        return ClipInputs(features, grid, seconds.to(self._device))

    def _extract_alike(self, clips: Sequence[ClipMedia]) -> dict[Condition, NDArray[np.float32]]:
        """Return the pooled states of clips of one frame size."""
        inputs = self._inputs(clips)
        n_media = int(inputs.grid[0].prod()) // self._setup.frames.merge_size**2
        texts = {instruction.key: instruction.text for instruction in self._readout.instructions}
        wanted: dict[str | None, list[Pooling]] = {}
        for condition in self._conditions:
            wanted.setdefault(condition.instruction, []).append(condition.pooling)
        results: dict[Condition, NDArray[np.float32]] = {}
        for key, poolings in wanted.items():
            prompt = self._prompts.build(None if key is None else texts[key], n_media)
            pooled = run(self._model, inputs, prompt, poolings=poolings, decoding=self._decoding)
            for pooling, values in pooled.items():
                results[Condition(pooling, key)] = values.cpu().numpy()
        return results
