"""Prompts that begin alike: what they share, and who sees whom in the packed row, written out by hand."""

import pytest
import torch

from bids_mllm.features.models.packing import common_prefix, pack, row_mask, step_mask
from bids_mllm.features.models.prompts import Prompt

M = 90


def prompt(ids: list[int], instruction: tuple[int, ...] = ()) -> Prompt:
    return Prompt(tuple(ids), tuple(i for i, token in enumerate(ids) if token == M), instruction, "text")


FIRST = prompt([1, M, M, 2, 5, 6, 3], (4, 5))
SECOND = prompt([1, M, M, 2, 7, 3], (4,))


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([FIRST, SECOND], 4),
        # The same first word does not bring an instruction's token into the beginning.
        ([FIRST, prompt([1, M, M, 2, 5, 8, 3], (4, 5))], 4),
        ([FIRST, FIRST], 4),
        ([FIRST], 4),
        # Without an instruction, each prompt keeps its last token.
        ([prompt([1, M, M, 2, 3])], 4),
        ([prompt([1, M, M, 2, 3]), prompt([1, M, M, 2, 3])], 4),
        ([prompt([1, M, M, 2, 3]), FIRST], 4),
        ([prompt([1, M, 2, 3, 4]), prompt([1, M, 2, 3, 4, 5])], 4),
        # A difference in the template before the instruction.
        ([prompt([1, M, 2, 4, 5], (4,)), prompt([1, M, 3, 4, 6], (4,))], 2),
        # Not all media are shared, or none.
        ([prompt([1, M, M, M]), prompt([1, M, M, M])], 0),
        ([prompt([1, 5, 2, M, M, 3], (1,)), prompt([1, 6, 2, M, M, 3], (1,))], 0),
        ([prompt([1, 5, 2, M, 3], (1,)), prompt([1, 5, 2, M, 3], (1,))], 0),
        ([prompt([1, M, 2, M, 4, 5]), prompt([1, M, 3, M, 4, 5])], 0),
        ([prompt([2, M, 4]), prompt([3, M, 4])], 0),
    ],
)
def test_what_prompts_share(prompts: list[Prompt], expected: int) -> None:
    assert common_prefix(prompts) == expected
    assert common_prefix(prompts[::-1]) == expected


def test_two_branches_in_a_row() -> None:
    row = pack([FIRST, SECOND], 4, "cpu")
    assert row.ids.tolist() == [5, 6, 3, 7, 3]
    assert row.branch.tolist() == [0, 0, 0, 1, 1]
    assert row.offset.tolist() == [0, 1, 2, 0, 1]
    assert row.starts == (0, 3)
    assert row.lengths.tolist() == [3, 2]
    assert row.ends == [2, 4]


def test_a_token_sees_the_beginning_and_its_own_branch_up_to_itself() -> None:
    mask = row_mask(pack([FIRST, SECOND], 4, "cpu"), 4)
    expected = [
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 1, 0],
        [1, 1, 1, 1, 0, 0, 0, 1, 1],
    ]
    assert mask.dtype == torch.bool
    assert mask.shape == (1, 1, 5, 9)
    assert mask[0, 0].int().tolist() == expected


def test_a_new_token_sees_the_beginning_its_branch_and_what_its_branch_said() -> None:
    row = pack([FIRST, SECOND], 4, "cpu")
    first = [[1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1]]
    third = [
        [1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0],
        [1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1],
    ]
    assert step_mask(row, 4, 0)[0, 0].int().tolist() == first
    assert step_mask(row, 4, 2)[0, 0].int().tolist() == third
    assert step_mask(row, 4, 2).shape == (1, 1, 2, 15)
    assert step_mask(row, 4, 2).dtype == torch.bool


def test_a_whole_prompt_is_a_row_of_one_causal_branch() -> None:
    row = pack([SECOND], 0, "cpu")
    assert row.ids.tolist() == list(SECOND.ids)
    assert (row.starts, row.ends) == ((0,), [5])
    assert torch.equal(row_mask(row, 0)[0, 0], torch.ones(6, 6).tril().bool())
    assert step_mask(row, 0, 1)[0, 0].int().tolist() == [[1] * 8]
