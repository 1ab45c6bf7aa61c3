"""Every family that follows instructions: its features against separate calls of its real model and processor."""

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
from instructed_cases import (
    BY_NAME,
    CASES,
    INSTRUCTIONS,
    N_NEW,
    SINKS,
    TEXTS,
    Case,
    Oracle,
    build,
    drive,
    hooked,
    make_readout,
    media_clip,
    processed,
    relative_error,
)
from safetensors.torch import load, save_file

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.catalogue import load_families, load_records
from bids_mllm.features.extractor import Demonstration
from bids_mllm.features.models.qwen25omni import interleave
from bids_mllm.features.models.tiny import FAMILIES, TINY_CHECKPOINTS
from bids_mllm.records import Condition, Instruction, MediaRequest

PATHS = pytest.mark.parametrize("plain", [False, True], ids=["shared", "plain"])
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ONE_A_FAMILY = [next(case for case in CASES if case.family == family) for family in FAMILIES]
EACH_FAMILY = pytest.mark.parametrize("case", ONE_A_FAMILY, ids=lambda case: case.family)
IN_CONTEXT = ("internvl", "qwen25omni-video", "qwen25omni-audio", "qwen25omni-both")
TEXT_OF = {instruction.key: instruction.text for instruction in INSTRUCTIONS}
# transformers counts the tokens of a sound, a tensor, with numpy.
COUNTS_WITH_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_every_family_that_follows_instructions_is_tested_here() -> None:
    assert {case.family for case in CASES} == set(FAMILIES)
    known = {record.spec.family for record in load_records().values() if record.spec.instructed}
    # Its code comes with its checkpoint.
    assert known & set(load_families()) - {"kimiaudio"} <= set(FAMILIES)


@EVERY
@PATHS
def test_all_poolings_and_answers_are_those_of_separate_calls(
    case: Case, plain: bool, extractor_of: Any, oracle_of: Any
) -> None:
    clips, oracle = case.clips(), oracle_of(case)
    extracted = extractor_of(case, plain).extract(clips)
    keys = [instruction.key for instruction in INSTRUCTIONS]
    answered = [Condition("generated", key) for key in keys]
    assert set(extracted.features) == {
        *answered,
        *(Condition(pooling, key) for pooling in ("last", "instruction") for key in keys),
        Condition("media"),
    }
    assert list(extracted.texts) == answered
    for condition, values in extracted.features.items():
        assert values.shape == (3, 5, 48)
        assert values.dtype == np.float32
        text = TEXT_OF.get(condition.instruction or "")
        for index, clip in enumerate(clips):
            assert relative_error(values[index], oracle.expected(condition.pooling, clip, text)) < 1e-5
    for condition, texts in extracted.texts.items():
        for index, clip in enumerate(clips):
            tokens, _ = oracle.answer(clip, TEXT_OF[condition.instruction])
            assert texts[index] == oracle.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@EVERY
@PATHS
def test_tokens_are_those_of_the_real_generate(case: Case, plain: bool, extractor_of: Any, oracle_of: Any) -> None:
    clips, oracle = case.clips(), oracle_of(case)
    said = set()
    for members in ([clips[0], clips[2]], [clips[1]]):
        tokens = drive(extractor_of(case), members, TEXTS, plain=plain).tokens
        assert tokens.shape == (len(members), len(TEXTS), N_NEW)
        for index, clip in enumerate(members):
            for branch, text in enumerate(TEXTS):
                expected, _ = oracle.answer(clip, text)
                assert tokens[index, branch].tolist() == expected
                said.add(tuple(expected))
    assert len(said) > 1


@EVERY
def test_a_batch_of_mixed_shapes_gives_what_single_clips_give(case: Case, extractor_of: Any) -> None:
    clips, extractor = case.clips(), extractor_of(case)
    together = extractor.extract(clips)
    for index, clip in enumerate(clips):
        alone = extractor.extract([clip])
        for condition, values in alone.features.items():
            assert relative_error(together.features[condition][index], torch.from_numpy(values[0])) < 1e-5
        for condition, texts in alone.texts.items():
            assert together.texts[condition][index] == texts[0]
    last = together.features[Condition("last", INSTRUCTIONS[0].key)]
    assert not np.allclose(last[0, 1:], last[2, 1:], rtol=0.01)


