"""Which `transformers` class computes a model, and that class's configuration, both ways."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from muonlab.errors import UserError
from muonlab.model import ModelConfig
from muonlab.model.attention import MHSAConfig, MLAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig


class ExportError(UserError):
    """A model that cannot leave for Hugging Face, or come back, in one line that says why."""


@dataclass(frozen=True, slots=True)
class Family:
    """One causal language model class of `transformers` and how it names its tensors."""

    name: str
    model_type: str
    moe_module: str = "mlp"
    expert_matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")

    @property
    def architecture(self) -> str:
        return f"{self.name}ForCausalLM"


LLAMA = Family("Llama", "llama")
ARCEE = Family("Arcee", "arcee")  # Llama with a feed-forward of two matrices
QWEN3 = Family("Qwen3", "qwen3")
MIXTRAL = Family("Mixtral", "mixtral", "block_sparse_moe", ("w1", "w3", "w2"))
QWEN3_MOE = Family("Qwen3Moe", "qwen3_moe")
DEEPSEEK = Family("DeepseekV3", "deepseek_v3")
FAMILIES = {
    family.model_type: family for family in (LLAMA, ARCEE, QWEN3, MIXTRAL, QWEN3_MOE, DEEPSEEK)
}


def family_of(config: ModelConfig) -> Family:
    """The class that computes this model exactly; raises ExportError with the reasons."""
    if config.scale_embedding:
        raise ExportError("scale_embedding is True; no class of this export scales embeddings")
    if isinstance(config.attention, MLAConfig):
        obstacles = _latent_obstacles(config, config.attention)
    elif not isinstance(config.attention, MHSAConfig):
        raise ExportError(f"attention is {config.attention.kind!r}; no transformers class has it")
    elif isinstance(config.ffn, DenseConfig):
        obstacles = _dense_obstacles(config, config.attention, config.ffn)
    else:
        obstacles = _moe_obstacles(config.attention, config.ffn)
    for family, reasons in obstacles.items():
        if not reasons:
            return family
    listed = "; ".join(
        f"{family.name} needs {', '.join(reasons)}" for family, reasons in obstacles.items()
    )
    raise ExportError(f"no transformers class computes this model: {listed}")


def _dense_obstacles(
    config: ModelConfig, attention: MHSAConfig, ffn: DenseConfig
) -> dict[Family, list[str]]:
    plain = {
        "qk_norm=False": not attention.qk_norm,
        "a dim that num_heads divides": config.dim % attention.num_heads == 0,
    }
    return {
        LLAMA: _unmet({"gated=True": ffn.gated, **plain}),
        ARCEE: _unmet({"gated=False": not ffn.gated, **plain}),
        QWEN3: _unmet({"gated=True": ffn.gated, "qk_norm=True": attention.qk_norm}),
    }


def _moe_obstacles(attention: MHSAConfig, ffn: MoEConfig) -> dict[Family, list[str]]:
    both = {
        "gated=True": ffn.gated,
        "gate='softmax'": ffn.gate == "softmax",
        "num_shared_experts=0": ffn.num_shared_experts == 0,
        "balancing without a selection bias": ffn.balancing != "bias",
        "routed_scale=1": ffn.routed_scale == 1,
    }
    return {
        MIXTRAL: _unmet(
            {
                "qk_norm=False": not attention.qk_norm,
                "normalize_gates=True": ffn.normalize_gates,
                "every=1": ffn.every == 1,
                **both,
            }
        ),
        QWEN3_MOE: _unmet({"qk_norm=True": attention.qk_norm, **both}),
    }


def _latent_obstacles(config: ModelConfig, attention: MLAConfig) -> dict[Family, list[str]]:
    ffn = config.ffn
    needs = {
        "qk_norm=False": not attention.qk_norm,
        "norm_eps=1e-06": config.norm_eps == 1e-6,  # that of the latent's norm is fixed
        "gated=True": ffn.gated,
    }
    if isinstance(ffn, MoEConfig):
        needs |= {
            "gate='sigmoid'": ffn.gate == "sigmoid",
            "num_shared_experts of at least 1": ffn.num_shared_experts > 0,
            "num_experts of at least 2": ffn.num_experts > 1,
            "every=1": ffn.every == 1,
        }
    return {DEEPSEEK: _unmet(needs)}


def _unmet(requirements: Mapping[str, bool]) -> list[str]:
    return [need for need, met in requirements.items() if not met]


def to_hf(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The content of ``config.json``, without token ids and dtype."""
    attention, ffn = config.attention, config.ffn
    assert isinstance(attention, (MHSAConfig, MLAConfig))  # family_of refuses the others
    fields: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_head,
        "initializer_range": config.init_std,
        "hidden_act": ffn.activation,
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "rope_theta": attention.rope_base,
        "num_attention_heads": attention.num_heads,
    }
    width = attention.width_of_head(config.dim)
    if isinstance(attention, MHSAConfig):
        fields |= {"num_key_value_heads": attention.kv_heads(), "head_dim": width}
    else:
        fields |= {
            "num_key_value_heads": attention.num_heads,
            "kv_lora_rank": attention.kv_rank,
            "q_lora_rank": attention.query_rank,
            "qk_nope_head_dim": width,
            "qk_rope_head_dim": attention.rope_dim,
            "v_head_dim": width,
            "rope_interleave": False,
            "num_nextn_predict_layers": 0,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 0 if isinstance(ffn, MoEConfig) else config.num_layers,
        }
    if isinstance(ffn, DenseConfig):
        return fields | {"intermediate_size": ffn.hidden_dim}
    fields |= {
        "num_experts_per_tok": ffn.top_k,
        "router_aux_loss_coef": _rounded(
            ffn.auxiliary_coefficient / _of_one_layer(ffn, config.num_layers)
        ),
    }
    if family is MIXTRAL:
        return fields | {"num_local_experts": ffn.num_experts, "intermediate_size": ffn.hidden_dim}
    fields |= {
        "moe_intermediate_size": ffn.hidden_dim,
        "intermediate_size": ffn.dense_hidden_dim(),
        "norm_topk_prob": ffn.normalize_gates,
    }
    if family is DEEPSEEK:
        return fields | {
            "n_routed_experts": ffn.num_experts,
            "n_shared_experts": ffn.num_shared_experts,
            "routed_scaling_factor": ffn.routed_scale,
        }
    return fields | {"num_experts": ffn.num_experts, "decoder_sparse_step": ffn.every}


