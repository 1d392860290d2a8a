import math

import pytest
import torch
from on_device import only_on_the_cpu

from muonlab.model import sizes
from muonlab.model.attention.softmax import causal_attention
from muonlab.model.dropout import Dropout, dropout_mask

pytestmark = pytest.mark.usefixtures("on_device")

BLOCK = sizes.CPU.attention_block


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(1001, 999), probability)
    error = math.sqrt(probability * (1 - probability) / mask.numel())
    assert (mask == 0).double().mean().item() == pytest.approx(probability, abs=5 * error)
    assert mask.double().mean().item() == pytest.approx(1, abs=5 * error / (1 - probability))
    assert len(mask.unique()) == 2


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout_mask(torch.empty(400_000), 0.5) > 0).double() - 0.5
    for lag in (1, 2, 3, 4, 5, 8):
        correlation = 4 * (kept[lag:] * kept[:-lag]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(len(kept))


def test_it_draws_from_the_global_stream_in_training_only():
    layer, x = Dropout(0.5), torch.ones(64)
    torch.manual_seed(1)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), first, rtol=0, atol=0)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("length", [BLOCK + 40, sizes.CPU.explicit_attention_length + 40])
def test_causal_attention_with_dropout_equals_autograd_of_the_same_masks(length: int):
    only_on_the_cpu("a GPU's kernel draws masks of its own")
    torch.manual_seed(2)
    scale, probability = 0.4, 0.3
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    gradient = torch.randn(2, 3, length, 8, dtype=torch.float64)

    torch.manual_seed(3)
    out = causal_attention(q, k, v, scale=scale, dropout=probability)
    found = torch.autograd.grad(out, (q, k, v), gradient)

    torch.manual_seed(3)
    outs = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        scores = scale * q[:, :, start:stop] @ k[:, :, :stop].mT
        future = torch.ones(stop - start, stop, dtype=torch.bool).triu_(1 + start)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        mask = dropout_mask(weights.flatten(0, 1), probability).view_as(weights)
        outs.append((weights * mask) @ v[:, :, :stop])
    expected = torch.cat(outs, dim=2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (q, k, v), gradient))