@EVERY
def test_ids_and_spans_are_those_written_out_by_hand(case: Case, extractor_of: Any, oracle_of: Any) -> None:
    extractor, oracle = extractor_of(case), oracle_of(case)
    for clip in case.clips():
        batch = extractor._architecture.prepare([clip], extractor._setup)
        for text in (*TEXTS, "", None):
            prompt, asked = build(extractor, batch, text), oracle.ask(clip, text)
            assert list(prompt.ids) == asked.inputs["input_ids"][0].tolist()
            assert list(prompt.media) == asked.media
            assert list(prompt.instruction) == (asked.instruction if text else [])
            assert len(prompt.media) == batch.n_tokens
            words = oracle.tokenizer.decode([prompt.ids[i] for i in prompt.instruction])
            assert words.strip() == (text or "")
            assert list(prompt.media_span) == [i for i in asked.media if i >= SINKS]
            assert (prompt.media_span != prompt.media) == (asked.media[0] < SINKS)


@COUNTS_WITH_NUMPY
@EVERY
def test_ids_and_media_are_bit_for_bit_those_of_the_real_processor(
    case: Case, processor_of: Any, extractor_of: Any, oracle_of: Any
) -> None:
    processor, extractor, oracle = processor_of(case), extractor_of(case), oracle_of(case)
    for clip in case.clips():
        batch = extractor._architecture.prepare([clip], extractor._setup)
        for text in (*TEXTS, None):
            real = dict(processed(case, processor, [clip], [text]))
            assert list(build(extractor, batch, text).ids) == real["input_ids"][0].tolist()
            by_hand = oracle.ask(clip, text).inputs
            assert set(by_hand) - {"use_audio_in_video"} == set(real)
            for name, values in real.items():
                assert torch.equal(torch.as_tensor(values, dtype=by_hand[name].dtype), by_hand[name])
            for name, found in batch.tensors.items():
                expected = torch.as_tensor(real[name], dtype=found.dtype)
                if case.family == "qwen25omni" and name in ("input_features", "feature_attention_mask"):
                    # Its encoder drops the padding, so it is not made.
                    n_frames = int(real["feature_attention_mask"].sum())
                    assert int(expected[..., n_frames:].count_nonzero()) == 0 or name == "input_features"
                    expected = expected[..., :n_frames]
                assert torch.equal(found, expected)


@EVERY
def test_the_plan_is_what_comes_out(case: Case, folder_of: Any, extractor_of: Any) -> None:
    readout = make_readout("generated", "last", "instruction", "media")
    plan = case.product().plan(case.spec(folder_of(case.family)), readout)
    extracted = extractor_of(case).extract(case.clips()[:1])
    assert tuple(extracted.features) == plan.conditions
    assert (plan.n_layers, plan.width) == (5, 48)
    rate = 16000 if case.has_sound else 0
    assert plan.request == MediaRequest(media=case.media, n_frames=case.n_frames, sampling_rate=rate)
    assert plan.batch_size == 32
    assert plan.cost is not None
    assert min(plan.cost.flops, plan.cost.weight_bytes, plan.cost.clip_bytes) > 0
    parameters = sum(parameter.numel() for parameter in extractor_of(case)._model.parameters())
    assert plan.cost.weight_bytes == 4 * parameters
    assert json.loads(json.dumps(dict(plan.identity))) == plan.identity


@EACH_FAMILY
def test_the_identity_changes_with_what_changes_a_number(case: Case, folder_of: Any, tmp_path: Path) -> None:
    plan, folder = case.product().plan, folder_of(case.family)
    spec, readout = case.spec(folder), make_readout("generated", "last")
    base = dict(plan(spec, readout).identity)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert plan(replace(spec, source=str(copy)), replace(readout, plain=True)).identity == base
    other = TINY_CHECKPOINTS[case.family](tmp_path / "other", seed=1)
    changed = [
        replace(spec, source=str(other)),
        replace(spec, dtype="bfloat16"),
        replace(spec, parameters={**spec.parameters, "order": "instruction-first"}),
        replace(spec, weights="random"),
    ]
    for one in changed:
        assert plan(one, readout).identity != base
    longer = dict(plan(spec, replace(readout, max_new_tokens=9)).identity)
    assert longer.pop("by_pooling") != base.pop("by_pooling")
    assert longer == base


