"""What the papers' studies share: base runs at three scales, optimizers, searches, small changes.

P1 (arXiv 2509.24406): `p1_base`, and the contenders with what is tuned of them.

P2: `p2_base`, its model and its two protocols: the same experiment, smaller.

``paper`` is P2 itself. At ``nano`` and ``small`` every ratio that its results hang on stays: head
count and experts, four hidden widths, eight tokens a latent, updates, dropout, router noise, and in
the published protocol how often the training text is read (24.6 times in 250 updates). The text is
the builtin corpus, the batch is one pass instead of four micro-batches.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from muonlab.config import OptimizerConfig, RunConfig, TrainConfig, changed
from muonlab.data import DataConfig, DocumentSplit, LeakyWindowSplit, TrainBPE
from muonlab.lab import baselines
from muonlab.lab.baselines import (
    ADAMW_RANGE,
    MUON_RANGE,
    RATIO_RANGE,
    documents,
    with_updates,
)
from muonlab.lab.experiment import Label, Protocol, Scale, Search
from muonlab.lab.grid import Changes
from muonlab.model import ModelConfig
from muonlab.model.attention import (
    AttentionConfig,
    CausalMHLAConfig,
    MHLAConfig,
    MHSAConfig,
    MLAConfig,
)
from muonlab.model.moe import MoEConfig
from muonlab.optim.config import P2_MUON, AdamWConfig, MuonConfig
from muonlab.optim.learning_rate import LinearConfig, P2Config
from muonlab.recipes import COSMOPEDIA, p1_125m, p2

UPDATES = 250  # "1000 steps" of P2: it counts micro-batches
ATTENTIONS = ("mhsa", "mhla", "causal_mhla", "mla")
SHORT: dict[Protocol, str] = {"as_published": "published", "honest": "honest"}  # ends arms' names
SEEDS = (0, 1, 2)
LEARNING_RATE = "optimizer.lr"


OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adamw": AdamWConfig(),
    "adamw-groups": AdamWConfig(),  # embeddings and vectors at a rate of their own
    "muon": MuonConfig(),
    "muon-groups": MuonConfig(),
    "placebo": MuonConfig(schedule="kaon"),  # Muon's singular vectors, a scrambled spectrum
}
RANGES = {
    "adamw": ADAMW_RANGE,
    "adamw-groups": ADAMW_RANGE,
    "muon": MUON_RANGE,
    "muon-groups": MUON_RANGE,
    "placebo": MUON_RANGE,
}
RATIOS = {  # the field of the second value, a rate for embeddings and vectors
    "adamw-groups": "optimizer.other_lr_ratio",
    "muon-groups": "optimizer.adamw_lr_ratio",
}
FAIR = {"adamw": "adamw-groups", "muon": "muon-groups"}  # contenders of studies that have but two
FAIR_NOTE = (
    "Both optimizers are tuned for two values, the rate of matrices and the ratio of all others' "
    "to it: with one rate for everything AdamW is a weak baseline, as p1-compute shows."
)


def p1_base(scale: Scale) -> RunConfig:
    """P1's run at that scale, as long as budget 1."""
    if scale == "nano":
        return _p1_nano()
    return with_updates(p1_125m(), 10_000) if scale == "paper" else baselines.base(scale)


def _p1_nano() -> RunConfig:
    """P2's honest run without what disturbs a comparison of optimizers."""
    calm = {"model.dropout": 0.0, "model.ffn.router_noise": 0.0}
    return with_updates(changed(p2_base("nano", "honest"), calm), 300)


def search_of(optimizer: str) -> Search:
    """The learning rate's range, and the ratio's for one with groups."""
    space = {LEARNING_RATE: RANGES[optimizer]}
    if optimizer not in RATIOS:
        return Search(space=space)
    return Search(space=space | {RATIOS[optimizer]: RATIO_RANGE}, trials=9)