def _of_one_layer(ffn: MoEConfig, num_layers: int) -> float:
    """Our balancing coefficient over Hugging Face's, for the same pressure on balanced layers.

    Ours adds up E·Σ fᵢPᵢ over the layers, with shares fᵢ that add up to 1; theirs takes it once,
    over the tokens of all layers, with counts fᵢ that add up to the K experts of a token.
    """
    return ffn.top_k / max(1, sum(ffn.is_moe_layer(layer) for layer in range(num_layers)))


def _rounded(coefficient: float) -> float:
    return float(f"{coefficient:.12g}")  # so that export and import give back the same number


# what our models do not have: (key, the only legal value)
ABSENT = (
    ("attention_bias", False),
    ("mlp_bias", False),
    ("rope_scaling", None),
    ("use_sliding_window", False),
    ("mlp_only_layers", []),
    ("rope_interleave", False),
    ("n_group", 1),
    ("topk_group", 1),
)


def from_hf(fields: Mapping[str, Any], name: str) -> tuple[ModelConfig, Family]:
    """Our config of a ``config.json``; ``name`` stands in the error."""
    family = FAMILIES.get(fields.get("model_type", ""))
    if family is None:
        legal = ", ".join(FAMILIES)
        raise ExportError(
            f"{name}: model_type is {fields.get('model_type')!r}; expected one of {legal}"
        )
    for key, legal in ABSENT:
        if fields.get(key, legal) not in (legal, None):
            raise ExportError(f"{name}: {key} is {fields[key]!r}; only {legal!r} can be imported")
    try:
        config = ModelConfig(
            vocab_size=fields["vocab_size"],
            dim=fields["hidden_size"],
            num_layers=fields["num_hidden_layers"],
            max_length=fields["max_position_embeddings"],
            attention=_attention_from_hf(fields, family, name),
            ffn=_ffn_from_hf(fields, family, name),
            tie_head=fields["tie_word_embeddings"],
            dropout=fields["attention_dropout"],
            norm_eps=fields["rms_norm_eps"],
            init_std=fields["initializer_range"],
        )
    except KeyError as error:
        raise ExportError(f"{name}: {error.args[0]} is missing") from None
    return config, family


