"""Chunked cross-entropy against torch in fp64."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from muonlab.model import sizes
from muonlab.model.loss import IGNORED, cross_entropy, score_tokens

pytestmark = pytest.mark.usefixtures("on_device")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    for name in ("CPU", "GPU"):
        small = replace(getattr(sizes, name), loss_values=1, loss_rows=8)
        monkeypatch.setattr(sizes, name, small)


def inputs(num_tokens: int, ignored: list[int]):
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 11, (num_tokens,), generator=generator)
    targets[ignored] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("num_tokens", "ignored"),
    [(1, []), (7, [2]), (8, []), (9, [8]), (24, [0, 7, 8, 15]), (29, list(range(8, 16)))],
)
def test_value_and_gradients_equal_torch(num_tokens: int, ignored: list[int]):
    hidden, weight, targets = inputs(num_tokens, ignored)
    actual = cross_entropy(hidden, weight, targets)
    expected = functional.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(3 * actual, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_chunks")
def test_without_gradients_the_value_is_the_same():
    hidden, weight, targets = inputs(19, [3, 18])
    with torch.no_grad():
        value = cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(value, cross_entropy(hidden, weight, targets), rtol=1e-12, atol=0)


def test_bf16_hidden_accumulates_the_weight_gradient_in_fp32():
    hidden, weight, targets = inputs(64, [])
    narrow = hidden.detach().bfloat16().requires_grad_()
    wide = weight.detach().float().requires_grad_()
    gradient_hidden, gradient_weight = torch.autograd.grad(
        cross_entropy(narrow, wide, targets), (narrow, wide)
    )
    assert gradient_hidden.dtype == torch.bfloat16
    assert gradient_weight.dtype == torch.float32
    expected = functional.cross_entropy(hidden @ weight.T, targets)
    (reference,) = torch.autograd.grad(expected, weight)
    assert (gradient_weight - reference).norm() < 0.02 * reference.norm()


@pytest.mark.usefixtures("small_chunks")
def test_token_scores():
    hidden, weight, targets = inputs(21, [4, 20])
    scores = score_tokens(hidden, weight, targets)
    logits = hidden @ weight.T
    losses = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(scores.losses, losses)
    assert torch.equal(scores.counted, targets != IGNORED)
    assert torch.equal(scores.correct, logits.argmax(1) == targets)
