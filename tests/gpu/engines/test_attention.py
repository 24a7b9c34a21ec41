# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.helpers.tiny_models import random_padded
from verl.engines.attention import SequenceLayout, attend_padded, attend_varlen

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("heads", [(8, 2), (4, 4)])
def test_varlen_kernel_equals_padded_attention_forward_and_backward(heads: tuple[int, int]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    packed = random_padded([30, 90, 1, 55], [70, 10, 120, 41]).pack([0, 1, 2, 3]).to(device)
    layout = SequenceLayout.of(packed)
    generator = torch.Generator(device).manual_seed(0)
    grads = []
    outs = []
    qkv = [torch.randn(1, n, packed.num_tokens, 64, device=device, generator=generator) for n in (*heads, heads[1])]
    weight = torch.randn(1, packed.num_tokens, heads[0], 64, device=device, generator=generator)
    for attend, dtype in ((attend_varlen, torch.bfloat16), (attend_padded, torch.float32)):
        leaves = [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in qkv]
        out = attend(*leaves, layout, 0.125, None)
        (out.float() * weight).sum().backward()
        outs.append(out.float())
        grads.append([leaf.grad.float() for leaf in leaves])
    torch.testing.assert_close(outs[0], outs[1], atol=2e-2, rtol=2e-2)
    for mine, theirs in zip(*grads, strict=True):
        assert (mine - theirs).norm() / theirs.norm() < 2e-2
