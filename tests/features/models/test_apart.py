"""Prompts that do not begin alike: each has a forward call of its own, and their answers are generated together."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from instructed_cases import (
    BY_NAME,
    CHATML_END,
    N_NEW,
    SYSTEM,
    TEXTS,
    Oracle,
    build,
    drive,
    make_readout,
    media_clip,
    relative_error,
    watched,
)

from bids_mllm.features.models import packing
from bids_mllm.features.models.engine import Decoding
from bids_mllm.features.models.packing import decoded_together
from bids_mllm.features.models.prompts import Prompt
from bids_mllm.records import Condition

BLIP = BY_NAME["instructblipvideo"]
# The same model with the instruction before the video: positions of the answer follow from the video's grid.
INSTRUCTION_FIRST = replace(
    BY_NAME["qwen25vl"],
    name="qwen25vl-instruction-first",
    write=lambda piece, text: (
        SYSTEM + "<|im_start|>user\n",
        f"<|vision_start|>{piece}<|vision_end|>" + CHATML_END,
    ),
    parameters={"order": "instruction-first"},
)
POOLINGS = ("generated", "last", "instruction")


@pytest.fixture(scope="module", params=[BLIP, INSTRUCTION_FIRST], ids=lambda case: case.name)
def asked(request: pytest.FixtureRequest, folder_of: Any) -> Any:
    """A case, a loaded extractor and the real model."""
    case, folder = request.param, folder_of(request.param.family)
    return case, case.product().load(case.spec(folder), make_readout(*POOLINGS), "cpu"), Oracle(case, folder)


def clips_of(case: Any, n_clips: int = 2) -> list[Any]:
    return [media_clip(seed, n_frames=case.n_frames, index=seed) for seed in range(n_clips)]


def test_every_pooling_equals_calls_of_the_real_model(asked: Any) -> None:
    case, extractor, oracle = asked
    clips = clips_of(case)
    with watched(extractor._model) as watch:
        found = extractor.extract(clips)
    for index, clip in enumerate(clips):
        for instruction in make_readout().instructions:
            for pooling in POOLINGS:
                values = found.features[Condition(pooling, instruction.key)][index]
                assert relative_error(values, oracle.expected(pooling, clip, instruction.text)) < 1e-5
            said = oracle.tokenizer.decode(oracle.answer(clip, instruction.text)[0], skip_special_tokens=True)
            assert found.texts[Condition("generated", instruction.key)][index] == said.strip()
    # A pass for each prompt, then one for all their answers in every step.
    lengths = [len(oracle.ask(clips[0], text).inputs["input_ids"][0]) for text in TEXTS]
    assert [states.shape[2] for states in watch.states] == [*lengths, *[len(TEXTS)] * N_NEW]


@pytest.mark.parametrize("room", [0, 90, 130])
def test_groups_of_any_size_and_answers_of_any_length_give_the_same(
    asked: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, extractor, oracle = asked
    clips, texts, n_new = clips_of(case, 4), [TEXTS[0], "", *TEXTS[1:]], 6
    answers = [[oracle.generate(oracle.ask(clip, text).inputs, n_new) for text in texts] for clip in clips]
    said = [tokens for row in answers for tokens, _ in row]
    # One that some answers have in the middle, and others not at all.
    end = next(
        token
        for tokens in said
        for token in tokens
        if any(other.index(token) > 0 for other in said if token in other) and any(token not in other for other in said)
    )
    monkeypatch.setattr(packing, "JOINED_TOKENS", room)
    found = drive(extractor, clips, texts, decoding=Decoding(n_new, (end,)), shares=case.shares)
    lengths = set()
    for index, clip in enumerate(clips):
        for number, text in enumerate(texts):
            tokens, states = answers[index][number]
            n_kept = max(tokens.index(end), 1) if end in tokens else n_new
            lengths.add(n_kept)
            assert [token for token in found.tokens[index, number].tolist() if token >= 0] == tokens[:n_kept]
            assert relative_error(found.pooled["generated"][index, number], states[:, :n_kept].mean(dim=1)) < 1e-5
            assert relative_error(found.pooled["last"][index, number], oracle.expected("last", clip, text)) < 1e-5
    assert len(lengths) > 1
    assert found.pooled["instruction"][:, 1].isnan().all()
    assert found.pooled["instruction"][:, [0, 2, 3]].isfinite().all()


def test_the_plain_path_generates_one_after_the_other(asked: Any) -> None:
    case, extractor, _ = asked
    clips = clips_of(case)
    with watched(extractor._model) as watch:
        plain = drive(extractor, clips, TEXTS, shares=case.shares, plain=True)
    batch = extractor._architecture.prepare(clips, extractor._setup)
    lengths = [len(build(extractor, batch, text).ids) for text in TEXTS]
    assert [states.shape[2] for states in watch.states] == [n for length in lengths for n in (length, *[1] * N_NEW)]
    together = drive(extractor, clips, TEXTS, shares=case.shares)
    assert torch.equal(together.tokens, plain.tokens)


def test_without_answers_no_keys_are_kept(asked: Any) -> None:
    case, extractor, oracle = asked
    clip = clips_of(case)[0]
    with watched(extractor._model) as watch:
        found = drive(extractor, [clip], TEXTS, poolings=("last",), shares=case.shares)
    assert len(watch.states) == len(TEXTS)
    assert list(found.pooled) == ["last"]
    assert found.tokens.shape == (1, 3, 0)
    assert relative_error(found.pooled["last"][0, 2], oracle.expected("last", clip, TEXTS[2])) < 1e-5


def test_groups_hold_what_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "JOINED_TOKENS", 10)
    prompts = [Prompt(tuple(range(length)), (), ()) for length in (4, 6, 1, 9, 12, 3, 3, 5)]
    groups = [[len(prompt.ids) for prompt in group] for group in decoded_together(prompts)]
    assert groups == [[4, 6], [1, 9], [12], [3, 3], [5]]
    assert decoded_together([]) == []


def test_the_memory_of_a_clip_holds_the_keys_of_all_prompts_that_wait_for_their_answers(folder_of: Any) -> None:
    spec, plan = BLIP.spec(folder_of(BLIP.family)), BLIP.product().plan
    # 32 tokens of media, 30 of text and 4 of an answer; 2 x 5 layers of 48 keys and values; 480 activations a token.
    generated = plan(spec, make_readout("generated")).cost
    assert generated.clip_bytes == 4 * (3 * 66 * 480 + (32 + 3 * 34) * 480)
    last = plan(spec, make_readout("last")).cost
    assert last.clip_bytes == 4 * (62 * 480 + (32 + 3 * 30) * 480)