def test_the_identity_of_omni_tells_its_media_apart(folder_of: Any) -> None:
    folder, readout = folder_of("qwen25omni"), make_readout("last")
    identities = [
        json.dumps(dict(case.product().plan(case.spec(folder), readout).identity), sort_keys=True)
        for case in CASES
        if case.family == "qwen25omni"
    ]
    assert len(set(identities)) == 3


@EVERY
def test_an_empty_instruction_has_no_mean_of_its_own(case: Case, folder_of: Any, oracle_of: Any) -> None:
    null = Instruction("NONE", "nothing", "", "null")
    readout = make_readout("generated", "last", "instruction", instructions=(INSTRUCTIONS[0], null))
    plan = case.product().plan(case.spec(folder_of(case.family)), readout)
    labels = ["generatedAR", "generatedNONE", "lastAR", "lastNONE", "instructionAR"]
    assert [condition.label for condition in plan.conditions] == labels
    clips = case.clips()
    found = case.product().load(case.spec(folder_of(case.family)), readout, "cpu").extract(clips)
    assert tuple(found.features) == plan.conditions
    for pooling in ("generated", "last"):
        for index, clip in enumerate(clips):
            values = found.features[Condition(pooling, "NONE")][index]
            assert relative_error(values, oracle_of(case).expected(pooling, clip, "")) < 1e-5