def _attention_from_hf(
    fields: Mapping[str, Any], family: Family, name: str
) -> MHSAConfig | MLAConfig:
    heads = fields["num_attention_heads"]
    if family is DEEPSEEK:
        width = fields["qk_nope_head_dim"]
        if fields["v_head_dim"] != width:
            raise ExportError(f"{name}: v_head_dim is {fields['v_head_dim']}; expected {width}")
        return MLAConfig(
            num_heads=heads,
            kv_rank=fields["kv_lora_rank"],
            query_rank=fields["q_lora_rank"],
            head_dim=None if width * heads == fields["hidden_size"] else width,
            rope_dim=fields["qk_rope_head_dim"],
            rope_base=_rope_base(fields, name),
        )
    kv_heads = fields.get("num_key_value_heads") or heads
    head_dim = fields.get("head_dim") or fields["hidden_size"] // heads  # absent or null: derived
    return MHSAConfig(
        num_heads=heads,
        num_kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_dim * heads == fields["hidden_size"] else head_dim,
        rope_base=_rope_base(fields, name),
        qk_norm=family in (QWEN3, QWEN3_MOE),
    )


def _rope_base(fields: Mapping[str, Any], name: str) -> float:
    rope = fields.get("rope_parameters")  # transformers 5 writes this, 4 wrote rope_theta
    if rope is None:
        return fields["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        raise ExportError(f"{name}: rope_type is {rope['rope_type']!r}; expected 'default'")
    return rope["rope_theta"]


def _ffn_from_hf(fields: Mapping[str, Any], family: Family, name: str) -> DenseConfig | MoEConfig:
    dense_layers = fields.get("first_k_dense_replace", 0)
    if dense_layers not in (0, fields["num_hidden_layers"]):
        raise ExportError(f"{name}: first_k_dense_replace is {dense_layers}; expected 0 or all")
    if family in (LLAMA, ARCEE, QWEN3) or dense_layers:
        return DenseConfig(
            hidden_dim=fields["intermediate_size"],
            activation=fields["hidden_act"],
            gated=family is not ARCEE,
        )
    if family is DEEPSEEK:
        return MoEConfig(
            hidden_dim=fields["moe_intermediate_size"],
            activation=fields["hidden_act"],
            gated=True,
            num_experts=fields["n_routed_experts"],
            top_k=fields["num_experts_per_tok"],
            num_shared_experts=fields["n_shared_experts"],
            gate="sigmoid",
            normalize_gates=fields["norm_topk_prob"],
            routed_scale=fields["routed_scaling_factor"],
            balancing="bias",
        )
    mixtral = family is MIXTRAL
    # transformers 5 saves every family's count under Mixtral's name
    num_experts = "num_local_experts" if "num_local_experts" in fields else "num_experts"
    ours = MoEConfig(
        hidden_dim=fields["intermediate_size" if mixtral else "moe_intermediate_size"],
        activation=fields["hidden_act"],
        gated=True,
        num_experts=fields[num_experts],
        top_k=fields["num_experts_per_tok"],
        normalize_gates=mixtral or fields["norm_topk_prob"],
        every=1 if mixtral else fields["decoder_sparse_step"],
    )
    ratio = _of_one_layer(ours, fields["num_hidden_layers"])
    return replace(ours, auxiliary_coefficient=_rounded(fields["router_aux_loss_coef"] * ratio))
