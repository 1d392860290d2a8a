import dataclasses
import math

import pytest
import torch
from torch import nn

from muonlab.optim import Muon
from muonlab.optim.config import P2_ADAMW, P2_MUON, AdamWConfig, MuonConfig
from muonlab.optim.learning_rate import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    P2Config,
    WSDConfig,
)


def model():
    return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 20))


def groups_of(config):
    net = model()
    optimizer = config.build(net)
    assert isinstance(optimizer, Muon)
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(net.parameters())
    return optimizer.param_groups


def test_muon_config():
    muon, adamw, vectors = groups_of(MuonConfig(lr=0.01, adamw_lr_ratio=0.5, weight_decay=0.2))
    assert (muon["algorithm"], muon["lr"], muon["weight_decay"]) == ("muon", 0.01, 0.2)
    assert muon["scale"] == "match_rms_adamw"
    assert (adamw["lr"], adamw["weight_decay"]) == (0.005, 0.1)
    assert (vectors["lr"], vectors["weight_decay"]) == (0.005, 0.0)


def test_p2_settings():
    muon, adamw = groups_of(P2_MUON)
    assert (muon["lr"], muon["weight_decay"], muon["scale"]) == (0.01, 0.0, "keller")
    assert adamw["lr"] == pytest.approx(0.001)
    assert adamw["weight_decay"] == 0.1
    (single,) = groups_of(P2_ADAMW)
    assert (single["lr"], single["weight_decay"], single["betas"]) == (0.01, 0.1, (0.9, 0.999))


def test_adamw_config_groups():
    groups = groups_of(AdamWConfig(lr=0.01, other_lr_ratio=0.1))
    assert [g["algorithm"] for g in groups] == ["adamw"] * 3
    assert [g["lr"] for g in groups] == pytest.approx([0.01, 0.001, 0.001])
    assert [g["weight_decay"] for g in groups] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "lr -1.0"),
        ({"adamw_lr_ratio": -1.0}, "adamw_lr_ratio -1.0"),
        ({"schedule": "keller"}, "'keller'"),
        ({"adamw_weight_decay": -1.0}, "weight_decay -1.0"),
        ({"muon_roles": ("hiden",)}, "'hiden'"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MuonConfig(**change)


def test_bad_adamw_values_are_named():
    with pytest.raises(ValueError, match="betas 2"):
        AdamWConfig(betas=(0.9, 2))


@pytest.mark.parametrize(
    "ablation",
    [
        {"momentum": 0.0, "nesterov": False},
        {"schedule": "none"},
        {"schedule": "none", "momentum": 0.0, "nesterov": False},
        {"schedule": "kaon"},
        {"schedule": "svd"},
    ],
)
def test_the_ablations_are_configurations(ablation):
    torch.manual_seed(0)
    net = model()
    optimizer = dataclasses.replace(P2_MUON, dtype="fp32", **ablation).build(net)
    net(torch.arange(20)).square().mean().backward()
    matrix = optimizer.param_groups[0]["params"][0]
    start = matrix.detach().clone()
    gradient = matrix.grad.clone()
    optimizer.step()
    update = (start - matrix.detach()) / (0.01 * math.sqrt(12 / 8))
    if ablation.get("schedule") == "none":  # the first momentum is 0.05 G, Nesterov's 0.0975 G
        factor = 1.0 if "momentum" in ablation else 1 - 0.95**2
        torch.testing.assert_close(update, factor * gradient, atol=1e-5, rtol=1e-3)
    else:
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        core = u.mT @ update @ vh.mT  # same singular vectors, other values
        torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=2e-3, rtol=0)


ALL = [ConstantConfig(), LinearConfig(), CosineConfig(), WSDConfig(), P2Config()]


@pytest.mark.parametrize("config", ALL, ids=lambda c: c.kind)
def test_every_schedule_stays_in_range(config):
    values = [config.multiplier(step, 200) for step in range(200)]
    assert all(0 <= value <= 1 for value in values)
    assert max(values) > 0.99
    assert config.multiplier(0, 1) >= 0


def test_schedule_values():
    linear = LinearConfig(warmup=10, final=0.1)
    assert linear.multiplier(0, 110) == pytest.approx(0.1)
    assert linear.multiplier(60, 110) == pytest.approx(0.55)
    assert linear.multiplier(110, 110) == pytest.approx(0.1)
    cosine = CosineConfig(warmup=0.0)
    assert cosine.multiplier(0, 100) == 1
    assert cosine.multiplier(50, 100) == pytest.approx(0.5)
    stable = WSDConfig(warmup=0.1, decay=0.2)
    assert [stable.multiplier(s, 100) for s in (9, 50, 80)] == [1, 1, 1]
    assert stable.multiplier(90, 100) == pytest.approx(0.5)


def test_the_quirk_of_p2():
    published, updates = P2Config(), 250
    assert published.multiplier(0, updates) == 0
    assert published.multiplier(49, updates) < 1
    assert published.multiplier(50, updates) == 1  # 20 % of the run
    assert published.multiplier(249, updates) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearConfig(final=2), "final 2"),
        (lambda: CosineConfig(warmup=-1), "warmup -1"),
        (lambda: WSDConfig(decay=-0.1), "decay -0.1"),
    ],
)
def test_bad_schedules_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
