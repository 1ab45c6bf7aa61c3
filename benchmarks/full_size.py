"""Clips per second of Qwen2.5-VL 7B with random weights, made in bfloat16 on the device.

What one clip costs in operations follows from the sizes. The device could do as many clips a second as its fastest
matrix product has room for; the figure to compare with is half of that.
"""

import resource
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clocks import STAGES, Watched, timed
from prefix_sharing import CASES, FRAME, N_NEW, VIDEO_WINDOW, Script, make_clip, readout, relative_error, take_turns
from torch.nn.functional import linear
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.instructed import prepare
from bids_mllm.features.models.qwen25vl import ARCHITECTURE
from bids_mllm.features.models.tiny.files import qwen_vision_settings, write_json
from bids_mllm.features.models.tiny.tokenizer import tiny_tokenizer
from bids_mllm.records import ClipMedia, Condition, ModelSpec

N_FRAMES = 8
PATCH_PIXELS = 14
#: Tokens of one temporal step of two frames.
FRAME_TOKENS = FRAME[0] * FRAME[1] // 28**2
#: Dense bfloat16 operations per second of the data sheets.
DATA_SHEETS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
SHARE_OF_PEAK = 0.5
BATCHES = (1, 2, 4, 8, 16)
N_TIMED = 3


@dataclass(frozen=True)
class Sizes:
    """Sizes of the architecture; those of the trained model where `scale` is 1 and there are 28 layers."""

    n_layers: int
    scale: float

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, each for seven of queries."""
        return max(1, round(4 * self.scale))

    @property
    def text(self) -> dict[str, Any]:
        """Of the language model."""
        width = 7 * self.key_heads * 128
        return {
            "hidden_size": width,
            "intermediate_size": width * 18944 // 3584,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": 7 * self.key_heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": max(4096, round(152064 * self.scale)),
            "max_position_embeddings": 128000,
            "max_window_layers": self.n_layers,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }

    @property
    def vision(self) -> dict[str, Any]:
        """Of the vision tower, which has four layers that see whole frames."""
        depth, heads = max(1, round(32 * self.n_layers / 28)), max(2, round(16 * self.scale))
        return {
            "depth": depth,
            "hidden_size": 80 * heads,
            "intermediate_size": 3420 * heads // 16,
            "num_heads": heads,
            "fullatt_block_indexes": sorted({max(0, depth * n // 4 - 1) for n in (1, 2, 3, 4)}),
            "out_hidden_size": self.text["hidden_size"],
            "tokens_per_second": 2,
            "window_size": 112,
        }


def write_small_files(folder: Path, sizes: Sizes) -> None:
    """Write all files of a checkpoint but its weights, with a small vocabulary of words in a large table."""
    tokenizer = tiny_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    end, padding = token("<|im_end|>"), token("<|endoftext|>")
    text = {**sizes.text, "bos_token_id": padding, "eos_token_id": end, "pad_token_id": padding}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=sizes.vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = qwen_vision_settings((4, FRAME_TOKENS))
    write_json(folder / "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor", **settings})


def draw_weights(setup: Any, device: str, seed: int) -> Any:
    """Return the model with weights drawn on the device; on the CPU they would take minutes and 33 GB."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig.from_pretrained(setup.folder)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model.eval()


