"""The real architecture with tiny weights: every pooling against separate calls of the real model."""

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.conditioning import linear_cka
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.frames import FrameSettings
from bids_mllm.features.models.loading import load_tokenizer
from bids_mllm.features.models.preprocess import preprocess_frames
from bids_mllm.features.models.progress import no_progress_bars
from bids_mllm.features.models.qwen25vl import FAMILY
from bids_mllm.features.models.tiny import save_tiny_qwen25vl, tiny_tokenizer
from bids_mllm.records import ClipMedia, Condition

WINDOW = 1.49
N_NEW = 5
INSTRUCTIONS = load_instructions()[:3]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    with no_progress_bars():
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32).eval()


def reference_inputs(clip: ClipMedia, text: str | None, order: str = "media-first") -> dict[str, Any]:
    """One clip and one instruction, written out from the template by hand."""
    tokenizer = tiny_tokenizer()
    patches, grid = preprocess_frames(clip.frames, FrameSettings(3136, 6272))
    video = "<|vision_start|>" + "<|video_pad|>" * (int(np.prod(grid)) // 4) + "<|vision_end|>"
    body = video + (text or "") if order == "media-first" else (text or "") + video
    ids = tokenizer(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + body
        + "<|im_end|>\n<|im_start|>assistant\n"
    )["input_ids"]
    input_ids = torch.tensor([ids])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": 2 * (input_ids == tokenizer.convert_tokens_to_ids("<|video_pad|>")).int(),
        "pixel_values_videos": patches,
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": torch.tensor([2 / (len(clip.frames) / WINDOW)]),
    }


@torch.no_grad()
def forward_states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Hidden states (n_layers, n_tokens, width) of one top-level forward."""
    output = model(**inputs, output_hidden_states=True)
    return torch.stack([state[0] for state in output.hidden_states])


@torch.no_grad()
def generated_states(model: Any, inputs: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
    """Tokens of the real `generate`, and the states (n_layers, n_tokens, width) of all but the last."""
    output = model.generate(
        **inputs,
        max_new_tokens=N_NEW + 1,
        do_sample=False,
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    steps = [torch.stack([state[0, -1] for state in step]) for step in output.hidden_states[1:]]
    return tokens, torch.stack(steps, dim=1)


def assert_close(found: np.ndarray, expected: torch.Tensor) -> None:
    """Equal within 1e-5 of the layer's scale."""
    expected_values = expected.numpy()
    for layer in range(len(expected_values)):
        scale = np.abs(expected_values[layer]).max()
        np.testing.assert_allclose(found[layer], expected_values[layer], rtol=0, atol=1e-5 * scale)


@pytest.fixture(scope="module")
def extracted(make_spec: Any, make_readout: Any, make_clips: Any) -> Any:
    readout = make_readout("generated", "last", "instruction", "media", max_new_tokens=N_NEW)
    extractor = FAMILY.load(make_spec(), readout, "cpu")
    clips = make_clips(4)
    return clips, extractor.extract(clips).features


def test_the_plan_says_what_comes_out(make_spec: Any, make_readout: Any, extracted: Any) -> None:
    plan = FAMILY.plan(make_spec(), make_readout("generated", "last", "instruction", "media", max_new_tokens=N_NEW))
    clips, results = extracted
    assert plan.request.media == "video"
    assert plan.request.n_frames == 4
    assert tuple(results) == plan.conditions
    assert plan.conditions[0] == Condition("generated", "AR")
    assert plan.conditions[-1] == Condition("media")
    for values in results.values():
        assert values.shape == (len(clips), plan.n_layers, plan.width)
        assert values.dtype == np.float32


@pytest.mark.parametrize("index", range(4))
def test_generated_equals_the_real_generate(model: Any, extracted: Any, index: int) -> None:
    clips, results = extracted
    for instruction in INSTRUCTIONS:
        tokens, states = generated_states(model, reference_inputs(clips[index], instruction.text))
        assert len(tokens) == N_NEW + 1
        assert_close(results[Condition("generated", instruction.key)][index], states.mean(dim=1))


