"""The shared-prefix engine against separate calls of the real models, and what happens without its masks."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from instructed_cases import (
    BY_NAME,
    CASES,
    N_NEW,
    TEXTS,
    Case,
    Oracle,
    build,
    drive,
    hooked,
    make_readout,
    media_clip,
    relative_error,
    watched,
)

from bids_mllm.features.models import engine
from bids_mllm.features.models.engine import Decoding
from bids_mllm.features.models.packing import common_prefix
from bids_mllm.features.models.tap import Passage

SHARING = [case for case in CASES if case.shares]
ROPE = ["qwen25vl", "qwen25omni-video", "qwen25omni-audio", "qwen25omni-both"]
POOLINGS = ("generated", "last", "instruction")


def alike(case: Case) -> list[Any]:
    """The two clips of one shape."""
    clips = case.clips()
    return [clips[0], clips[2]]


def every(case: Any) -> str:
    return case if isinstance(case, str) else case.name


@torch.no_grad()
@pytest.mark.parametrize("case", SHARING, ids=every)
def test_in_double_precision_every_state_of_the_packed_row_is_that_of_a_forward_of_its_own(
    case: Case, folder_of: Callable[[str], Any]
) -> None:
    folder = folder_of(case.family)
    extractor = case.product().load(case.spec(folder), make_readout(*POOLINGS), "cpu")
    extractor._model.double()
    oracle = Oracle(case, folder)
    oracle.model.double()
    clips = alike(case)
    with watched(extractor._model) as watch:
        tokens = drive(extractor, clips, TEXTS).tokens
    beginning, row, *steps = watch.states
    assert len(steps) == N_NEW
    shared, start = beginning.shape[2], 0
    for branch, text in enumerate(TEXTS):
        for index, clip in enumerate(clips):
            inputs = oracle.ask(clip, text).inputs
            expected = oracle.forward(inputs)
            end = start + expected.shape[1] - shared
            assert expected.dtype == torch.float64
            assert relative_error(beginning[:, index], expected[:, :shared]) < 1e-12
            assert relative_error(row[:, index, start:end], expected[:, shared:]) < 1e-12
            said, states = oracle.generate(inputs)
            assert tokens[index, branch].tolist() == said
            for step, found in enumerate(steps):
                assert relative_error(found[:, index, branch], states[:, step]) < 1e-12
        start = end
    assert row.shape[2] == start


def positions_of(watch: Any, call: int) -> torch.Tensor:
    """Time, height and width; `generate` puts an axis of plain counting in front of them."""
    return watch.positions[call][-3:]


def rope_index(oracle: Oracle, inputs: dict[str, Any]) -> torch.Tensor:
    """Positions (3, n_tokens) of a whole prompt by the real model's own method."""
    names = {"input_ids", "video_grid_thw", "attention_mask", "second_per_grid_ts", "mm_token_type_ids"}
    arguments = {name: value for name, value in inputs.items() if name in names}
    if oracle.case.family == "qwen25vl":
        return oracle.model.model.get_rope_index(**arguments)[0][:, 0]
    if "feature_attention_mask" in inputs:
        arguments["audio_seqlens"] = inputs["feature_attention_mask"].sum(-1)
    return oracle.model.model.get_rope_index(
        **arguments,
        use_audio_in_video=inputs.get("use_audio_in_video", False),
        second_per_grids=inputs.get("video_second_per_grid"),
    )[0][:, 0]


@torch.no_grad()
@pytest.mark.parametrize("name", ROPE)
def test_positions_of_the_branches_are_those_of_the_real_get_rope_index(
    name: str, extractor_of: Any, oracle_of: Any
) -> None:
    case = BY_NAME[name]
    extractor, oracle, clip = extractor_of(case), oracle_of(case), case.clips()[0]
    with watched(extractor._model) as watch:
        drive(extractor, [clip], TEXTS)
    start, shared = 0, watch.states[0].shape[2]
    for branch, text in enumerate(TEXTS):
        inputs = oracle.ask(clip, text).inputs
        expected = rope_index(oracle, inputs)
        end = start + expected.shape[1] - shared
        assert torch.equal(positions_of(watch, 0)[:, 0], expected[:, :shared])
        assert torch.equal(positions_of(watch, 1)[:, 0, start:end], expected[:, shared:])
        with watched(oracle.model) as real:
            oracle.generate(inputs)
        for step in range(N_NEW):
            found = positions_of(watch, 2 + step)[:, 0, branch]
            assert torch.equal(found, positions_of(real, 1 + step)[:, 0, 0])
        start = end


