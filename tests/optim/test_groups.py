import re
from typing import Any

import pytest
import torch
from torch import nn

from muonlab.optim import Muon, build_groups, describe_groups, format_groups
from muonlab.optim.config import P2_MUON

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def llama(tied):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, tie_word_embeddings=tied)
    )


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    )


def deepseek():
    return transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            moe_intermediate_size=16,
            first_k_dense_replace=1,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            kv_lora_rank=8,
            q_lora_rank=12,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
        )
    )


def plain_transformer():
    return nn.Sequential(
        nn.Embedding(96, 32),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2
        ),
        nn.Linear(32, 96),
    )


MODELS = {
    "llama tied": lambda: llama(True),
    "llama untied": lambda: llama(False),
    "mixtral": mixtral,
    "deepseek": deepseek,
    "nn.Transformer": plain_transformer,
}


def roles_by_name(model, groups):
    return {row["name"]: row for row in describe_groups(model, groups)}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_each_parameter_exactly_once_with_a_reason(build):
    model = build()
    groups = build_groups(model, strict=True)
    placed = [p for group in groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(model.parameters())
    rows = describe_groups(model, groups)
    assert all(row["reason"] for row in rows)
    table = format_groups(rows)
    assert all(row["name"] in table for row in rows)
    for row in rows:
        name = row["name"]
        vocabulary = "embed" in name or "lm_head" in name
        router = name.endswith("gate.weight")
        if vocabulary or router or len(row["shape"]) < 2:
            assert row["algorithm"] == "adamw", row
        elif name != "0.weight" and name != "2.weight":
            assert row["algorithm"] == "muon", row


def test_tied_heads_are_found_by_identity():
    model = llama(True)
    rows = roles_by_name(model, build_groups(model))
    assert "tied" in rows["model.embed_tokens.weight"]["reason"]
    assert "lm_head.weight" not in rows

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(16, 40, bias=False)  # registered before the embedding
            self.first = nn.Embedding(40, 16)
            self.first.weight = self.out.weight

    tied = Tied()
    (group,) = build_groups(tied)
    assert group["algorithm"] == "adamw"
    assert group["params"] == [tied.out.weight]


def test_experts_are_stacks_and_fused_matrices_are_split():
    model = deepseek()
    rows = roles_by_name(model, build_groups(model))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert rows[name]["matrices"] == "8 of 16×32 + 8 of 16×32"
    plain = plain_transformer()
    rows = roles_by_name(plain, build_groups(plain))
    assert rows["1.layers.0.self_attn.in_proj_weight"]["matrices"] == "32×32 + 32×32 + 32×32"
    rows = roles_by_name(plain, build_groups(plain, split_fused=False))
    assert rows["1.layers.0.self_attn.in_proj_weight"]["matrices"] == "96×32"


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_three_lines_train_the_model(build):
    torch.manual_seed(0)
    model = build()
    optimizer = Muon(build_groups(model), lr=3e-3)
    tokens = torch.randint(0, 96, (4, 16))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        out = model(tokens)
        logits = out if isinstance(out, torch.Tensor) else out.logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


class Hooked(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(4, 12, 8))
        self.up = nn.Parameter(torch.randn(12, 6))
        self.latents = nn.Parameter(torch.randn(5, 8))
        self.gain = nn.Parameter(torch.ones(8))
        self._layout = layout

    def muon_layout(self):
        return self._layout


LAYOUT = {
    "experts": {"role": "hidden", "row_blocks": (6, 6), "heads": None},
    "up": {"role": "hidden", "row_blocks": None, "heads": 3},
    "latents": {"role": "latents"},
}


def test_the_hook():
    model = nn.ModuleDict({"block": Hooked(LAYOUT)})
    rows = roles_by_name(model, build_groups(model, strict=True))
    assert rows["block.experts"]["matrices"] == "4 of 6×8 + 4 of 6×8"
    assert rows["block.up"]["matrices"] == "12×6"
    assert rows["block.latents"]["algorithm"] == "adamw"
    groups = build_groups(model, muon_roles=("hidden", "latents"), per_head=True)
    rows = roles_by_name(model, groups)
    assert rows["block.up"]["matrices"] == "3 of 4×6"
    assert rows["block.latents"]["algorithm"] == "muon"


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"expert": {"role": "hidden"}}, "'expert'"),
        ({"up": {"role": "hiden"}}, "'hiden'"),
        ({"up": {"role": "hidden", "rows": 3}}, "'rows'"),
        ({"up": {"role": "hidden", "row_blocks": (5, 5)}}, "do not tile"),
    ],
)
def test_bad_hooks_are_named(layout, message):
    with pytest.raises(ValueError, match=message):
        Muon(build_groups(Hooked(layout)))


