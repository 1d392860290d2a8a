"""The same weights give the same logits in Hugging Face's models."""

from typing import Any, cast

import pytest
import torch
from on_device import placed
from torch import Tensor

from muonlab.model import LanguageModel, ModelConfig
from muonlab.model.attention import MHSAConfig, MLAConfig
from muonlab.model.ffn import DenseConfig, FeedForward
from muonlab.model.moe import MoE, MoEConfig

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("on_device")

V, D, T = 61, 32, 19
SHAPES = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "attn_implementation": "eager",
}


def spread(model: LanguageModel) -> LanguageModel:
    """Larger weights than at initialisation, norms off 1, so that nothing hides."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return placed(model).eval()


def common_weights(model: LanguageModel) -> dict[str, Tensor]:
    state = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.layers()):
        state[f"model.layers.{i}.input_layernorm.weight"] = block.attention_norm.weight
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = block.ffn_norm.weight
    return state


def mhsa_weights(model: LanguageModel) -> dict[str, Tensor]:
    state = {}
    for i, block in enumerate(model.layers()):
        attention: Any = block.attention
        kv = attention.num_kv_heads * attention.head_dim
        parts = attention.qkv.weight.split((attention.num_heads * attention.head_dim, kv, kv))
        prefix = f"model.layers.{i}.self_attn"
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            state[f"{prefix}.{name}.weight"] = part
        state[f"{prefix}.o_proj.weight"] = attention.out.weight
    return state


def their_logits(theirs, state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    placed(theirs)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    with torch.no_grad():
        return theirs.eval()(tokens).logits


def model_config(attention, ffn) -> ModelConfig:
    return ModelConfig(
        vocab_size=V, dim=D, num_layers=2, max_length=64, attention=attention, ffn=ffn,
        tie_head=False,
    )  # fmt: skip


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_dense_model_equals_llama(kv_heads: int):
    config = model_config(
        MHSAConfig(num_heads=4, num_kv_heads=kv_heads), DenseConfig(hidden_dim=40, gated=True)
    )
    model = spread(config.build(0))
    state = common_weights(model) | mhsa_weights(model)
    for i, block in enumerate(model.layers()):
        ffn: Any = block.ffn
        gate, up = ffn.expand.weight.chunk(2)
        state[f"model.layers.{i}.mlp.gate_proj.weight"] = gate
        state[f"model.layers.{i}.mlp.up_proj.weight"] = up
        state[f"model.layers.{i}.mlp.down_proj.weight"] = ffn.out.weight
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SHAPES, num_key_value_heads=kv_heads, intermediate_size=40)
    )
    tokens = torch.randint(V, (3, T))
    expected = their_logits(theirs, state, tokens)
    torch.testing.assert_close(model.logits(tokens), expected, rtol=1e-5, atol=1e-5)
    rotary = theirs.model.rotary_emb
    x = torch.randn(3, T, D)
    their_attention = theirs.model.layers[0].self_attn
    mask = torch.full((T, T), -torch.inf).triu(1)
    with torch.no_grad():
        expected, _ = their_attention(
            x, position_embeddings=rotary(x, torch.arange(T)[None]), attention_mask=mask
        )
        actual = model.layers()[0].attention(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_moe_model_equals_mixtral():
    config = model_config(
        MHSAConfig(num_heads=4, num_kv_heads=2),
        MoEConfig(hidden_dim=24, num_experts=5, gated=True),
    )
    model = spread(config.build(0))
    state = common_weights(model) | mhsa_weights(model)
    for i, block in enumerate(model.layers()):
        prefix, ffn = f"model.layers.{i}.mlp", cast(MoE, block.ffn)
        state[f"{prefix}.gate.weight"] = ffn.router.weight
        state[f"{prefix}.experts.gate_up_proj"] = ffn.expand
        state[f"{prefix}.experts.down_proj"] = ffn.out
    theirs = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **SHAPES,
            num_key_value_heads=2,
            intermediate_size=24,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=None,
        )
    )
    tokens = torch.randint(V, (3, T))
    expected = their_logits(theirs, state, tokens)
    torch.testing.assert_close(model.logits(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("query_rank", [None, 12])
def test_mla_model_equals_deepseek_v3(query_rank: int | None):
    H, R, N, P, F = 4, 10, 8, 6, 24
    attention = MLAConfig(num_heads=H, kv_rank=R, query_rank=query_rank, rope_dim=P)
    ffn = MoEConfig(
        hidden_dim=F,
        num_experts=5,
        gated=True,
        gate="sigmoid",
        balancing="bias",
        num_shared_experts=2,
        routed_scale=1.5,
    )
    model = spread(model_config(attention, ffn).build(0))
    state = common_weights(model)
    for i, block in enumerate(model.layers()):
        ours: Any = block.attention
        experts = cast(MoE, block.ffn)
        experts.selection_bias.copy_(torch.randn(5))
        keys, values = ours.kv_up.weight.view(2, H, N, R)
        shared_gate, shared_up = cast(FeedForward, experts.shared).expand.weight.chunk(2)
        theirs = {
            "self_attn.kv_a_proj_with_mqa.weight": ours.kv_down.weight,
            "self_attn.kv_a_layernorm.weight": ours.latent_norm.weight,
            "self_attn.kv_b_proj.weight": torch.cat((keys, values), dim=1).flatten(0, 1),
            "self_attn.o_proj.weight": ours.out.weight,
            "mlp.gate.weight": experts.router.weight,
            "mlp.gate.e_score_correction_bias": experts.selection_bias,
            "mlp.experts.gate_up_proj": experts.expand,
            "mlp.experts.down_proj": experts.out,
            "mlp.shared_experts.gate_proj.weight": shared_gate,
            "mlp.shared_experts.up_proj.weight": shared_up,
            "mlp.shared_experts.down_proj.weight": cast(FeedForward, experts.shared).out.weight,
        }
        if query_rank is None:
            theirs["self_attn.q_proj.weight"] = ours.query.weight
        else:
            theirs["self_attn.q_a_proj.weight"] = ours.query[0].weight
            theirs["self_attn.q_a_layernorm.weight"] = ours.query[1].weight
            theirs["self_attn.q_b_proj.weight"] = ours.query[2].weight
        state |= {f"model.layers.{i}.{name}": value for name, value in theirs.items()}
    model_of_theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **SHAPES,
            num_key_value_heads=H,
            kv_lora_rank=R,
            q_lora_rank=query_rank,
            qk_rope_head_dim=P,
            qk_nope_head_dim=N,
            v_head_dim=N,
            rope_interleave=False,
            moe_intermediate_size=F,
            n_routed_experts=5,
            num_experts_per_tok=2,
            n_shared_experts=2,
            routed_scaling_factor=1.5,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=0,
            num_mtp_layers=0,
        )
    )
    tokens = torch.randint(V, (3, T))
    expected = their_logits(model_of_theirs, state, tokens)
    torch.testing.assert_close(model.logits(tokens), expected, rtol=1e-5, atol=1e-5)