@EACH_FAMILY
def test_random_weights_come_from_the_seed_and_the_configuration_alone(
    case: Case, folder_of: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of(case.family), tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    family, clips = case.product(), case.clips()[:2]
    readout = make_readout("last", "media", instructions=INSTRUCTIONS[:2])
    spec = case.spec(folder, weights="random", key="tiny+random")
    with pytest.raises(CheckpointError, match=r"has no weights as \*\.safetensors"):
        family.plan(case.spec(folder), readout)
    plans = [family.plan(spec, replace(readout, seed=seed)).identity for seed in (3, 3, 4)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    drawn = [family.load(spec, replace(readout, seed=seed), "cpu").extract(clips).features for seed in (3, 3, 4)]
    trained = family.load(case.spec(folder_of(case.family)), readout, "cpu").extract(clips).features
    for condition, values in drawn[0].items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, drawn[1][condition])
        assert not np.allclose(values, drawn[2][condition])
        assert not np.allclose(values, trained[condition])


@EACH_FAMILY
def test_random_weights_of_half_precision_are_those_that_a_saved_checkpoint_would_have(
    case: Case, folder_of: Any, tmp_path: Path
) -> None:
    family, readout = case.product(), make_readout("last")
    spec = case.spec(folder_of(case.family), weights="random")
    drawn = family.load(spec, readout, "cpu")._model
    folder = shutil.copytree(folder_of(case.family), tmp_path / "saved")
    save_file(drawn.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    expected = family.load(case.spec(folder, dtype="bfloat16"), readout, "cpu")._model
    found = family.load(replace(spec, dtype="bfloat16"), readout, "cpu")._model
    for kind in ("named_parameters", "named_buffers"):
        values = dict(getattr(expected, kind)())
        assert {name: value.dtype for name, value in getattr(found, kind)()} == {
            name: value.dtype for name, value in values.items()
        }
        assert all(torch.equal(value, values[name]) for name, value in getattr(found, kind)())


@EACH_FAMILY
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_stays_near_single(
    case: Case, dtype: str, bound: float, folder_of: Any, extractor_of: Any
) -> None:
    clips = case.clips()
    spec = case.spec(folder_of(case.family), dtype=dtype)
    extractor = case.product().load(spec, make_readout("generated", "last", "instruction", "media"), "cpu")
    assert str(extractor._model.get_output_embeddings().weight.dtype) == f"torch.{dtype}"
    full, half = extractor_of(case).extract(clips).features, extractor.extract(clips).features
    for condition, values in half.items():
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert not np.array_equal(values, full[condition])
        if condition.pooling != "generated":
            assert np.abs(values - full[condition]).mean() < bound * np.abs(full[condition]).mean()


@pytest.mark.parametrize("name", ["qwen25omni-both", "instructblipvideo"])
def test_closing_frees_the_model(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    extractor = case.product().load(case.spec(folder_of(case.family)), make_readout("last", "generated"), "cpu")
    extractor.extract(case.clips()[:1])
    assert hooked(extractor._model) == []
    weights = weakref.ref(extractor._model)
    extractor.close()
    gc.collect()
    assert weights() is None


# What the templates of the checkpoints put where media stand.
PLACES = {
    "qwen25vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "llavaonevision": "<video>",
    "llavanextvideo": "<video>",
    "videollava": "<video>",
    "qwen2audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "qwen25omni": "<|vision_bos|><|VIDEO|><|vision_eos|>",
    "internvl": "<video>",
}
TEMPLATED = [case for case in ONE_A_FAMILY if case.family in PLACES]
EACH_TEMPLATE = pytest.mark.parametrize("case", TEMPLATED, ids=lambda case: case.family)
TELL = "{{ part['text'] }}"
BROKEN = {
    "drops the instruction": ("PLACE", "nothing to say", "does not keep the instruction"),
    "rewrites the instruction": ("PLACE", "{{ part['text'] | upper }}", "does not keep the instruction"),
    "says the instruction twice": ("PLACE", TELL + " again: " + TELL, "does not keep the instruction"),
    "has no place for the media": (
        "the film",
        TELL,
        "makes 0 media tokens of a clip|has 0 places for media, but the prompt has 1",
    ),
}


def template_of(case: Case, place: str, tell: str) -> str:
    place = place.replace("PLACE", PLACES[case.family])
    return (
        "{% for message in messages %}some more words first: {% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}" + tell + "{% else %}" + place + "{% endif %}"
        "{% endfor %}{% endfor %} end"
    )


def with_template(folder: Path, target: Path, template: str) -> Path:
    shutil.copytree(folder, target)
    (target / "chat_template.jinja").write_text(template, "utf-8")
    return target


@EACH_TEMPLATE
@pytest.mark.parametrize("fault", BROKEN)
def test_a_template_that_does_not_do_its_work_is_named_in_one_sentence(
    case: Case, fault: str, folder_of: Any, tmp_path: Path
) -> None:
    place, tell, message = BROKEN[fault]
    folder = with_template(folder_of(case.family), tmp_path / "broken", template_of(case, place, tell))
    extractor = case.product().load(case.spec(folder), make_readout("last"), "cpu")
    with pytest.raises(CheckpointError, match=message) as caught:
        extractor.extract(case.clips()[:1])
    assert "\n" not in str(caught.value)


@EACH_TEMPLATE
def test_any_other_template_is_followed(case: Case, folder_of: Any, tmp_path: Path) -> None:
    whole = with_template(folder_of(case.family), tmp_path / "whole", template_of(case, "PLACE", TELL))
    found = case.product().load(case.spec(whole), make_readout("last"), "cpu").extract(case.clips()[:1])
    assert all(np.isfinite(values).all() for values in found.features.values())


@pytest.mark.parametrize("name", ["llavaonevision", "llavanextvideo", "videollava"])
def test_a_template_that_puts_the_media_first_whatever_is_asked_for(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    spec = case.spec(folder_of(name), parameters={**case.parameters, "order": "instruction-first"})
    extractor = case.product().load(spec, make_readout("last"), "cpu")
    with pytest.raises(CheckpointError, match="puts the parts of a message media-first; ask for that order") as caught:
        extractor.extract(case.clips()[:1])
    assert "\n" not in str(caught.value)


def instruction_first(case: Case) -> Case:
    """The same family with the text before the media, in the templates that follow the order of a message."""

    def write(piece: str, text: str | None) -> tuple[str, str]:
        before, after = case.write(piece, text)
        head, user, media = before.rpartition("<|im_start|>user\n")
        return head + user, media + after

    return replace(case, write=write, name=f"{case.name} instruction-first")


@pytest.mark.parametrize("name", ["qwen25vl", "qwen2audio", "qwen25omni-video", "qwen25omni-both", "internvl"])
def test_the_instruction_first_conditions_the_media_and_is_run_prompt_by_prompt(
    name: str, folder_of: Any, extractor_of: Any
) -> None:
    case = instruction_first(BY_NAME[name])
    spec = case.spec(folder_of(case.family), parameters={**case.parameters, "order": "instruction-first"})
    extractor = case.product().load(spec, make_readout("generated", "last", "instruction", "media"), "cpu")
    clips, oracle = case.clips()[:2], Oracle(case, folder_of(case.family))
    extracted = extractor.extract(clips)
    for condition, values in extracted.features.items():
        text = TEXT_OF.get(condition.instruction or "")
        for index, clip in enumerate(clips):
            assert relative_error(values[index], oracle.expected(condition.pooling, clip, text)) < 1e-5
    # The real media means differ between instructions now; the one of the product is that without any.
    means = [oracle.expected("media", clips[0], text) for text in TEXTS]
    assert relative_error(means[0], means[1]) > 0.01
    assert relative_error(extracted.features[Condition("media")][0], means[0]) > 0.01
    usual = extractor_of(BY_NAME[name]).extract(clips).features
    assert not np.allclose(extracted.features[Condition("last", "AR")], usual[Condition("last", "AR")], rtol=0.01)


def test_a_template_that_begins_otherwise_without_an_instruction(folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME["qwen25vl"]
    template = (
        "{% for part in messages[0]['content'] if part['type'] == 'text' %}Answer after looking: {% else %}"
        "Look at the video: {% endfor %}{% for part in messages[0]['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}PLACE{% endif %}{% endfor %} end"
    ).replace("PLACE", PLACES["qwen25vl"])

    def write(piece: str, text: str | None) -> tuple[str, str]:
        start = "Look at the video: " if text is None else "Answer after looking: "
        return start + "<|vision_start|>" + piece + "<|vision_end|>", " end"

    folder = with_template(folder_of("qwen25vl"), tmp_path / "otherwise", template)
    oracle = Oracle(replace(case, write=write), folder)
    clips = case.clips()
    found = case.product().load(case.spec(folder), make_readout("last", "media"), "cpu").extract(clips)
    for condition, values in found.features.items():
        for index, clip in enumerate(clips):
            expected = oracle.expected(condition.pooling, clip, TEXT_OF.get(condition.instruction or ""))
            assert relative_error(values[index], expected) < 1e-5


@EACH_FAMILY
def test_a_folder_of_another_family_is_named(case: Case, folder_of: Any) -> None:
    for family in FAMILIES:
        if family == case.family:
            continue
        with pytest.raises(CheckpointError, match=r"has model_type .* but this family of models needs") as caught:
            case.product().plan(case.spec(folder_of(family)), make_readout("last"))
        assert "\n" not in str(caught.value)


@EACH_FAMILY
def test_weights_that_are_damaged_or_missing_are_named(case: Case, folder_of: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of(case.family), tmp_path / "damaged")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    # From the bytes, since tensors of a file stay mapped to it.
    tensors = load(content)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged") as caught:
        case.product().plan(case.spec(folder), make_readout("last"))
    assert "\n" not in str(caught.value)
    removed = next(name for name in sorted(tensors) if "layers.1" in name)
    save_file({name: value for name, value in tensors.items() if name != removed}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights") as caught:
        case.product().load(case.spec(folder), make_readout("last"), "cpu")
    assert "\n" not in str(caught.value)


@EACH_FAMILY
def test_clips_without_the_media_that_are_read_are_named(case: Case, extractor_of: Any) -> None:
    extractor, clip = extractor_of(case), case.clips()[0]
    bare = replace(clip, frames=None, audio=None, sampling_rate=0)
    with pytest.raises(StimulusError, match=r"film\.mp4"):
        extractor.extract([bare])
    if case.n_frames:
        with pytest.raises(StimulusError, match=f"has 2 of the {case.n_frames} frames"):
            extractor.extract([replace(clip, frames=clip.frames[:2])])
    assert hooked(extractor._model) == []


@EACH_FAMILY
def test_settings_that_cannot_be_used_are_named(case: Case, folder_of: Any) -> None:
    plan, spec = case.product().plan, case.spec(folder_of(case.family))
    for changed, readout, message in (
        ({"parameters": {"frames": 3}}, make_readout("last"), "unknown parameter 'frames'"),
        ({"parameters": {"order": "sideways"}}, make_readout("last"), "order 'sideways'"),
        ({"dtype": "int8"}, make_readout("last"), "dtype 'int8'"),
        ({}, make_readout("stimulus"), "no pooling 'stimulus'"),
        ({}, make_readout("last", instructions=()), "at least one instruction"),
        ({}, make_readout("generated", max_new_tokens=0), "max_new_tokens is 0"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            plan(replace(spec, **changed), readout)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "only"), [("videollava", 8), ("instructblipvideo", 4)])
def test_a_number_of_frames_that_the_model_does_not_take(name: str, only: int, folder_of: Any) -> None:
    case = BY_NAME[name]
    for n_frames in (only + 1, only * 2, 1):
        spec = case.spec(folder_of(name), parameters={"n_frames": n_frames})
        with pytest.raises(UsageError, match=f"n_frames {n_frames}, but its family takes exactly {only}"):
            case.product().plan(spec, make_readout("last"))
    assert case.product().plan(case.spec(folder_of(name), parameters={"n_frames": only}), make_readout("last"))


def test_the_hubs_instructblip_of_the_class_for_images_gives_what_the_class_for_videos_gives(
    extractor_of: Any, tmp_path: Path
) -> None:
    case = BY_NAME["instructblipvideo"]
    folder = TINY_CHECKPOINTS["instructblipvideo"](tmp_path / "image", as_image=True)
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "instructblip"
    readout = make_readout("generated", "last", "instruction", "media")
    plan = case.product().plan(case.spec(folder), readout)
    found = case.product().load(case.spec(folder), readout, "cpu").extract(case.clips())
    expected = extractor_of(case).extract(case.clips())
    assert tuple(found.features) == plan.conditions
    for condition, values in expected.features.items():
        np.testing.assert_array_equal(found.features[condition], values)
    assert found.texts == expected.texts


def test_the_q_former_needs_its_own_tokenizer(folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME["instructblipvideo"]
    folder = shutil.copytree(folder_of("instructblipvideo"), tmp_path / "bare")
    shutil.rmtree(folder / "qformer_tokenizer")
    extractor = case.product().load(case.spec(folder), make_readout("last"), "cpu")
    with pytest.raises(CheckpointError, match=r"Q-Former's tokenizer .* cannot be loaded") as caught:
        extractor.extract(case.clips()[:1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen25omni-video", "qwen25omni-audio", "qwen25omni-both"])
def test_the_thinker_of_a_whole_omni_checkpoint(name: str, extractor_of: Any, tmp_path: Path) -> None:
    case = BY_NAME[name]
    folder = TINY_CHECKPOINTS["qwen25omni"](tmp_path / "whole", as_whole=True)
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "qwen2_5_omni"
    readout = make_readout("generated", "last", "instruction", "media")
    assert case.product().plan(case.spec(folder), readout).n_layers == 5
    found = case.product().load(case.spec(folder), readout, "cpu").extract(case.clips())
    expected = extractor_of(case).extract(case.clips())
    for condition, values in expected.features.items():
        np.testing.assert_array_equal(found.features[condition], values)
    assert found.texts == expected.texts
    spec = case.spec(folder, weights="random")
    random = case.product().load(spec, make_readout("last"), "cpu").extract(case.clips()[:1])
    assert all(np.isfinite(values).all() for values in random.features.values())


@pytest.mark.parametrize("window", [1.49, 4.0, 5.5])
def test_omni_takes_turns_of_two_seconds_of_pictures_and_sound(window: float, folder_of: Any) -> None:
    case = BY_NAME["qwen25omni-both"]
    readout = make_readout("last", "generated", "media", window=window)
    spec = case.spec(folder_of("qwen25omni"))
    n_frames = case.product().plan(spec, readout).request.n_frames
    n_samples = round(window * 16000)
    clip = media_clip(0, n_frames=n_frames, n_samples=n_samples)
    # One step of two frames in time is 2 x 2 tokens; a token of sound is 40 ms.
    step = 2 / (n_frames / window)
    n_sounds = (((n_samples // 160 - 1) // 2 + 1) - 2) // 2 + 1
    piece, turns = "", int(np.ceil(window / 2))
    for turn in range(turns):
        pictures = sum(turn == int(time * step / 2) for time in range(n_frames // 2))
        sound = sum(turn == token // 50 for token in range(n_sounds))
        piece += "<|VIDEO|>" * 4 * pictures + "<|AUDIO|>" * sound
    piece = f"<|audio_bos|>{piece}<|audio_eos|>"
    assert piece == interleave((n_frames // 2, 4, 4), 2, step, n_sounds)

    def tensors(folder: Path, clips: Any) -> dict[str, Any]:
        return {**case.tensors(folder, clips), "video_second_per_grid": torch.tensor([step])}

    oracle = Oracle(replace(case, piece=lambda _: piece, tensors=tensors), folder_of("qwen25omni"))
    found = case.product().load(spec, readout, "cpu").extract([clip])
    for condition, values in found.features.items():
        text = TEXT_OF.get(condition.instruction or "")
        assert relative_error(values[0], oracle.expected(condition.pooling, clip, text)) < 1e-5


@COUNTS_WITH_NUMPY
@pytest.mark.parametrize(("n_steps", "n_sounds"), [(2, 37), (8, 100), (8, 140), (3, 101), (11, 50)])
def test_omni_takes_turns_as_its_real_processor_does(n_steps: int, n_sounds: int, processor_of: Any) -> None:
    processor = processor_of(BY_NAME["qwen25omni-both"])
    seconds = 5.5 / n_steps
    expected = processor.replace_video_with_audio_token(
        {"video_grid_thw": torch.tensor([[n_steps, 4, 6]]), "video_second_per_grid": [seconds]},
        0,
        {"num_audio_tokens": torch.tensor([n_sounds])},
        0,
        position_id_per_seconds=25,
        seconds_per_chunk=2.0,
    )
    assert interleave((n_steps, 4, 6), 2, seconds, n_sounds) == expected


def demonstrations(case: Case, n_shown: int = 2) -> tuple[Demonstration, ...]:
    """Clips of other shapes than the one asked about; the first asks what is asked later."""
    shown = []
    for number in range(n_shown):
        n_samples = 21000 + 1000 * number if case.has_sound else 0
        clip = media_clip(50 + number, n_frames=case.n_frames, size=(64, 48), n_samples=n_samples)
        clip = replace(clip, clip=replace(clip.clip, stim_file="shown.mp4", index=number))
        shown.append(Demonstration(clip.clip, "ab" * 32, TEXTS[number], ("A person walks.", "No.")[number], clip))
    return tuple(shown)


@pytest.mark.parametrize("name", IN_CONTEXT)
@PATHS
def test_in_context_every_state_is_that_of_the_real_forward_of_the_whole_conversation(
    name: str, plain: bool, folder_of: Any, oracle_of: Any, extractor_of: Any
) -> None:
    case, oracle = BY_NAME[name], oracle_of(BY_NAME[name])
    shown = demonstrations(case)
    readout = make_readout("generated", "last", "instruction", "media", demonstrations=shown, plain=plain)
    spec = case.spec(folder_of(case.family), kind="in-context")
    clips = case.clips()[:2]
    found = case.product().load(spec, readout, "cpu").extract(clips)
    for index, clip in enumerate(clips):
        for text in (*TEXTS, None):
            asked = oracle.ask(clip, text, shown)
            states = oracle.forward(asked.inputs)
            if text is None:
                expected = {Condition("media"): states[:, asked.media].mean(dim=1)}
            else:
                key = next(key for key, value in TEXT_OF.items() if value == text)
                tokens, answer = oracle.generate(asked.inputs)
                expected = {
                    Condition("last", key): states[:, -1],
                    Condition("instruction", key): states[:, asked.instruction].mean(dim=1),
                    Condition("generated", key): answer.mean(dim=1),
                }
                said = oracle.tokenizer.decode(tokens, skip_special_tokens=True).strip()
                assert found.texts[Condition("generated", key)][index] == said
            for condition, values in expected.items():
                assert relative_error(found.features[condition][index], values) < 1e-5
    without = extractor_of(case).extract(clips).features
    assert not np.allclose(found.features[Condition("last", "AR")], without[Condition("last", "AR")], rtol=0.01)


@COUNTS_WITH_NUMPY
@pytest.mark.parametrize("name", IN_CONTEXT)
def test_in_context_ids_are_those_of_the_real_processor(
    name: str, folder_of: Any, oracle_of: Any, processor_of: Any
) -> None:
    case = BY_NAME[name]
    processor, clip, shown = processor_of(case), case.clips()[1], demonstrations(case)
    real = processed(
        case,
        processor,
        [*(one.media for one in shown), clip],
        [*(one.instruction for one in shown), TEXTS[2]],
        [one.answer for one in shown],
    )
    spec = case.spec(folder_of(case.family), kind="in-context")
    extractor = case.product().load(spec, make_readout("last", demonstrations=shown), "cpu")
    batch = extractor._architecture.prepare([clip], extractor._setup)
    assert list(build(extractor, batch, TEXTS[2]).ids) == real["input_ids"][0].tolist()
    by_hand = oracle_of(case).ask(clip, TEXTS[2], shown).inputs
    for key, values in real.items():
        assert torch.equal(torch.as_tensor(values, dtype=by_hand[key].dtype), by_hand[key])


@EACH_FAMILY
def test_who_learns_in_context_needs_demonstrations_and_who_does_not_takes_none(case: Case, folder_of: Any) -> None:
    spec = case.spec(folder_of(case.family), kind="in-context")
    with pytest.raises(UsageError, match="give them with --demonstrations FILE"):
        case.product().plan(spec, make_readout("last"))
    readout = make_readout("last", demonstrations=demonstrations(case))
    if case.family in ("internvl", "qwen25omni"):
        assert case.product().plan(spec, readout).conditions
        return
    for kind in ("in-context", case.spec(folder_of(case.family)).kind):
        with pytest.raises(UsageError, match=f"The family {case.family} of the model tiny takes no demonstrations"):
            case.product().plan(replace(spec, kind=kind), readout)


@pytest.mark.parametrize("name", ["internvl", "qwen25omni-both"])
def test_the_identity_changes_with_the_demonstrations(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    spec, shown = case.spec(folder_of(case.family), kind="in-context"), demonstrations(case)
    first, second = shown

    def identity(*rows: Demonstration) -> str:
        plan = case.product().plan(spec, make_readout("last", demonstrations=rows))
        return json.dumps(dict(plan.identity), sort_keys=True)

    base = identity(*shown)
    assert identity(replace(first, media=None), second) == base
    moved = replace(first.clip, start=0.5, end=1.99)
    changed = [
        (first,),
        (second, first),
        (replace(first, sha256="cd" * 32), second),
        (replace(first, clip=moved), second),
        (replace(first, instruction="Look."), second),
        (replace(first, answer="Nobody."), second),
    ]
    assert len({base, *(identity(*rows) for rows in changed)}) == len(changed) + 1


def test_demonstrations_that_were_not_decoded_are_an_error(folder_of: Any) -> None:
    case = BY_NAME["internvl"]
    shown = tuple(replace(one, media=None) for one in demonstrations(case))
    spec = case.spec(folder_of("internvl"), kind="in-context")
    extractor = case.product().load(spec, make_readout("last", demonstrations=shown), "cpu")
    with pytest.raises(ValueError, match="must be decoded before the model is used"):
        extractor.extract(case.clips()[:1])


@pytest.mark.parametrize("name", ["llavanextvideo", "instructblipvideo"])
def test_more_tokens_change_the_answers_alone(name: str, folder_of: Any, extractor_of: Any, oracle_of: Any) -> None:
    case = BY_NAME[name]
    readout = make_readout("generated", "last", "instruction", "media", max_new_tokens=2)
    clips, spec = case.clips(), case.spec(folder_of(case.family))
    short = case.product().load(spec, readout, "cpu").extract(clips)
    long = extractor_of(case).extract(clips)
    for condition, values in long.features.items():
        if condition.pooling == "generated":
            for index, clip in enumerate(clips):
                _, states = oracle_of(case).answer(clip, TEXT_OF[condition.instruction])
                assert relative_error(short.features[condition][index], states[:, :2].mean(dim=1)) < 1e-5
        else:
            np.testing.assert_array_equal(short.features[condition], values)