def test_unknown_matrices_go_to_adamw_or_are_refused():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))

    model = Custom()
    with pytest.warns(UserWarning, match=r"1 parameters with 100% .* such as matrix"):
        groups = build_groups(model)
    (row,) = describe_groups(model, groups)
    assert row["algorithm"] == "adamw"
    assert row["reason"].startswith("unknown")
    with pytest.raises(ValueError, match="matrix"):
        build_groups(model, strict=True)
    (group,) = build_groups(model, strict=True, roles={"matrix": "hidden"})
    assert group["algorithm"] == "muon"
    (row,) = describe_groups(model, [group], roles={"matrix": "hidden"})
    assert row["reason"] == "hidden: declared by the caller"
    with pytest.raises(ValueError, match="'matrx'"):
        build_groups(model, roles={"matrx": "hidden"})
    with pytest.raises(ValueError, match="'hiden'"):
        build_groups(model, roles={"matrix": "hiden"})


def test_other_module_types():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv1d(8, 8, 3, groups=8),
            "lstm": nn.LSTM(6, 5),
            "narrow": nn.Linear(6, 1),
            "norm": nn.LayerNorm([2, 6]),
            "frozen": nn.Linear(6, 6).requires_grad_(False),
        }
    )
    rows = roles_by_name(model, build_groups(model, strict=True))
    assert rows["conv.weight"]["matrices"] == "8×27"
    assert rows["depthwise.weight"]["algorithm"] == "adamw"  # one row a channel
    assert rows["lstm.weight_ih_l0"]["matrices"] == " + ".join(["5×6"] * 4)
    assert rows["narrow.weight"]["algorithm"] == "adamw"
    assert rows["norm.weight"]["algorithm"] == "adamw"
    assert not any(name.startswith("frozen") for name in rows)


class PublishedModel(nn.Module):
    """The parameters of P2's MHSA model, on the meta device."""

    def __init__(self):
        super().__init__()
        dim, hidden = 384, 1536
        self.embedding = nn.Embedding(49152, dim)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(dim, 3 * dim, bias=False),
                    "out": nn.Linear(dim, dim, bias=False),
                    "router": nn.Linear(dim, 8, bias=False),
                    "up": nn.ModuleList(nn.Linear(dim, hidden, bias=False) for _ in range(8)),
                    "down": nn.ModuleList(nn.Linear(hidden, dim, bias=False) for _ in range(8)),
                    "norm1": nn.RMSNorm(dim),
                    "norm2": nn.RMSNorm(dim),
                }
            )
            for _ in range(6)
        )
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, 49152, bias=False)
        self.head.weight = self.embedding.weight


def test_the_counts_of_p2():
    with torch.device("meta"):
        model = PublishedModel()
    optimizer = P2_MUON.build(model)
    counts = {
        group["algorithm"]: sum(p.numel() for p in group["params"])
        for group in optimizer.param_groups
    }
    assert counts == {"muon": 60_180_480, "adamw": 18_879_360}


# -- models of transformers -----------------------------------------------------------------------

EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "pad_token_id": 0,
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "GptOss": {},
    "Qwen2Moe": {"shared_expert_intermediate_size": 16},
    "Qwen3Next": {
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "Glm4Moe": {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "DeepseekV2": {"n_routed_experts": 4, "first_k_dense_replace": 1, **LATENT},
    "GraniteMoe": {},
    "Phimoe": {},
    "MiniMax": {},
    "HunYuanMoEV1": {"moe_topk": 2},
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0},
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}


EXPERT_MATRICES = {"4 of 16×32", "4 of 32×16", "4 of 48×32", "4 of 32×48", "4 of 96×32"}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family):
    config = getattr(transformers, f"{family}Config")(**SMALL | EXPERTS | FAMILIES[family])
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    rows = describe_groups(model, build_groups(model, strict=True))
    experts = [row for row in rows if row["name"].endswith(("gate_up_proj", "down_proj"))]
    assert len(experts) >= 2
    for row in experts:
        parts = 2 if row["name"].endswith("gate_up_proj") and family != "GptOss" else 1
        assert row["algorithm"] == "muon"
        assert row["matrices"].count("4 of") == parts, row
        assert row["matrices"].split(" + ")[0] in EXPERT_MATRICES
    for row in rows:
        routes = ("router" in row["name"] or ".gate." in row["name"]) and "bias" not in row["name"]
        if routes:
            assert row["algorithm"] == "adamw", row
            assert row["reason"].startswith("router"), row
    attention = [row for row in rows if re.search(r"attn\.[okqv]\w*proj\w*\.weight$", row["name"])]
    assert attention
    assert {row["algorithm"] for row in attention} == {"muon"}


