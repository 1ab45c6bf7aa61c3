"""Hooks on real text models and towers: the states that the model itself gives, and nothing left behind."""

from typing import Any

import pytest
import torch
from instructed_cases import hooked, relative_error
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel, Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from bids_mllm.features.models.tap import Passage, mean_over, memoised, tapped

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
SPANS = [[0], [2, 3, 6], [8]]


@pytest.fixture(scope="module")
def llama() -> Any:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def qwen() -> Any:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**SIZES, rope_parameters=rope)).eval()


@pytest.fixture(scope="module")
def tower() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14)).eval()


def embeddings(n_rows: int = 2, n_tokens: int = 9) -> torch.Tensor:
    return torch.randn((n_rows, n_tokens, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_means_are_those_of_the_hidden_states_that_the_model_gives(llama: Any) -> None:
    with tapped(llama, SPANS) as passage:
        output = llama(inputs_embeds=embeddings(), output_hidden_states=True)
    states = torch.stack(output.hidden_states)
    assert passage.pooled().shape == (2, 3, 4, 24)
    for number, span in enumerate(SPANS):
        expected = states[:, :, span].mean(dim=2)
        assert relative_error(passage.pooled()[:, number].transpose(0, 1), expected) < 1e-6
    assert torch.equal(passage.last, output.last_hidden_state[:, -1])
    assert passage.n_tokens == 9


@torch.no_grad()
def test_half_precision_is_averaged_in_float32() -> None:
    states = torch.randn((1, 4000, 3), generator=torch.Generator().manual_seed(0)).add(5.0).bfloat16()
    (mean,) = mean_over(states, [torch.arange(4000)])[0]
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, states[0].double().mean(dim=0).float(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_nothing_but_the_means_is_kept(llama: Any) -> None:
    with tapped(llama, [[1], [2, 3]]) as passage:
        llama(inputs_embeds=embeddings(2, 500))
    kept = [passage.last, *passage.layers]
    assert [value.untyped_storage().nbytes() for value in kept] == [2 * 24 * 4] + [2 * 2 * 24 * 4] * 4
    assert hooked(llama) == []


def test_hooks_go_also_after_an_error(llama: Any) -> None:
    def run() -> None:
        with tapped(llama, SPANS):
            assert hooked(llama) == ["", "layers.0", "layers.1", "norm"]
            llama(inputs_embeds=embeddings()[..., :7])

    with pytest.raises(RuntimeError):
        run()
    assert hooked(llama) == []


@torch.no_grad()
def test_without_spans_the_positions_alone_are_taken(llama: Any) -> None:
    with tapped(llama, []) as passage:
        llama(inputs_embeds=embeddings())
    assert passage.layers == []
    assert passage.position_ids is None
    assert passage.next_position(2, torch.device("cpu")).tolist() == [9, 9]
    assert passage.positions(torch.tensor([9, 9]), torch.tensor([0, 1, 0])).tolist() == [[9, 10, 9]] * 2


@torch.no_grad()
def test_positions_of_three_axes_go_on_behind_the_largest(qwen: Any) -> None:
    # Time, height and width of nine tokens in each of two rows; the largest of the second is a width.
    ids = torch.stack((torch.arange(9).repeat(2, 1), torch.full((2, 9), 3), torch.tensor([[1] * 9, [11] * 9])))
    with tapped(qwen, []) as passage:
        qwen(inputs_embeds=embeddings(), position_ids=ids)
    base = passage.next_position(2, torch.device("cpu"))
    assert base.tolist() == [9, 12]
    found = passage.positions(base, torch.tensor([0, 1, 0]))
    assert found.tolist() == [[[9, 10, 9], [12, 13, 12]]] * 3


def test_positions_shared_by_all_rows() -> None:
    passage = Passage(position_ids=torch.arange(5)[None], n_tokens=5)
    assert passage.next_position(3, torch.device("cpu")).tolist() == [5, 5, 5]


@torch.no_grad()
def test_a_tower_computes_once_for_all_calls(tower: Any) -> None:
    pixels = torch.randn((1, 3, 28, 28), generator=torch.Generator().manual_seed(1))
    expected = tower(pixel_values=pixels).last_hidden_state
    calls: list[int] = []
    layer = next(module for name, module in tower.named_modules() if name.endswith("layers.0"))
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    with memoised([tower]):
        first = tower(pixel_values=pixels)
        assert torch.equal(first.last_hidden_state, expected)
        # What one caller does to its output is not seen by the next.
        first.last_hidden_state = None
        assert torch.equal(tower(pixel_values=pixels).last_hidden_state, expected)
    assert len(calls) == 1
    tower(pixel_values=pixels)
    assert len(calls) == 2
    hook.remove()
    assert hooked(tower) == []


def test_a_tower_is_itself_again_after_an_error(tower: Any) -> None:
    def run() -> None:
        with memoised([tower]):
            assert hooked(tower) == [""]
            tower(pixel_values=torch.zeros((1, 3, 28, 42)))

    with pytest.raises(ValueError, match="image size"):
        run()
    assert hooked(tower) == []