def operations(model: Any, n_prefix: int, n_suffix: int, n_new: int) -> float:
    """Return the floating-point operations of a clip: two a weight and token, and those of attention.

    Parameters
    ----------
    model
        Gives weights and sizes.
    n_prefix, n_suffix
        Tokens that all prompts share, and those of all branches together.
    n_new
        Tokens generated in all branches together; logits are made for these alone.
    """
    text, vision = model.config.text_config, model.config.vision_config
    weights = sum(p.numel() for layer in model.model.language_model.layers for p in layer.parameters())
    head = text.vocab_size * text.hidden_size
    n_tokens = n_prefix + n_suffix + n_new
    # A token of the beginning sees half of it on average, the others see all of it.
    seen = n_prefix * n_prefix / 2 + (n_suffix + n_new) * n_prefix
    language = 2.0 * weights * n_tokens + 4.0 * text.num_hidden_layers * text.hidden_size * seen + 2.0 * head * n_new
    n_patches = 4 * FRAME_TOKENS * N_FRAMES // 2
    tower = sum(p.numel() for block in model.model.visual.blocks for p in block.parameters())
    merger = sum(p.numel() for p in model.model.visual.merger.parameters())
    in_window = (vision.window_size // vision.patch_size) ** 2
    whole = len(vision.fullatt_block_indexes)
    neighbours = whole * 4 * FRAME_TOKENS + (vision.depth - whole) * in_window
    picture = 2.0 * tower * n_patches + 4.0 * vision.hidden_size * n_patches * neighbours
    return language + picture + 2.0 * merger * n_patches / 4


def matmul_peak(device: str) -> float:
    """Return the operations per second of the fastest of some large bfloat16 matrix products."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.startswith("cuda") else (1024,):
        left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(5):
            _, (wall, _) = timed(lambda left=left, right=right: [linear(left, right) for _ in range(10)], device)
            best = max(best, 20.0 * size**3 / float(wall))
    return best


def data_sheet_peak(device: str) -> float | None:
    """Return what the data sheet of the device says, None where it is not known."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in DATA_SHEETS.items() if model in name), None)


def peak_memory(device: str) -> float:
    """Return the most memory in GB that was held: on the device, or by the process on the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def by_batch(extract: Callable[[Sequence[ClipMedia]], Any], clip: ClipMedia, device: str, batches: Sequence[int]):
    """Return clips per second for each size of batch that fits the memory."""
    rates: dict[int, float] = {}
    for size in batches:
        try:
            extract([clip] * size)
            walls = [float(timed(lambda size=size: extract([clip] * size), device)[1][0]) for _ in range(N_TIMED)]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        rates[size] = size / float(np.median(walls))
        print(f"batch of {size:2}: {rates[size]:8.3f} clips/s, {peak_memory(device):.1f} GB at the most", flush=True)
    return rates


def against_script(watched: Watched, script: Script, kind: str, clip: ClipMedia, device: str) -> dict[str, float]:
    """Return how the app compares with one call of the model an instruction, both with one clip at a time."""
    call = getattr(script, kind)
    call(clip, load_instructions()[0].text)
    turns = take_turns(watched.extractor, call, clip, n_turns=1, device=device)
    figures = {"ratio": round(float(turns.ratios[0]), 2)}
    if kind == "last":
        # In bfloat16 states differ by about one unit in the last place of each layer.
        errors = [
            relative_error(turns.extracted.features[Condition(pooling, key)][0], expected)
            for key, states in turns.by_instruction.items()
            for pooling, expected in states.items()
        ]
        figures["max_rel_err"] = max(errors)
    else:
        same = [
            turns.extracted.texts[Condition(kind, key)][0] == said for key, (said, _) in turns.by_instruction.items()
        ]
        figures["answers_alike"] = sum(same) / len(same)
    print(f"{kind}: {figures}", flush=True)
    return figures


def count_tokens(setup: Any) -> tuple[int, int]:
    """Return the tokens that all prompts share, and those of all branches."""
    from bids_mllm.features.models.instructed_extractor import prompt_builder
    from bids_mllm.features.models.loading import load_tokenizer
    from bids_mllm.features.models.packing import common_prefix

    tokenizer = load_tokenizer(setup.folder)
    media_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    builder = prompt_builder(ARCHITECTURE, setup, tokenizer, [media_id])
    batch = ARCHITECTURE.prepare([make_clip(CASES["qwen25vl"], setup.media.request, quick=False)], setup)
    prompts = [
        builder.build(one.text, batch.expand, n_media=batch.n_tokens, shape=batch.shape) for one in load_instructions()
    ]
    shared = common_prefix(prompts)
    return shared, sum(len(prompt.ids) - shared for prompt in prompts)


def measure_full_size(device: str, *, n_layers: int, scale: float, quick: bool) -> Mapping[str, Any]:
    """Measure the app on the architecture of full size, print a report and return its figures.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    n_layers, scale
        Of the language model, and share of the width; 28 and 1 for the trained model's sizes.
    quick
        Whether batches of one clip are enough.
    """
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as folder:
        write_small_files(Path(folder), Sizes(n_layers, scale))
        case = CASES["qwen25vl"]
        spec = ModelSpec(
            "measured",
            "qwen25vl",
            "video",
            source=folder,
            dtype="bfloat16",
            weights="random",
            parameters=case.parameters,
        )
        return _measure(spec, device, batches=BATCHES[:1] if quick else BATCHES)


def _measure(spec: ModelSpec, device: str, *, batches: Sequence[int]) -> Mapping[str, Any]:
    drawn: list[Any] = []

    def once(setup: Any, where: str, seed: int) -> Any:
        if not drawn:
            drawn.append(draw_weights(setup, where, seed))
        return drawn[0]

    architecture = replace(ARCHITECTURE, load=once)
    readouts = {kind: readout(VIDEO_WINDOW, kind) for kind in ("last", "generated")}
    watched = {kind: Watched(architecture, spec, asked, device) for kind, asked in readouts.items()}
    setup = prepare(ARCHITECTURE, spec, readouts["last"])
    clip = make_clip(CASES["qwen25vl"], setup.media.request, quick=False)
    n_prefix, n_suffix = count_tokens(setup)
    n_new = N_NEW * len(load_instructions())
    flops = operations(drawn[0], n_prefix, n_suffix, n_new)
    n_weights = sum(p.numel() for p in drawn[0].parameters())
    print(f"{n_weights / 1e9:.2f} G weights, {n_prefix} tokens shared, {n_suffix} in branches, {n_new} generated")
    peaks = {"of_matmul_peak": matmul_peak(device), "of_data_sheet": data_sheet_peak(device)}
    reached = f"matrix products reach {peaks['of_matmul_peak'] / 1e12:.3g} TFLOP/s"
    print(f"{flops / 1e12:.2f} TFLOP a clip; {reached}", flush=True)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    rates = by_batch(watched["generated"].extractor.extract, clip, device, batches)
    memory = peak_memory(device)
    best = max(rates, key=lambda size: rates[size])
    stages = watched["generated"].stages([clip] * best)
    total = sum(stages.values())
    for stage in STAGES:
        print(f"{stage:10} {stages[stage] / best * 1e3:9.1f} ms a clip, {stages[stage] / total:5.1%}")
    script = Script(ARCHITECTURE, setup, drawn[0])
    shares = {name: rates[best] * flops / (SHARE_OF_PEAK * peak) for name, peak in peaks.items() if peak is not None}
    for name, share in shares.items():
        print(f"{share:.1%} of what half the peak gives ({name})")
    return {
        "clips_per_s": {str(size): round(rate, 4) for size, rate in rates.items()},
        "tflop_per_clip": round(flops / 1e12, 3),
        "share_of_half_peak": {name: round(share, 4) for name, share in shares.items()},
        "peak_memory_gb": round(memory, 2),
        "seconds_per_clip": {stage: round(seconds / best, 5) for stage, seconds in stages.items()},
        "against_script": {kind: against_script(one, script, kind, clip, device) for kind, one in watched.items()},
    }
