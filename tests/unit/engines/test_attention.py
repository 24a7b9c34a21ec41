# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.helpers.tiny_models import random_padded, tiny_model
from verl.engines.attention import IMPLEMENTATION, SequenceLayout, attend_varlen, packed_attention, uses_varlen
from verl.utils.errors import UserError


def test_packed_hidden_states_and_gradients_equal_each_sequence_alone() -> None:
    padded = random_padded([3, 9, 1, 5], [7, 1, 12, 4])
    packed = padded.pack([2, 0, 3, 1])
    alone, ours = tiny_model(), tiny_model()
    ours.set_attn_implementation(IMPLEMENTATION)

    hidden = ours.model(
        packed.input_ids[None],
        position_ids=packed.position_ids[None],
        layout=SequenceLayout.of(packed),
        use_cache=False,
    ).last_hidden_state[0]
    borders = packed.cu_seqlens.tolist()
    pieces = [
        alone.model(packed.input_ids[None, start:end], use_cache=False).last_hidden_state[0]
        for start, end in zip(borders, borders[1:], strict=False)
    ]
    reference = torch.cat(pieces)
    torch.testing.assert_close(hidden, reference, rtol=1e-5, atol=1e-5)

    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (hidden * weights).mean().backward()
    (reference * weights).mean().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_forward_without_layout_is_refused() -> None:
    model = tiny_model()
    model.set_attn_implementation(IMPLEMENTATION)
    with pytest.raises(TypeError, match="layout"):
        model.model(torch.tensor([[3, 4]]), use_cache=False)


@pytest.mark.parametrize("feature", [{"softcap": 30.0}, {"sliding_window": 3}])
def test_attention_that_is_not_computed_here_is_refused(feature: dict) -> None:
    packed = random_padded([2, 3], [4, 1]).pack([0, 1])
    qkv = [torch.randn(1, 2, packed.num_tokens, 4) for _ in range(3)]
    with pytest.raises(UserError, match="softcap|sliding-window"):
        packed_attention(torch.nn.Identity(), *qkv, None, layout=SequenceLayout.of(packed), **feature)


def test_varlen_kernel_is_for_cuda_in_16_bit() -> None:
    assert uses_varlen("cuda", torch.bfloat16)
    assert not uses_varlen("cuda", torch.float32)
    assert not uses_varlen("cpu", torch.bfloat16)


@pytest.mark.parametrize("window", [None, 4])
def test_this_torch_offers_the_varlen_kernel_as_it_is_called(window: int | None) -> None:
    # The meta device checks names, shapes and the existence of a backward pass; numbers need a GPU (tests/gpu).
    query, key, value = (torch.empty(1, heads, 11, 8, device="meta", requires_grad=True) for heads in (4, 2, 2))
    borders = torch.empty(3, dtype=torch.int32, device="meta")
    out = attend_varlen(query, key, value, SequenceLayout(borders, 6), 0.3, window)
    out.sum().backward()
    assert out.shape == (1, 11, 4, 8)
    assert key.grad is not None and key.grad.shape == key.shape
