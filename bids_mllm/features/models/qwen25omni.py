"""The Qwen2.5-Omni family: the thinker, with a film's pictures, its sound, or both in turns of two seconds.

Frames are cut as in Qwen2.5-VL and sound as in Qwen2-Audio, but without the padding. It also serves as a baseline
that learns in context: demonstrations stand before each clip.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import Architecture, MediaBatch, MediaSettings, Setup, through_core
from bids_mllm.features.models.instructed import instructed_family
from bids_mllm.features.models.qwen2audio import sound_extractor
from bids_mllm.features.models.qwen25vl import frame_identity, settle_frames, video_tensors
from bids_mllm.features.models.sound_inputs import SoundInputs, read_sound_settings, sound_inputs
from bids_mllm.records import ClipMedia, MediaRequest, ModelSpec

VIDEO, AUDIO = "<|VIDEO|>", "<|AUDIO|>"
AUDIO_BEGIN, AUDIO_END = "<|audio_bos|>", "<|audio_eos|>"
#: Of the real processor and of every checkpoint's configuration: positions a second, and seconds of a turn.
POSITIONS_PER_SECOND, SECONDS_PER_TURN = 25, 2.0


def settle(spec: ModelSpec, folder: Path, config: Mapping[str, Any], window: float) -> MediaSettings:
    """Settle frames and sound for a window in seconds; the record's media say which of the two are read."""
    frames, sound, n_frames, n_tokens = None, None, 0, 0
    if spec.media in ("video", "both"):
        frames, n_frames, n_tokens = settle_frames(spec, checkpoint.read_processor_config(folder), window)
    if spec.media in ("audio", "both"):
        sound = read_sound_settings(folder)
        n_tokens += sound.n_tokens(round(window * sound.sampling_rate))
    media: Literal["video", "audio", "both"] = "video" if spec.media == "table" else spec.media
    return MediaSettings(
        request=MediaRequest(media=media, n_frames=n_frames, sampling_rate=sound.sampling_rate if sound else 0),
        identity={
            "frames": frame_identity(frames, n_frames) if frames else None,
            "sound": asdict(sound) if sound else None,
        },
        n_tokens=n_tokens,
        values=(frames, sound),
    )


def _chunks(positions: Sequence[float], size: float) -> Iterator[int]:
    """Yield how many of rising positions fall into each turn of `size`; a turn without any gives what waits."""
    start, turn = 0, 1
    for number, position in enumerate(positions):
        if position >= turn * size:
            yield number - start
            start, turn = number, turn + 1
    yield len(positions) - start


def interleave(grid: Sequence[int], merge: int, seconds: float, n_audio: int) -> str:
    """Return the tokens of a video with its sound: turns of two seconds, pictures first, as the real processor does.

    Parameters
    ----------
    grid
        Patches in time, rows and columns.
    merge
        Side of a token in patches.
    seconds
        Between two steps in time.
    n_audio
        Tokens of the sound, one a position.
    """
    in_step = (grid[1] // merge) * (grid[2] // merge)
    times = [step * seconds * POSITIONS_PER_SECOND for step in range(grid[0]) for _ in range(in_step)]
    size = int(POSITIONS_PER_SECOND * SECONDS_PER_TURN)
    pictures, sounds = list(_chunks(times, size)), list(_chunks(range(n_audio), size))
    turns = max(len(pictures), len(sounds))
    pictures += [0] * (turns - len(pictures))
    sounds += [0] * (turns - len(sounds))
    return AUDIO_BEGIN + "".join(VIDEO * p + AUDIO * s for p, s in zip(pictures, sounds, strict=True)) + AUDIO_END


def _sounds(media: Sequence[ClipMedia], setup: Setup) -> tuple[dict[str, Any], list[int]]:
    """Return the spectrograms of sounds of any length, and the tokens of each."""
    import torch

    settings = setup.media.values[1]
    extractor = sound_extractor(setup.folder)
    made: list[SoundInputs] = [sound_inputs(extractor, [one], settings, whole_window=False) for one in media]
    longest = max(one.input_features.shape[-1] for one in made)

    def filled(values: Any) -> Any:
        return torch.nn.functional.pad(values, (0, longest - values.shape[-1]))

    tensors = {
        "input_features": torch.cat([filled(one.input_features) for one in made]),
        "feature_attention_mask": torch.cat([filled(one.feature_attention_mask) for one in made]),
    }
    return tensors, [one.n_tokens for one in made]


def prepare(clips: Sequence[ClipMedia], setup: Setup) -> MediaBatch:
    """Prepare the media of clips of one shape, each behind those of the demonstrations."""
    import torch

    frames, sound = setup.media.values
    media = [one for clip in clips for one in setup.with_demonstrations(clip)]
    in_prompt = len(media) // len(clips)
    tensors: dict[str, Any] = {}
    pieces, counts = [""] * in_prompt, [0] * in_prompt
    if sound is not None:
        tensors, counts = _sounds(media, setup)
        pieces = [AUDIO * count for count in counts[:in_prompt]]
    if frames is not None:
        n_frames = setup.media.request.n_frames
        patches, grid = video_tensors(media, frames, n_frames)
        seconds = frames.temporal_patch_size / (n_frames / setup.window)
        tensors |= {
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "video_second_per_grid": torch.full((len(media),), seconds),
        }
        grids = grid[:in_prompt].tolist()
        videos = [int(grid[i].prod()) // frames.merge_size**2 for i in range(in_prompt)]
        if sound is None:
            pieces = [VIDEO * count for count in videos]
        else:
            pieces = [interleave(g, frames.merge_size, seconds, n) for g, n in zip(grids, counts, strict=False)]
        counts = [video + audio for video, audio in zip(videos, counts, strict=False)]
    placeholder = AUDIO if frames is None else VIDEO
    return MediaBatch(
        tensors=tensors,
        expand=lambda rendered: _fill(rendered, placeholder, pieces),
        n_tokens=counts[in_prompt - 1],
        shape=tuple(pieces),
    )


def _fill(rendered: str, placeholder: str, pieces: Sequence[str]) -> str:
    """Return the text with each placeholder replaced by its own piece."""
    texts = rendered.split(placeholder)
    if len(texts) != len(pieces) + 1:
        raise CheckpointError(
            f"The checkpoint's chat template has {len(texts) - 1} places for media, but the prompt has {len(pieces)}; "
            "copy the checkpoint again or check its family."
        )
    return texts[0] + "".join(piece + text for piece, text in zip(pieces, texts[1:], strict=True))


def forward(model: Any, ids: Any, text: str | None, tensors: Mapping[str, Any], setup: Setup, cache: Any, /) -> None:
    """Run the thinker, which places pictures and sound in time only where a mask is given."""
    import torch

    further = {"attention_mask": torch.ones_like(ids), "use_audio_in_video": setup.spec.media == "both"}
    through_core(arguments=lambda _ids, _model: further)(model, ids, text, tensors, setup, cache)


ARCHITECTURE = Architecture(
    name="qwen25omni",
    model_types=("qwen2_5_omni_thinker", "qwen2_5_omni"),
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    config_class="Qwen2_5OmniThinkerConfig",
    media_tokens=("video_token_id", "audio_token_id"),
    placeholders=("video",),
    parameters=("max_fps", "max_frames", "min_pixels", "max_pixels"),
    settle=settle,
    prepare=prepare,
    towers=("model.visual", "model.audio_tower"),
    forward=forward,
    demonstrations=True,
)
FAMILY = instructed_family(ARCHITECTURE)
