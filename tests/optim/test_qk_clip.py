"""Attention logits before and after clipping, computed from the weights."""

import pytest
import torch

from muonlab.optim.qk_clip import clip_heads_

pytestmark = pytest.mark.usefixtures("on_device")


def test_grouped_heads_are_clipped_exactly():
    torch.manual_seed(0)
    heads, groups, head_dim, dim = 6, 2, 4, 16
    fused = torch.randn((heads + 2 * groups) * head_dim, dim)
    by_head = fused.view(-1, head_dim, dim)
    query, key, value = by_head.split([heads, groups, groups])
    values = value.clone()
    x = torch.randn(10, dim)

    def logits():
        q = torch.einsum("td,hwd->htw", x, query)
        k = torch.einsum("td,hwd->htw", x, key).repeat_interleave(heads // groups, dim=0)
        return q @ k.mT

    before = logits()
    largest = before.amax(dim=(1, 2))
    threshold = largest.median().item()
    factors = clip_heads_(query, key, largest, threshold=threshold)
    after = logits()
    torch.testing.assert_close(after, before * factors.view(-1, 1, 1), atol=1e-4, rtol=1e-4)
    assert after.amax() <= threshold * (1 + 1e-4)
    untouched = largest <= threshold
    assert bool((factors[untouched] == 1).all())
    assert torch.equal(value, values)


def test_latent_heads_leave_the_shared_rotary_key_alone():
    torch.manual_seed(0)
    heads, nope, rope, value, rank = 3, 4, 2, 5, 8
    query = torch.randn(heads * (nope + rope), rank).view(heads, -1, rank)
    key_value = torch.randn(heads * (nope + value), rank).view(heads, -1, rank)
    x, rotary_key = torch.randn(10, rank), torch.randn(10, rope)

    def logits():
        q = torch.einsum("td,hwd->htw", x, query)
        k = torch.einsum("td,hwd->htw", x, key_value[:, :nope])
        return q[..., :nope] @ k.mT + q[..., nope:] @ rotary_key.T

    before, values = logits(), key_value[:, nope:].clone()
    largest = before.amax(dim=(1, 2))
    threshold = largest.min().item() * 1.01
    factors = clip_heads_(query, key_value[:, :nope], largest, threshold=threshold)
    torch.testing.assert_close(logits(), before * factors.view(-1, 1, 1), atol=1e-4, rtol=1e-4)
    assert torch.equal(key_value[:, nope:], values)


def test_logits_below_the_threshold_change_nothing_and_bad_input_is_named():
    query, key = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    before = query.clone(), key.clone()
    assert clip_heads_(query, key, torch.tensor([-500.0, 100.0])).tolist() == [1, 1]
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])
    with pytest.raises(ValueError, match="threshold 0"):
        clip_heads_(query, key, torch.ones(2), threshold=0)
    with pytest.raises(ValueError, match=r"max_logits \(3,\)"):
        clip_heads_(query, key, torch.ones(3))
    with pytest.raises(ValueError, match=r"key \(2, 4, 3\)"):
        clip_heads_(torch.ones(3, 4, 3), key, torch.ones(3))
