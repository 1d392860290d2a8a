"""The accounting against the real model: parameters, kept activations, decoding state."""

from dataclasses import replace

import pytest
import torch

from muonlab.model import LanguageModel, ModelConfig
from muonlab.model.accounting import account
from muonlab.model.attention import AttentionConfig, MHLAConfig, MHSAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig
from muonlab.optim import build_groups

P2 = ModelConfig(
    vocab_size=49_152,
    dim=384,
    num_layers=6,
    max_length=512,
    attention=MHSAConfig(num_heads=8),
    ffn=MoEConfig(hidden_dim=1536, activation="gelu"),
)
CONFIGS = {
    "dense": ModelConfig(ffn=DenseConfig()),
    "gated": ModelConfig(ffn=DenseConfig(gated=True)),
    "moe": ModelConfig(),
    "gqa, qk-norm, shared experts": ModelConfig(
        attention=MHSAConfig(num_kv_heads=2, qk_norm=True),
        ffn=MoEConfig(gated=True, num_shared_experts=1, hidden_dim=128),
    ),
    "alternate, untied": ModelConfig(ffn=MoEConfig(every=2, num_shared_experts=1), tie_head=False),
}


def test_p2s_model_has_its_published_size():
    costs = account(P2)
    assert costs.parameters == 79_059_840
    assert costs.active_parameters == 36_592_512


@pytest.mark.filterwarnings("ignore:attention kind mhla is not causal")
@pytest.mark.parametrize(
    ("attention", "parameters", "under_muon"),
    [
        (MHSAConfig(num_heads=8), 79_059_840, 60_180_480),
        (MHLAConfig(num_heads=8, num_latents=64), 81_861_504, 62_982_144),
    ],
)
def test_p2s_grouping(attention: AttentionConfig, parameters: int, under_muon: int):
    """Everything of two dimensions but the embedding: router and latents too."""
    config = replace(P2, attention=attention)
    assert account(config).parameters == parameters
    groups = build_groups(
        config.build(0, "meta"), muon_roles=("hidden", "router", "latents"), strict=True
    )
    sizes = {"muon": 0, "adamw": 0}
    for group in groups:
        sizes[group["algorithm"]] += sum(p.numel() for p in group["params"])
    assert sizes == {"muon": under_muon, "adamw": parameters - under_muon}


def test_flops_of_p2s_model_by_hand():
    parts = {part.name: part.forward_flops for part in account(P2, length=512).parts}
    assert parts["attention projections"] == 6 * 4 * 2 * 384 * 384
    assert parts["attention mixing"] == 6 * 2 * 2 * 384 * (512 + 1) / 2  # mean causal context
    assert parts["router"] == 6 * 2 * 384 * 8
    assert parts["feed-forward"] == 6 * 2 * 2 * 2 * 384 * 1536  # two experts of two matrices
    assert parts["head"] == 2 * 384 * 49_152
    assert account(P2).backward_flops == 2 * sum(parts.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_parameters_equal_the_model(config: ModelConfig):
    model = config.build(0, "meta")
    costs = account(config)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    assert costs.weight_bytes == costs.gradient_bytes == 4 * costs.parameters
    assert costs.optimizer_bytes(0) == 8 * costs.parameters
    assert costs.optimizer_bytes(costs.parameters) == 4 * costs.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_kept_activations_within_a_tenth(config: ModelConfig, dtype: torch.dtype):
    model = config.build(0)
    model.compute_dtype = dtype
    expected = account(config, batch=4, bytes_per_value=dtype.itemsize).activation_bytes
    assert measured_activation_bytes(model) == pytest.approx(expected, rel=0.1)


def measured_activation_bytes(model: LanguageModel) -> int:
    """Bytes of all distinct storages that autograd keeps, without the parameters' own."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(model.config.vocab_size, (4, model.config.max_length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(tokens, tokens)
    assert output.loss.requires_grad  # the graph, and with it every storage, is still alive
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in parameters
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_state_bytes_equal_the_tensors(config: ModelConfig):
    model = config.build(0)
    costs = account(config, batch=3, length=50)
    assert model.new_state(3, 50).num_bytes() == costs.state_bytes