def p2_base(scale: Scale, protocol: Protocol, *, updates: int = UPDATES) -> RunConfig:
    """P2's Muon run with MHSA at that scale under that protocol, as long as ``updates``."""
    config = _PUBLISHED[scale]()
    if protocol == "honest":
        config = dataclasses.replace(
            config,
            data=_honest_data(scale, config),
            learning_rate=LinearConfig(),
            train=dataclasses.replace(config.train, evaluate_batches=None),
        )
    return with_updates(config, updates)


def with_batch(config: RunConfig, sequences: int) -> RunConfig:
    """The same run with that many sequences an update."""
    passes = config.train.batch_size // (config.train.micro_batch_size or config.train.batch_size)
    train = dataclasses.replace(
        config.train,
        batch_size=sequences,
        micro_batch_size=sequences // passes if passes > 1 else None,
    )
    return dataclasses.replace(config, train=train)


def with_optimizer(config: RunConfig, optimizer: OptimizerConfig) -> RunConfig:
    return dataclasses.replace(config, optimizer=optimizer)


def with_attention(config: RunConfig, attention: AttentionConfig) -> RunConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention=attention))


def attention(kind: str, config: RunConfig, num_latents: int | None = None) -> AttentionConfig:
    """An attention of that kind with the heads and width of ``config``'s model.

    Latents: one for eight tokens, as P2's 64 for 512, unless told otherwise.
    """
    model = config.model
    heads, latents = model.attention.num_heads, num_latents or config.train.sequence_length // 8
    chunk = min(128, config.train.sequence_length // 4)
    return {
        "mhsa": MHSAConfig(num_heads=heads),
        "mhla": MHLAConfig(num_heads=heads, num_latents=latents),
        "causal_mhla": CausalMHLAConfig(num_heads=heads, num_latents=latents, chunk=chunk),
        "mla": MLAConfig(num_heads=heads, kv_rank=model.dim // 4, rope_dim=model.dim // heads // 2),
    }[kind]


def attentions(*kinds: str) -> dict[Label, Changes]:
    """Levels of a factor: every kind as `attention` makes it."""
    return {kind: _with_kind(kind) for kind in kinds}


def _with_kind(kind: str) -> Callable[[RunConfig], RunConfig]:
    return lambda config: with_attention(config, attention(kind, config))


def _scaled(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    length: int,
    batch: int,
    dtype: Literal["fp32", "bf16"],
) -> Callable[[], RunConfig]:
    """The dtype is settled here: timing it anew for each run could part a pair of arms."""

    def make() -> RunConfig:
        corpus_tokens = round(batch * length * UPDATES / 24.6)
        return RunConfig(
            model=ModelConfig(
                vocab_size=vocab_size,
                dim=dim,
                num_layers=num_layers,
                max_length=length,
                attention=MHSAConfig(num_heads=4),
                ffn=MoEConfig(hidden_dim=4 * dim, num_experts=8, top_k=2, router_noise=0.1),
                scale_embedding=True,
                dropout=0.1,
                scale_residual_init=False,
            ),
            data=DataConfig(
                tokenizer=TrainBPE(vocab_size=vocab_size),
                split=LeakyWindowSplit(),
                max_characters_per_document=3000,
                max_tokens=corpus_tokens,
            ),
            optimizer=P2_MUON,
            learning_rate=P2Config(),
            train=TrainConfig(
                batch_size=batch, sequence_length=length, dtype=dtype, evaluate_batches=10
            ),
        )

    return make


_PUBLISHED: dict[Scale, Callable[[], RunConfig]] = {
    "nano": _scaled(vocab_size=512, dim=64, num_layers=2, length=128, batch=12, dtype="fp32"),
    "small": _scaled(vocab_size=4096, dim=128, num_layers=4, length=256, batch=12, dtype="bf16"),
    "paper": p2,
}


def _honest_data(scale: Scale, config: RunConfig) -> DataConfig:
    if scale == "paper":
        return DataConfig(
            source=COSMOPEDIA,
            tokenizer=config.data.tokenizer,
            split=DocumentSplit(validation_fraction=0.005, test_fraction=0.005),
            max_tokens=200_000_000,
        )
    return documents(config.data.tokenizer)