def largest_error(extractor: Any, oracle: Oracle, clip: Any, pooling: str) -> float:
    """Of one pooling of all instructions of one clip."""
    pooled = drive(extractor, [clip], TEXTS).pooled[pooling]
    return max(
        relative_error(pooled[0, branch], oracle.expected(pooling, clip, text)) for branch, text in enumerate(TEXTS)
    )


@pytest.mark.parametrize("name", ["qwen25vl", "llavanextvideo", "internvl"])
def test_without_the_mask_of_the_row_the_states_would_be_wrong(
    name: str, extractor_of: Any, oracle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME[name]
    extractor, oracle, clip = extractor_of(case), oracle_of(case), case.clips()[0]
    assert largest_error(extractor, oracle, clip, "last") < 1e-5
    monkeypatch.setattr(engine, "row_mask", lambda row, prefix: None)
    assert largest_error(extractor, oracle, clip, "last") > 0.1
    assert largest_error(extractor, oracle, clip, "instruction") > 0.1


@pytest.mark.parametrize("name", ["qwen25vl", "llavanextvideo", "internvl"])
def test_without_the_mask_of_a_step_the_answers_would_be_wrong(
    name: str, extractor_of: Any, oracle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME[name]
    extractor, oracle, clip = extractor_of(case), oracle_of(case), case.clips()[0]
    assert largest_error(extractor, oracle, clip, "generated") < 1e-5
    monkeypatch.setattr(engine, "step_mask", lambda row, prefix, step: None)
    assert largest_error(extractor, oracle, clip, "generated") > 0.1


def test_positions_counted_from_the_length_of_the_cache_would_be_wrong(
    extractor_of: Any, oracle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME["qwen25vl"]
    extractor, oracle, clip = extractor_of(case), oracle_of(case), case.clips()[0]

    def counted(passage: Passage, n_rows: int, device: torch.device) -> torch.Tensor:
        return torch.full((n_rows,), passage.n_tokens, device=device)

    monkeypatch.setattr(Passage, "next_position", counted)
    assert largest_error(extractor, oracle, clip, "last") > 0.01


@pytest.mark.parametrize("plain", [False, True], ids=["shared", "plain"])
@pytest.mark.parametrize("name", ["qwen25vl", "llavanextvideo", "qwen2audio", "instructblipvideo"])
def test_each_branch_ends_at_its_own_end_token(name: str, plain: bool, extractor_of: Any, oracle_of: Any) -> None:
    case, n_new = BY_NAME[name], 6
    extractor, oracle = extractor_of(case), oracle_of(case)
    clips = [media_clip(seed, n_frames=case.n_frames, n_samples=23840 * case.has_sound) for seed in range(4)]
    asked = [[oracle.ask(clip, text).inputs for text in TEXTS] for clip in clips]
    answers = [[oracle.generate(inputs, n_new) for inputs in row] for row in asked]
    said = [tokens for row in answers for tokens, _ in row]
    # One that some answers have in the middle, and others not at all; and the first of the first answer.
    middle = next(
        token
        for tokens in said
        for token in tokens
        if any(0 < other.index(token) < n_new for other in said if token in other)
        and any(token not in other for other in said)
    )
    for ends in ((middle,), (said[0][0],), (middle, said[0][0])):
        found = drive(extractor, clips, TEXTS, decoding=Decoding(n_new, ends), plain=plain)
        lengths = set()
        for index, row in enumerate(answers):
            for branch, (tokens, states) in enumerate(row):
                stop = next((i for i, token in enumerate(tokens) if token in ends), n_new)
                n_kept = max(stop, 1)
                lengths.add(n_kept)
                kept = [token for token in found.tokens[index, branch].tolist() if token >= 0]
                assert kept == tokens[:n_kept]
                assert found.tokens[index, branch, n_kept:].tolist() == [-1] * (found.tokens.shape[2] - n_kept)
                pooled = found.pooled["generated"][index, branch]
                assert relative_error(pooled, states[:, :n_kept].mean(dim=1)) < 1e-5
        assert len(lengths) > 1 or ends != (middle,)
        assert found.tokens.shape[2] == max(lengths)


@pytest.mark.parametrize("name", ["qwen25vl", "llavanextvideo", "instructblipvideo"])
def test_the_real_generate_ends_there_too(name: str, extractor_of: Any, oracle_of: Any) -> None:
    case = BY_NAME[name]
    extractor, oracle, clip = extractor_of(case), oracle_of(case), case.clips()[0]
    end = oracle.answer(clip, TEXTS[1])[0][2]
    found = drive(extractor, [clip], TEXTS, decoding=Decoding(N_NEW, (end,))).tokens[0]
    for branch, text in enumerate(TEXTS):
        inputs = oracle.ask(clip, text).inputs
        output = oracle.model.generate(**inputs, max_new_tokens=N_NEW, do_sample=False, eos_token_id=end)
        n_before = inputs["input_ids"].shape[1] if output.shape[1] > N_NEW else 0
        tokens = output[0, n_before:].tolist()
        if tokens[-1] == end and len(tokens) > 1:
            tokens.pop()
        assert [token for token in found[branch].tolist() if token >= 0] == tokens


def test_decoding_stops_when_all_answers_have_ended(extractor_of: Any) -> None:
    case = BY_NAME["qwen25vl"]
    extractor = extractor_of(case)
    everything = tuple(range(extractor._model.config.text_config.vocab_size))
    with watched(extractor._model) as watch:
        found = drive(extractor, alike(case), TEXTS, decoding=Decoding(50, everything))
    assert len(watch.states) == 3
    assert found.tokens.shape == (2, 3, 1)
    assert (found.tokens >= 0).all()


@pytest.mark.parametrize("plain", [False, True], ids=["shared", "plain"])
def test_no_new_tokens_is_an_error(plain: bool, extractor_of: Any) -> None:
    case = BY_NAME["qwen25vl"]
    with pytest.raises(ValueError, match="max_new_tokens is 0, but must be at least 1"):
        drive(extractor_of(case), case.clips()[:1], TEXTS, decoding=Decoding(0, ()), plain=plain)


@pytest.mark.parametrize("plain", [False, True], ids=["shared", "plain"])
@pytest.mark.parametrize("name", ["qwen25vl", "llavaonevision", "instructblipvideo"])
def test_an_empty_instruction_has_a_last_token_and_an_answer_but_no_tokens_of_its_own(
    name: str, plain: bool, extractor_of: Any, oracle_of: Any
) -> None:
    case = BY_NAME[name]
    extractor, oracle, clips = extractor_of(case), oracle_of(case), alike(case)
    found = drive(extractor, clips, [TEXTS[0], "", TEXTS[1]], plain=plain)
    assert found.pooled["instruction"][:, 1].isnan().all()
    assert found.pooled["instruction"][:, ::2].isfinite().all()
    for index, clip in enumerate(clips):
        for pooling in ("last", "generated"):
            assert relative_error(found.pooled[pooling][index, 1], oracle.expected(pooling, clip, "")) < 1e-5
    alone = drive(extractor, clips, [""], plain=plain)
    assert "instruction" not in alone.pooled
    assert relative_error(alone.pooled["last"][1, 0], oracle.expected("last", clips[1], "")) < 1e-5


def test_equal_instructions_give_equal_states(extractor_of: Any) -> None:
    case = BY_NAME["qwen25vl"]
    found = drive(extractor_of(case), alike(case), [TEXTS[0], TEXTS[1], TEXTS[0]])
    for pooled in found.pooled.values():
        assert relative_error(pooled[0, 2], pooled[0, 0]) < 1e-6
    assert torch.equal(found.tokens[:, 0], found.tokens[:, 2])


def first_layer(tower: Any) -> Any:
    """The first of a tower's own layers, which runs once in a call of the tower."""
    return next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))[0]


@pytest.mark.parametrize("plain", [False, True], ids=["shared", "plain"])
@pytest.mark.parametrize("case", CASES, ids=every)
def test_what_is_run_once_and_what_is_left_behind(case: Case, plain: bool, extractor_of: Any) -> None:
    extractor, clips = extractor_of(case), alike(case)
    calls: list[int] = []
    hook = first_layer(attrgetter(case.tower)(extractor._model)).register_forward_hook(lambda *_: calls.append(1))
    batch = extractor._architecture.prepare(clips, extractor._setup)
    media = build(extractor, batch, None)
    try:
        with watched(extractor._model) as watch:
            found = drive(extractor, clips, TEXTS, media_prompt=media, plain=plain)
    finally:
        hook.remove()
    assert len(calls) == 1
    prompts = [build(extractor, batch, text) for text in TEXTS]
    lengths = [states.shape[2] for states in watch.states]
    if plain:
        each = [length for prompt in prompts for length in (len(prompt.ids), *[1] * N_NEW)]
        assert lengths == [*each, len(media.ids)]
    elif not case.shares:
        assert lengths == [*(len(prompt.ids) for prompt in prompts), *[len(TEXTS)] * N_NEW, len(media.ids)]
    else:
        shared = common_prefix(prompts)
        assert shared == prompts[0].instruction[0]
        branches = sum(len(prompt.ids) - shared for prompt in prompts)
        assert lengths == [shared, branches, *[len(TEXTS)] * N_NEW]
    assert hooked(extractor._model) == []
    assert {kind: tuple(pooled.shape) for kind, pooled in found.pooled.items()} == {
        "generated": (2, 3, 5, 48),
        "last": (2, 3, 5, 48),
        "instruction": (2, 3, 5, 48),
        "media": (2, 1, 5, 48),
    }
    assert all(pooled.dtype == torch.float32 for pooled in found.pooled.values())


@pytest.mark.parametrize("plain", [False, True], ids=["shared", "plain"])
@pytest.mark.parametrize("name", ["qwen25vl", "llavaonevision", "instructblipvideo"])
def test_an_error_of_the_model_leaves_no_hook(name: str, plain: bool, extractor_of: Any) -> None:
    case = BY_NAME[name]
    extractor, clips = extractor_of(case), alike(case)
    batch = extractor._architecture.prepare(clips, extractor._setup)
    prompts = [build(extractor, batch, text) for text in TEXTS]
    loaded = extractor._loaded(batch)
    arguments = {"poolings": POOLINGS, "decoding": extractor._decoding, "plain": plain, "shares": case.shares}
    # The media are of two clips, the prompts of three.
    with pytest.raises((ValueError, RuntimeError)):
        engine.run(loaded, prompts, 3, **arguments)
    assert hooked(extractor._model) == []
    first = engine.run(loaded, prompts, 2, **arguments)
    again = drive(extractor, clips, TEXTS, plain=arguments["plain"])
    assert torch.equal(first.pooled["last"], again.pooled["last"])


@pytest.mark.parametrize("name", ["qwen25vl", "instructblipvideo"])
def test_the_media_alone_need_no_instruction(name: str, extractor_of: Any, oracle_of: Any) -> None:
    case = BY_NAME[name]
    extractor, clips = extractor_of(case), alike(case)
    batch = extractor._architecture.prepare(clips, extractor._setup)
    found = drive(extractor, clips, [], poolings=(), media_prompt=build(extractor, batch, None))
    assert list(found.pooled) == ["media"]
    assert found.tokens.numel() == 0
    for index, clip in enumerate(clips):
        expected = oracle_of(case).expected("media", clip, None)
        assert relative_error(found.pooled["media"][index, 0], expected) < 1e-5


def test_only_what_is_asked_for_is_run(extractor_of: Any) -> None:
    case = BY_NAME["qwen25vl"]
    with watched(extractor_of(case)._model) as watch:
        found = drive(extractor_of(case), case.clips()[:1], TEXTS, poolings=("last",))
    assert len(watch.states) == 2
    assert list(found.pooled) == ["last"]
    assert found.tokens.shape == (1, 3, 0)
