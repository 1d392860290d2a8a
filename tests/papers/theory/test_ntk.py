"""`ntk`: kernels against torch.func, equal progress, and its smallest run."""

import pytest
import torch
from torch.func import functional_call, jacrev

from muonlab.lab.bounds import judge_findings
from muonlab.lab.experiment import Context
from muonlab.papers.theory import kernel, ntk


def test_the_tangent_kernel_is_that_of_torch_func() -> None:
    module, inputs, _ = kernel.build_network("two layers", 32, 0)
    parameters = dict(module.named_parameters())
    jacobians = jacrev(lambda values: functional_call(module, values, (inputs,)).flatten())(
        parameters
    )
    assert isinstance(jacobians, dict)
    expected = sum(j.flatten(1) @ j.flatten(1).T for j in jacobians.values())
    torch.testing.assert_close(kernel.tangent_kernel(module, module(inputs)), expected)


@pytest.mark.parametrize("kind", ["mhsa", "causal_mhla"])
def test_the_tangent_kernel_of_attention_is_that_of_differences(kind: kernel.NetworkName) -> None:
    """K Δt is what one small step of gradient descent does to the outputs."""
    width = 16
    module, inputs, targets = kernel.build_network(kind, width, 0)
    outputs = kernel.output(module, inputs, "ntk", width)
    tangent = kernel.tangent_kernel(module, outputs)
    residual = outputs.detach() - targets
    (residual * outputs).sum().backward()
    lr = 1e-6
    kernel.make_optimizer(module, "gd", lr).step()
    change = kernel.output(module, inputs, "ntk", width) - outputs
    torch.testing.assert_close(change / lr, -tangent @ residual, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("algorithm", ntk.ALGORITHMS)
def test_the_first_update_lowers_the_loss_as_predicted(algorithm: kernel.Algorithm) -> None:
    module, inputs, targets = kernel.build_network("two layers", 64, 0)

    def loss() -> torch.Tensor:
        return (kernel.output(module, inputs, "ntk", 64) - targets).square().mean()

    before = [parameter.detach().clone() for parameter in module.parameters()]
    first = loss()
    rate = kernel.descent_rate(module, algorithm, first)
    for parameter, value in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
    loss().backward()
    lr = 1e-3 * first.item() / rate
    kernel.make_optimizer(module, algorithm, lr).step()
    assert (1 - loss() / first).item() == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("kind", ntk.NETWORKS)
@pytest.mark.parametrize("scaling", ntk.SCALINGS)
def test_training_ends_at_half_the_loss(kind: kernel.NetworkName, scaling: kernel.Scaling) -> None:
    found = kernel.train_to_half(kind, scaling, "muon", 16, 0)
    assert 0.4 < found.loss_ratio <= 0.5
    assert found.drift > 0


def test_muon_ignores_the_size_of_the_residual() -> None:
    reference = kernel.first_update("muon", 1.0)
    for scale in (1e-3, 1e3):
        torch.testing.assert_close(kernel.first_update("muon", scale), reference, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            kernel.first_update("gd", scale), scale * kernel.first_update("gd", 1.0)
        )


def test_too_few_widths_are_inconclusive() -> None:
    sizes = ntk.Sizes(widths=(8, 16), attention_widths=(16, 32), seeds=(0,))
    verdict = judge_findings("P2-ntk", ntk.find(ntk.measure(sizes, Context())), "")
    assert verdict.verdict == "inconclusive"
    assert "a slope needs 5 points" in verdict.rule


@pytest.mark.slow
def test_two_layers_at_their_smallest() -> None:
    sizes = ntk.Sizes(
        widths=(64, 128, 256, 512, 1024), attention_widths=(16, 24, 32, 48, 64), seeds=(0, 1)
    )
    found = {item.name: item for item in ntk.find(ntk.measure(sizes, Context()))}
    assert found["drift, two layers, ntk scaling, gd"].passed
    assert found["drift, two layers, spectral scaling, gd"].passed
