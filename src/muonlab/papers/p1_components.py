"""P1's fifteen components of architecture and optimizer as a study: one changed at a time.

The list and the defaults are ours: P1 names the number alone. What changes the length of a step has
its learning rate tuned as the defaults have; everything else takes theirs.
"""

import json

import pandas as pd

from muonlab.config import RunConfig, override
from muonlab.lab.arms import Pair, compare_all
from muonlab.lab.baselines import ADAMW_RANGE, MUON_RANGE
from muonlab.lab.experiment import Arm, Comparison, Scale, Search, Study, Verdict
from muonlab.lab.rules import COUNTS, DescribedRule
from muonlab.lab.statistics import Difference, excludes_zero
from muonlab.optim.config import MuonConfig
from muonlab.optim.schedules import KELLER
from muonlab.papers.protocols import (
    LEARNING_RATE,
    SEEDS,
    attention,
    p1_base,
    with_attention,
    with_optimizer,
)

DEFAULT = "default"
# learning-rate ranges of the variants whose steps are of another length, of equal log width
OWN_RANGES = {
    "adamw": ADAMW_RANGE,
    "kaon": MUON_RANGE,
    "keller": MUON_RANGE,
    "spectral": MUON_RANGE,
    "no.scale": (4e-3, 0.16),
}

COMPONENTS_RULE = DescribedRule(
    words="The paper states no outcome, so nothing is judged. Changes that surely differ from 0 "
    f"are named. {COUNTS}"
)


def defaults(scale: Scale) -> RunConfig:
    """P1's run at that scale with MHSA, softmax gates and no shared expert, under Muon."""
    config = with_optimizer(p1_base(scale), MuonConfig(lr=0.012))  # results/small-learning-rate
    config = with_attention(config, attention("mhsa", config))
    return override(config, ["model.ffn.gate=softmax", "model.ffn.num_shared_experts=0"])


def variants(config: RunConfig) -> dict[str, dict[str, list[str]]]:
    """Component → variant → what it overrides."""
    model = config.model
    heads, dim, hidden = model.attention.num_heads, model.dim, model.ffn.hidden_dim
    gated = model.ffn.gated
    rotary = dim // heads // 2
    mla = ["model.attention.kind=mla", f"model.attention.num_heads={heads}"]
    latent = ["model.attention.kind=causal_mhla", f"model.attention.num_heads={heads}"]
    chunk = config.train.sequence_length // 4

    def steps(count: int) -> list[str]:
        return [f"optimizer.schedule={json.dumps([KELLER] * count)}"]

    def muon_for(*roles: str) -> list[str]:
        return [f"optimizer.muon_roles={json.dumps(['hidden', *roles])}"]

    def rank(share: int) -> list[str]:
        return [
            *mla,
            f"model.attention.kv_rank={dim // share}",
            f"model.attention.rope_dim={rotary}",
        ]

    return {
        "update": {"adamw": ["optimizer.kind=adamw"], "kaon": ["optimizer.schedule=kaon"]},
        "momentum": {
            "momentum.0": ["optimizer.momentum=0.0"],
            "momentum.0.9": ["optimizer.momentum=0.9"],
            "momentum.0.98": ["optimizer.momentum=0.98"],
            "no.nesterov": ["optimizer.nesterov=false"],
        },
        "steps": {
            "steps.1": steps(1),
            "steps.3": steps(3),
            "steps.7": steps(7),
            "svd": ["optimizer.schedule=svd"],
        },
        "schedule and precision": {
            "you5": ["optimizer.schedule=you5"],
            "polar.express": ["optimizer.schedule=polar_express"],
            "products.fp32": ["optimizer.dtype=fp32"],
            "products.bf16": ["optimizer.dtype=bf16"],
        },
        "scale": {
            "keller": ["optimizer.scale=keller"],
            "spectral": ["optimizer.scale=spectral"],
            "no.scale": ["optimizer.scale=none"],
        },
        "weight decay": {
            "decay.0": ["optimizer.weight_decay=0.0"],
            "decay.0.01": ["optimizer.weight_decay=0.01"],
            "decay.0.3": ["optimizer.weight_decay=0.3"],
            "cautious": ["optimizer.cautious=true"],
        },
        "what Muon gets": {
            "with.router": muon_for("router"),
            "with.embedding": muon_for("router", "embedding"),
        },
        "partition": {
            "fused": ["optimizer.split_fused=false"],
            "per.head": ["optimizer.per_head=true"],
        },
        "second moment": {
            "normuon": ["optimizer.second_moment=normuon"],
            "adamuon": ["optimizer.second_moment=adamuon"],
        },
        "logit control": {
            "qk.norm": ["model.attention.qk_norm=true"],
            "qk.clip": ["optimizer.qk_clip=30"],
        },
        "learning-rate schedule": {
            "cosine": ["learning_rate.kind=cosine", "learning_rate.final=0.1"],
            "wsd": ["learning_rate.kind=wsd"],
            "no.warmup": ["learning_rate.warmup=0.0"],
            "warmup.0.2": ["learning_rate.warmup=0.2"],
            "no.clip": ["train.clip_norm=null"],
        },
        "attention": {
            "gqa": [f"model.attention.num_kv_heads={heads // 2}"],
            "mla.8": rank(8),
            "mla.4": rank(4),
            "mla.2": rank(2),
            "latents.16": [
                *latent,
                "model.attention.num_latents=16",
                f"model.attention.chunk={chunk}",
            ],
            "latents.64": [
                *latent,
                "model.attention.num_latents=64",
                f"model.attention.chunk={chunk}",
            ],
        },
        "experts": {
            "dense": ["model.ffn.kind=dense", f"model.ffn.hidden_dim={2 * hidden}"],
            "experts.4": ["model.ffn.num_experts=4"],
            "experts.16": ["model.ffn.num_experts=16"],
            "top.1": ["model.ffn.top_k=1", "model.ffn.normalize_gates=false"],
            "top.4": ["model.ffn.top_k=4"],
            "shared.1": ["model.ffn.num_shared_experts=1"],
            "fine": [
                "model.ffn.num_experts=16",
                "model.ffn.top_k=4",
                f"model.ffn.hidden_dim={hidden // 2}",
            ],
        },
        "balancing": {
            "no.balancing": ["model.ffn.balancing=none"],
            "bias": ["model.ffn.balancing=bias"],
            "z.loss": ["model.ffn.z_loss_coefficient=0.001"],
            "sigmoid": ["model.ffn.gate=sigmoid"],
            "router.noise": ["model.ffn.router_noise=0.1"],
        },
        "activation": {
            "relu": ["model.ffn.activation=relu"],
            "gelu": ["model.ffn.activation=gelu"],
            "tanh": ["model.ffn.activation=tanh"],
            "relu2": ["model.ffn.activation=relu2"],
            "not.gated" if gated else "gated": [  # as many parameters
                f"model.ffn.gated={json.dumps(not gated)}",
                f"model.ffn.hidden_dim={hidden * 3 // 2 if gated else hidden * 2 // 3}",
            ],
        },
    }


