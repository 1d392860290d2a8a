"""Named runs: typed functions that return a complete `RunConfig`. Nothing else holds defaults.

P1 is arXiv 2509.24406, P2 is Rosić & Umar 2025.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

from muonlab import user_code
from muonlab.config import ConfigError, RunConfig, TrainConfig, read_config
from muonlab.data import (
    DataConfig,
    DocumentSplit,
    HubConfig,
    HubTokenizer,
    LeakyWindowSplit,
    TrainBPE,
)
from muonlab.model import ModelConfig
from muonlab.model.attention import AttentionConfig, MHLAConfig, MHSAConfig, MLAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig
from muonlab.optim.config import P2_MUON, AdamWConfig, MuonConfig
from muonlab.optim.learning_rate import P2Config
from muonlab.spelling import did_you_mean

COSMOPEDIA = HubConfig(name="HuggingFaceTB/smollm-corpus", config="cosmopedia-v2")


def nano() -> RunConfig:
    """Seconds on a CPU: for tests and first looks."""
    return RunConfig(
        name="nano",
        model=ModelConfig(
            vocab_size=512,
            dim=32,
            num_layers=2,
            max_length=64,
            attention=MHSAConfig(num_heads=2),
            ffn=MoEConfig(hidden_dim=64, num_experts=4, gated=True),
        ),
        data=DataConfig(tokenizer=TrainBPE(vocab_size=512), max_documents=20),
        optimizer=MuonConfig(lr=1e-2),
        train=TrainConfig(
            steps=60, batch_size=8, sequence_length=64, evaluate_every=20, checkpoint_every=20
        ),
    )


def small() -> RunConfig:
    """The CPU standard: 5.1M parameters, 1.9M active; one epoch of the builtin corpus."""
    return RunConfig(
        name="small",
        model=ModelConfig(
            vocab_size=4096,
            dim=128,
            num_layers=4,
            max_length=256,
            attention=MHSAConfig(num_heads=4),
            ffn=MoEConfig(hidden_dim=352, num_experts=8, top_k=2, gated=True),
        ),
        optimizer=MuonConfig(lr=0.015, adamw_lr_ratio=5.4),  # results/p1-compute.small
        train=TrainConfig(steps=600, batch_size=16, sequence_length=256, evaluate_every=50),
    )


def small_adamw() -> RunConfig:
    """`small` trained by AdamW at its own tuned learning rates."""
    config = small()
    return RunConfig(
        name=config.name,
        model=config.model,
        optimizer=AdamWConfig(lr=0.0033, other_lr_ratio=30.0),  # results/p1-compute.small
        train=config.train,
    )


def p2() -> RunConfig:
    """P2 as published: 79.06M parameters, leaky split, their schedule and grouping, 250 updates."""
    return _p2("p2", MHSAConfig(num_heads=8))


def p2_mhla() -> RunConfig:
    """P2's latent attention as published (not causal): 81.86M parameters."""
    return _p2("p2_mhla", MHLAConfig(num_heads=8, num_latents=64))


def _p2(name: str, attention: AttentionConfig) -> RunConfig:
    return RunConfig(
        name=name,
        seed=42,
        model=ModelConfig(
            vocab_size=49152,
            dim=384,
            num_layers=6,
            max_length=512,
            attention=attention,
            ffn=MoEConfig(hidden_dim=1536, num_experts=8, top_k=2, router_noise=0.1),
            scale_embedding=True,
            dropout=0.1,
            norm_eps=1.1920928955078125e-07,  # torch's default for fp32, which P2's code takes
            scale_residual_init=False,
        ),
        data=DataConfig(
            source=COSMOPEDIA,
            tokenizer=HubTokenizer(name="HuggingFaceTB/SmolLM-135M"),
            split=LeakyWindowSplit(),
            max_documents=2000,
            max_characters_per_document=3000,
            max_tokens=500_000,
        ),
        optimizer=P2_MUON,
        learning_rate=P2Config(),
        train=TrainConfig(
            steps=250,
            batch_size=96,
            micro_batch_size=24,
            sequence_length=512,
            evaluate_every=125,
            evaluate_batches=100,
            checkpoint_every=125,
        ),
    )


def p1_30m() -> RunConfig:
    """P1's scale: MLA and 8 experts + 1 shared, 30M parameters."""
    return _p1("p1_30m", dim=256, num_layers=6, heads=4, hidden_dim=592)


def p1_60m() -> RunConfig:
    """P1's scale: MLA and 8 experts + 1 shared, 60M parameters."""
    return _p1("p1_60m", dim=384, num_layers=6, heads=8, hidden_dim=832)


def p1_125m() -> RunConfig:
    """P1's scale: MLA and 8 experts + 1 shared, 125M parameters."""
    return _p1("p1_125m", dim=512, num_layers=8, heads=8, hidden_dim=1024)


