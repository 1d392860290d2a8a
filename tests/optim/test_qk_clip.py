"""Attention logits before and after clipping, computed from the weights."""

import pytest
import torch

from muonlab.optim.qk_clip import clip_factors, clip_grouped_heads_, clip_latent_heads_


def test_grouped_heads_are_clipped_exactly():
    torch.manual_seed(0)
    heads, groups, head_dim, dim = 6, 2, 4, 16
    fused = torch.randn((heads + 2 * groups) * head_dim, dim)
    query, key = fused[: heads * head_dim], fused[heads * head_dim :][: groups * head_dim]
    values = fused[(heads + groups) * head_dim :].clone()
    x = torch.randn(10, dim)

    def logits():
        q = (x @ query.T).view(10, heads, head_dim)
        k = (x @ key.T).view(10, groups, head_dim).repeat_interleave(heads // groups, dim=1)
        return torch.einsum("thd,shd->hts", q, k)

    before = logits()
    largest = before.amax(dim=(1, 2))
    threshold = largest.median().item()
    factors = clip_grouped_heads_(query, key, largest, threshold=threshold)
    after = logits()
    torch.testing.assert_close(after, before * factors.view(-1, 1, 1), atol=1e-4, rtol=1e-4)
    assert after.amax() <= threshold * (1 + 1e-4)
    untouched = largest <= threshold
    assert bool((factors[untouched] == 1).all())
    assert torch.equal(fused[(heads + groups) * head_dim :], values)


def test_latent_heads_leave_the_shared_rotary_key_alone():
    torch.manual_seed(0)
    heads, nope, rope, value, rank = 3, 4, 2, 5, 8
    query = torch.randn(heads * (nope + rope), rank)
    key_value = torch.randn(heads * (nope + value), rank)
    x, rotary_key = torch.randn(10, rank), torch.randn(10, rope)

    def logits():
        q = (x @ query.T).view(10, heads, nope + rope)
        k = (x @ key_value.T).view(10, heads, nope + value)[..., :nope]
        shared = torch.einsum("thd,sd->hts", q[..., nope:], rotary_key)
        return torch.einsum("thd,shd->hts", q[..., :nope], k) + shared

    def values():
        return key_value.view(heads, nope + value, rank)[:, nope:].clone()

    before, kept = logits(), values()
    largest = before.amax(dim=(1, 2))
    threshold = largest.min().item() * 1.01
    factors = clip_latent_heads_(
        query, key_value, largest, rope_dim=rope, nope_dim=nope, threshold=threshold
    )
    torch.testing.assert_close(logits(), before * factors.view(-1, 1, 1), atol=1e-4, rtol=1e-4)
    assert torch.equal(values(), kept)


def test_negative_logits_are_not_clipped_and_bad_input_is_named():
    assert clip_factors(torch.tensor([-5.0, 50.0]), 100.0).tolist() == [1, 1]
    with pytest.raises(ValueError, match="threshold 0"):
        clip_factors(torch.ones(2), 0)
    with pytest.raises(ValueError, match="3 heads"):
        clip_grouped_heads_(torch.ones(8, 4), torch.ones(8, 4), torch.ones(3))
    with pytest.raises(ValueError, match="2 heads"):
        clip_latent_heads_(
            torch.ones(9, 4), torch.ones(8, 4), torch.ones(2), rope_dim=2, nope_dim=2
        )