def components(scale: Scale) -> Study:
    """The defaults, and every variant of the fifteen components."""
    config = defaults(scale)
    listed = variants(config)
    default = Arm(
        name=DEFAULT,
        labels={"component": DEFAULT},
        config=config,
        search=Search(space={LEARNING_RATE: MUON_RANGE}),
    )
    arms = [default] + [
        Arm(
            name=name,
            labels={"component": component, "variant": name},
            config=override(config, overrides),
            search=Search(space={LEARNING_RATE: OWN_RANGES[name]}) if name in OWN_RANGES else None,
            tuned_as=None if name in OWN_RANGES else DEFAULT,
        )
        for component, changes in listed.items()
        for name, overrides in changes.items()
    ]

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        return [_components_verdict(frame, scale, listed)]

    return Study(
        name="p1-components",
        scale=scale,
        question="What does each of fifteen components change, one at a time?",
        claims=("P1-15",),
        arms=tuple(arms),
        seeds=SEEDS,
        judge=judge,
        comparisons=tuple(
            Comparison(arm=arm.name, baseline=DEFAULT) for arm in arms if arm.name != DEFAULT
        ),
        notes=("One change at a time: how components act together is not asked.",),
    )


def _components_verdict(
    frame: pd.DataFrame, scale: Scale, listed: dict[str, dict[str, list[str]]]
) -> Verdict:
    """P1 states no outcome, so there is none to confirm; what differs surely is named."""
    texts = []
    family = [Pair(arm=name, baseline=DEFAULT) for changes in listed.values() for name in changes]
    differences = compare_all(frame, family)
    for component, changes in listed.items():
        found = {name: differences[Pair(arm=name, baseline=DEFAULT)] for name in changes}
        if any(difference.num_pairs < 2 for difference in found.values()):
            return Verdict(
                claim="P1-15",
                verdict=COMPONENTS_RULE.decide(whole=False),
                rule=COMPONENTS_RULE.words,
                sentence=f"At {scale} scale, runs of {component} are missing.",
            )
        texts.append(f"{component}: {_surely(found)}")
    return Verdict(
        claim="P1-15",
        verdict=COMPONENTS_RULE.decide(whole=True),
        sentence=f"Changes of the loss against the defaults at {scale} scale that are surely "
        f"not 0: {'; '.join(texts)} (nats). The paper states no outcome.",
        rule=COMPONENTS_RULE.words,
        paper="15 components, no outcome",
        ours="; ".join(texts),
    )


def _surely(found: dict[str, Difference]) -> str:
    sure = [f"{name} {d.mean:+.3f}" for name, d in found.items() if excludes_zero(d)]
    return ", ".join(sure) or "none"