def p1_200m() -> RunConfig:
    """P1's scale: MLA and 8 experts + 1 shared, 200M parameters."""
    return _p1("p1_200m", dim=640, num_layers=10, heads=10, hidden_dim=1056)


def p1_30m_dense() -> RunConfig:
    """The dense MHSA twin of `p1_30m` with equal total parameters."""
    return _dense_twin(p1_30m())


def p1_60m_dense() -> RunConfig:
    """The dense MHSA twin of `p1_60m` with equal total parameters."""
    return _dense_twin(p1_60m())


def p1_125m_dense() -> RunConfig:
    """The dense MHSA twin of `p1_125m` with equal total parameters."""
    return _dense_twin(p1_125m())


def p1_200m_dense() -> RunConfig:
    """The dense MHSA twin of `p1_200m` with equal total parameters."""
    return _dense_twin(p1_200m())


def _p1(name: str, *, dim: int, num_layers: int, heads: int, hidden_dim: int) -> RunConfig:
    """MLA at r = dim/4, top-2 of 8 SwiGLU experts and a shared one, 131k tokens an update."""
    return RunConfig(
        name=name,
        model=ModelConfig(
            vocab_size=16384,
            dim=dim,
            num_layers=num_layers,
            max_length=1024,
            attention=MLAConfig(num_heads=heads, kv_rank=dim // 4, rope_dim=dim // heads // 2),
            ffn=MoEConfig(
                hidden_dim=hidden_dim,
                num_experts=8,
                top_k=2,
                num_shared_experts=1,
                gated=True,
                gate="sigmoid",  # as in DeepSeek-V3, which the export needs
            ),
        ),
        data=DataConfig(
            source=COSMOPEDIA,
            tokenizer=TrainBPE(vocab_size=16384),
            split=DocumentSplit(validation_fraction=0.005, test_fraction=0.005),
            max_tokens=2_000_000_000,
        ),
        train=TrainConfig(
            steps=10_000,
            batch_size=128,
            micro_batch_size=16,
            sequence_length=1024,
            evaluate_every=500,
            evaluate_batches=64,
            checkpoint_every=500,
        ),
    )


def _dense_twin(config: RunConfig) -> RunConfig:
    """The same width and depth with MHSA and one wide SwiGLU, as many parameters in all."""
    model = config.model
    attention = MHSAConfig(num_heads=model.attention.num_heads)
    total = model.attention.num_parameters(model.dim) + model.ffn.num_parameters(model.dim, 0)
    left = total - attention.num_parameters(model.dim)
    return RunConfig(
        name=f"{config.name}_dense",
        model=ModelConfig(
            vocab_size=model.vocab_size,
            dim=model.dim,
            num_layers=model.num_layers,
            max_length=model.max_length,
            attention=attention,
            ffn=DenseConfig(hidden_dim=left // (3 * model.dim), gated=True),
        ),
        data=config.data,
        train=config.train,
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (
        nano,
        small,
        small_adamw,
        p2,
        p2_mhla,
        p1_30m,
        p1_30m_dense,
        p1_60m,
        p1_60m_dense,
        p1_125m,
        p1_125m_dense,
        p1_200m,
        p1_200m_dense,
    )
}


def recipe(name: str) -> RunConfig:
    """The recipe of that name, the config of a ``.json`` file, or a function of a user's own file.

    ``my_recipes.py:tiny`` calls the function ``tiny`` of that file. Raises ConfigError, or
    UserCodeError for the file.
    """
    file, _, function = name.rpartition(":")
    if file.endswith(".py") or name.endswith(".py"):
        return _own_recipe(Path(file or name), function if file else "")
    if name.endswith(".json"):
        return read_config(Path(name))
    if name not in RECIPES:
        raise ConfigError(
            f"recipe {name!r} is unknown; {did_you_mean(name, RECIPES)}"
            f"legal: {', '.join(RECIPES)}, a .json file, or my_recipes.py:function"
        )
    return RECIPES[name]()


def _own_recipe(path: Path, name: str) -> RunConfig:
    """Call a function of a Python file; a mistake in the file is one line that says where."""
    own = user_code.functions_of(user_code.run_file(path))
    if name not in own:
        raise ConfigError(
            f"{path} has no function {name!r}; {did_you_mean(name, own)}"
            f"name one, as in {path}:recipe; it has: {', '.join(own) or 'none'}"
        )
    with user_code.one_line_errors(f"{path}:{name}", str(path)):
        config = own[name]()
    if not isinstance(config, RunConfig):
        kind = type(config).__name__
        raise ConfigError(f"{path}:{name} returned {kind}; it must return a RunConfig")
    return config


def describe_recipes() -> dict[str, str]:
    """Every recipe's name and one line of purpose."""
    return {name: (inspect.getdoc(make) or "").splitlines()[0] for name, make in RECIPES.items()}