def test_experts_stored_input_first_are_turned():
    config = transformers.GptOssConfig(**SMALL | EXPERTS)
    with torch.device("meta"):
        model = transformers.GptOssForCausalLM(config)
    rows = roles_by_name(model, build_groups(model))
    name = "model.layers.0.mlp.experts"
    assert rows[f"{name}.gate_up_proj"]["matrices"] == "4 of 96×32"
    assert "interleaved" in rows[f"{name}.gate_up_proj"]["reason"]
    assert rows[f"{name}.down_proj"]["matrices"] == "4 of 32×48"
    assert rows[f"{name}.gate_up_proj_bias"]["reason"].startswith("vector")


def test_gpt2_is_under_muon():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    )
    rows = roles_by_name(model, build_groups(model, strict=True))
    assert rows["transformer.h.0.attn.c_attn.weight"]["matrices"] == "32×32 + 32×32 + 32×32"
    assert rows["transformer.h.0.mlp.c_fc.weight"]["matrices"] == "128×32"
    assert rows["transformer.h.0.mlp.c_proj.weight"]["matrices"] == "32×128"
    assert rows["transformer.wte.weight"]["algorithm"] == "adamw"
    optimizer = Muon(build_groups(model), lr=3e-3)
    tokens = torch.randint(0, 96, (4, 16))
    before = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert not torch.equal(model.transformer.h[0].attn.c_attn.weight.detach(), before)


# -- parametrisations, adapters, rates ------------------------------------------------------------


def test_parametrized_weights_follow_their_module():
    from torch.nn.utils.parametrizations import orthogonal, weight_norm

    model = nn.ModuleDict(
        {
            "normed": weight_norm(nn.Linear(6, 8)),
            "conv": weight_norm(nn.Conv1d(3, 8, 5)),
            "orthogonal": orthogonal(nn.Linear(6, 6)),
        }
    )
    rows = roles_by_name(model, build_groups(model, strict=True))
    parts = "parametrizations.weight"
    assert rows[f"normed.{parts}.original1"]["matrices"] == "8×6"
    assert rows[f"normed.{parts}.original0"]["algorithm"] == "adamw"
    assert rows[f"conv.{parts}.original1"]["matrices"] == "8×15"
    assert rows[f"orthogonal.{parts}.original"]["algorithm"] == "muon"


class Adapted(nn.Module):
    """A frozen Linear with low-rank bare parameters, as hand-written adapters have."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(4, 16))
        self.lora_b = nn.Parameter(torch.zeros(16, 4))


def test_bare_adapters_are_pointed_out_and_declared_in_a_line():
    model = Adapted()
    with pytest.warns(UserWarning, match=r"2 parameters with 100% .* such as lora_a"):
        build_groups(model)
    (group,) = build_groups(model, roles={"lora_a": "hidden", "lora_b": "hidden"})
    assert group["algorithm"] == "muon"


def test_rates_and_decays_by_role():
    model = nn.Sequential(
        nn.Embedding(20, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 20)
    )
    groups = build_groups(
        model, rates={"embedding": 0.5, "adamw": 0.25}, decays={"muon": 0.0, "vector": 0.01}
    )
    optimizer = Muon(groups, lr=0.1, weight_decay=0.3)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found == {
        "0.weight": (0.5, 0.3),
        "1.weight": (0.1, 0.0),
        "1.bias": (0.25, 0.01),
        "2.weight": (0.25, 0.01),
        "2.bias": (0.25, 0.01),
        "3.weight": (0.25, 0.3),
        "3.bias": (0.25, 0.01),
    }


@pytest.mark.parametrize("option", ["rates", "decays"])
def test_bad_rates_are_named(option):
    def build(values):
        options: dict[str, Any] = {option: values}
        return build_groups(nn.Linear(4, 4), **options)

    with pytest.raises(ValueError, match=f"{option} 'embeddings' is no role: legal are hidden"):
        build({"embeddings": 0.1})
    with pytest.raises(ValueError, match=rf"{option}\['vector'\] -1"):
        build({"vector": -1})