def test_last_instruction_and_media_equal_a_top_level_forward(model: Any, extracted: Any) -> None:
    clips, results = extracted
    tokenizer = tiny_tokenizer()
    for index, clip in enumerate(clips):
        for instruction in INSTRUCTIONS:
            inputs = reference_inputs(clip, instruction.text)
            states = forward_states(model, inputs)
            assert_close(results[Condition("last", instruction.key)][index], states[:, -1])
            ids = inputs["input_ids"][0].tolist()
            start = ids.index(tokenizer.convert_tokens_to_ids("<|vision_end|>")) + 1
            end = ids.index(tokenizer.convert_tokens_to_ids("<|im_end|>"), start)
            assert tokenizer.decode(ids[start:end]) == instruction.text
            expected = states[:, start:end].mean(dim=1)
            assert_close(results[Condition("instruction", instruction.key)][index], expected)
            video = inputs["mm_token_type_ids"][0] == 2
            # The video comes first, so its tokens are the same whatever the instruction is.
            assert_close(results[Condition("media")][index], states[:, video].mean(dim=1))


def test_instruction_first_conditions_the_video_but_media_has_no_instruction(
    model: Any, make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    clips = make_clips(2)
    extractor = FAMILY.load(make_spec(order="instruction-first"), make_readout("last", "media"), "cpu")
    results = extractor.extract(clips).features
    inputs = reference_inputs(clips[1], INSTRUCTIONS[0].text, "instruction-first")
    assert_close(results[Condition("last", "AR")][1], forward_states(model, inputs)[:, -1])
    alone = reference_inputs(clips[1], None)
    states = forward_states(model, alone)[:, alone["mm_token_type_ids"][0] == 2]
    assert_close(results[Condition("media")][1], states.mean(dim=1))


def test_a_batch_equals_single_clips_also_with_mixed_frame_sizes(
    make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    clips = make_clips(2)
    clips = [clips[0], make_clips(1, size=(72, 128), seed=3)[0], clips[1]]
    extractor = FAMILY.load(make_spec(), make_readout("generated", "last"), "cpu")
    together = extractor.extract(clips).features
    for index, clip in enumerate(clips):
        for condition, values in extractor.extract([clip]).features.items():
            assert_close(together[condition][index], torch.from_numpy(values[0]))


def copy_with_ends(folder: Path, target: Path, ends: list[int]) -> Path:
    shutil.copytree(folder, target)
    path = target / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    return target


def test_an_answer_ends_at_its_end_token(
    model: Any, tiny_folder: Path, tmp_path: Path, make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    clips = make_clips(6)
    text = INSTRUCTIONS[0].text
    answers = [generated_states(model, reference_inputs(clip, text)) for clip in clips]
    # The end token is one that some answers have in the middle, as their first, and not at all.
    end = next(
        token
        for token in {t for tokens, _ in answers for t in tokens}
        if any(0 < tokens.index(token) < N_NEW for tokens, _ in answers if token in tokens)
        and any(token not in tokens[:N_NEW] for tokens, _ in answers)
    )
    first = answers[0][0][0]
    for chosen in (end, first):
        folder = copy_with_ends(tiny_folder, tmp_path / f"ends{chosen}", [chosen])
        readout = make_readout("generated", n_instructions=1, max_new_tokens=N_NEW)
        extracted = FAMILY.load(make_spec(folder), readout, "cpu").extract(clips)
        found, texts = (part[Condition("generated", "AR")] for part in (extracted.features, extracted.texts))
        for index, (tokens, states) in enumerate(answers):
            n_kept = tokens.index(chosen) if chosen in tokens[:N_NEW] else N_NEW
            assert_close(found[index], states[:, : max(n_kept, 1)].mean(dim=1))
            kept = tokens[: max(n_kept, 1)]
            assert texts[index] == tiny_tokenizer().decode(kept, skip_special_tokens=True).strip()


def test_more_tokens_change_generated_alone(
    tiny_folder: Path, make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    clips = make_clips(2)
    plans, results = [], []
    for n_new in (2, 4):
        readout = make_readout("generated", "last", max_new_tokens=n_new)
        plans.append(dict(FAMILY.plan(make_spec(), readout).identity))
        results.append(FAMILY.load(make_spec(), readout, "cpu").extract(clips).features)
    assert not np.allclose(results[0][Condition("generated", "AR")], results[1][Condition("generated", "AR")])
    np.testing.assert_array_equal(results[0][Condition("last", "AR")], results[1][Condition("last", "AR")])
    assert plans[0].pop("by_pooling") == {"generated": {"max_new_tokens": 2, "decoding": "greedy"}}
    assert plans[1].pop("by_pooling") == {"generated": {"max_new_tokens": 4, "decoding": "greedy"}}
    assert plans[0] == plans[1]


def test_the_identity_is_json_and_changes_with_what_changes_a_number(
    tmp_path: Path, make_spec: Any, make_readout: Any
) -> None:
    readout = make_readout("last")
    base = FAMILY.plan(make_spec(), readout).identity
    assert json.loads(json.dumps(base)) == base
    assert FAMILY.plan(make_spec(trust_remote_code=True), readout).identity == base
    other = save_tiny_qwen25vl(tmp_path / "other", seed=1)
    same = save_tiny_qwen25vl(tmp_path / "same")
    assert FAMILY.plan(make_spec(same), readout).identity == base
    for changed in (
        make_spec(other),
        make_spec(max_pixels=12544),
        make_spec(max_fps=2.0),
        make_spec(order="instruction-first"),
    ):
        assert FAMILY.plan(changed, readout).identity != base
    template = same / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "careful"))
    assert FAMILY.plan(make_spec(same), readout).identity["checkpoint"] != base["checkpoint"]


def test_instructions_and_layers_differ_and_follow_the_video(
    make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    readout = make_readout("generated", "last", "media", n_instructions=5, max_new_tokens=8)
    results = FAMILY.load(make_spec(), readout, "cpu").extract(make_clips(60)).features
    keys = [instruction.key for instruction in readout.instructions]
    for pooling in ("generated", "last"):
        for layer in (2, 3):
            for i, key in enumerate(keys):
                values = results[Condition(pooling, key)]
                for other in keys[:i]:
                    cka = linear_cka(values[:, layer], results[Condition(pooling, other)][:, layer])
                    assert 0.1 < cka < 0.9
                assert linear_cka(values[:, layer], values[:, layer - 1]) < 0.95
                assert values[:, layer].std(axis=0).mean() > 0.1 * np.abs(values[:, layer]).mean()
    media = results[Condition("media")][:, 0]
    assert linear_cka(results[Condition("generated", "AR")][:, 2], media) > 0.3
    answers = np.round(results[Condition("generated", "AR")][:, 0], 4)
    assert len(np.unique(answers, axis=0)) > 20


def test_ids_and_states_equal_those_of_the_real_processor(
    real_processor: Any, model: Any, make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    from transformers.video_utils import VideoMetadata

    for size in ((56, 56), (72, 128), (101, 67), (240, 427)):
        clip = make_clips(1, size=size, seed=5)[0]
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": INSTRUCTIONS[1].text}]}]
        text = real_processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = real_processor(
            text=[text],
            videos=[clip.frames],
            video_metadata=[VideoMetadata(total_num_frames=4, fps=4 / WINDOW, frames_indices=[0, 1, 2, 3])],
            return_tensors="pt",
        )
        ours = reference_inputs(clip, INSTRUCTIONS[1].text)
        assert torch.equal(inputs["input_ids"], ours["input_ids"])
        assert torch.equal(inputs["mm_token_type_ids"], ours["mm_token_type_ids"])
        assert torch.equal(inputs["video_grid_thw"], ours["video_grid_thw"])
        seconds = torch.as_tensor(inputs["second_per_grid_ts"], dtype=torch.float32)
        assert torch.equal(seconds, ours["second_per_grid_ts"])
        names = (
            "input_ids",
            "pixel_values_videos",
            "video_grid_thw",
            "second_per_grid_ts",
            "mm_token_type_ids",
        )
        states = forward_states(model, {name: inputs[name] for name in names})
        found = FAMILY.load(make_spec(), make_readout("last"), "cpu").extract([clip]).features
        assert_close(found[Condition("last", "VU")][0], states[:, -1])


def test_bfloat16_stays_near_float32(make_spec: Any, make_readout: Any, make_clips: Any) -> None:
    clips, readout = make_clips(3), make_readout("last", n_instructions=1)
    full = FAMILY.load(make_spec(), readout, "cpu").extract(clips).features[Condition("last", "AR")]
    half = FAMILY.load(replace(make_spec(), dtype="bfloat16"), readout, "cpu").extract(clips).features
    values = half[Condition("last", "AR")]
    assert values.dtype == np.float32
    assert not np.array_equal(values, full)
    assert np.abs(values - full).mean() < 0.1 * np.abs(full).mean()


def test_missing_frames_are_refused(make_spec: Any, make_readout: Any, make_clips: Any) -> None:
    extractor = FAMILY.load(make_spec(), make_readout("last"), "cpu")
    with pytest.raises(StimulusError, match="has 2 of the 4 frames"):
        extractor.extract(make_clips(1, n_frames=2))


def test_settings_that_cannot_be_used_are_named(make_spec: Any, make_readout: Any) -> None:
    with pytest.raises(UsageError, match="unknown parameter 'fps'"):
        FAMILY.plan(make_spec(fps=3), make_readout("last"))
    with pytest.raises(UsageError, match="order 'sideways'"):
        FAMILY.plan(make_spec(order="sideways"), make_readout("last"))
    with pytest.raises(UsageError, match="dtype 'int8'"):
        FAMILY.plan(replace(make_spec(), dtype="int8"), make_readout("last"))
    with pytest.raises(UsageError, match="no pooling 'stimulus'"):
        FAMILY.plan(make_spec(), make_readout("stimulus"))
    with pytest.raises(UsageError, match="at least one instruction"):
        FAMILY.plan(make_spec(), make_readout("last", n_instructions=0))
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        FAMILY.plan(make_spec(), make_readout("generated", max_new_tokens=0))


def test_a_template_that_rewrites_the_instruction_is_refused(
    tiny_folder: Path, tmp_path: Path, make_spec: Any, make_readout: Any, make_clips: Any
) -> None:
    folder = tmp_path / "upper"
    shutil.copytree(tiny_folder, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("part.text }}", "part.text | upper }}"))
    extractor = FAMILY.load(make_spec(folder), make_readout("last"), "cpu")
    with pytest.raises(CheckpointError, match="does not keep the instruction"):
        extractor.extract(make_clips(1))


def test_closing_frees_the_model(make_spec: Any, make_readout: Any) -> None:
    extractor = FAMILY.load(make_spec(), make_readout("last"), "cpu")
    weights = weakref.ref(extractor._model)
    extractor.close()
    gc.collect()
    assert weights() is None


def test_the_tokenizer_gives_offsets(tiny_folder: Path) -> None:
    assert load_tokenizer(tiny_folder).is_fast


def test_the_seed_reaches_torch(make_spec: Any, make_readout: Any) -> None:
    readout = replace(make_readout("last"), seed=4321)
    extractor = FAMILY.load(make_spec(), readout, "cpu")
    extractor.close()
    assert torch.initial_seed() == 4321
