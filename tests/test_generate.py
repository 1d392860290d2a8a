"""Generation against the uncached forward pass, and its sampling against exact probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import muonlab.generate
from muonlab.data import TrainBPE
from muonlab.generate import GenerateOptions, generate, generate_text
from muonlab.model import LanguageModel, ModelConfig
from muonlab.model.attention import MHLAConfig, MHSAConfig, MLAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoE, MoEConfig

VOCAB = 97
GREEDY = GenerateOptions(max_new_tokens=12, temperature=0)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8], [9, 7, 9, 3]]


def tiny_model(**changes) -> LanguageModel:
    fields = {
        "vocab_size": VOCAB,
        "dim": 32,
        "num_layers": 2,
        "max_length": 32,
        "attention": MHSAConfig(num_heads=4, num_kv_heads=2),
        "ffn": MoEConfig(hidden_dim=24, num_experts=4, gated=True, num_shared_experts=1),
        "init_std": 0.3,
    }
    return ModelConfig(**(fields | changes)).build(seed=0)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def run(
    model: LanguageModel,
    prompts: list[list[int]],
    options: GenerateOptions,
    eot_id: int | None = None,
) -> list[list[int]]:
    """The new tokens of every row."""
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate(model, prompts, options, eot_id):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows


def run_uncached(model: LanguageModel, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_greedy_equals_the_uncached_forward_pass(model, chunk, monkeypatch):
    monkeypatch.setattr(muonlab.generate, "PREFILL_CHUNK", chunk)
    expected = [run_uncached(model, prompt, 12) for prompt in PROMPTS]
    assert run(model, PROMPTS, GREEDY) == expected


def test_a_dense_model_generates_in_bf16():
    half = tiny_model(ffn=DenseConfig(hidden_dim=64))
    half.compute_dtype = torch.bfloat16
    rows = run(half, PROMPTS, GREEDY)
    assert [len(row) for row in rows] == [12, 12, 12]


@pytest.mark.parametrize(
    "attention",
    [MHSAConfig(num_heads=4), MLAConfig(num_heads=4, qk_norm=True), MLAConfig(kv_rank=20)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_weights_cast_once_give_what_casting_at_every_step_gives(attention, batch):
    tokens = torch.randint(VOCAB, (batch, 9), generator=torch.Generator().manual_seed(0))
    each_step, once = tiny_model(attention=attention), tiny_model(attention=attention)
    each_step.compute_dtype = torch.bfloat16
    once.for_inference(torch.bfloat16)
    logits = []
    for model in (each_step.eval(), once):
        state = model.new_state(batch, 9)
        model.decode(tokens[:, :8], state)
        logits.append(model.decode(tokens[:, 8:], state))
    assert torch.equal(logits[0], logits[1])


@torch.no_grad()
def test_one_token_reads_the_weights_of_its_own_experts_only():
    layer = tiny_model().layers()[0].ffn
    assert isinstance(layer, MoE)
    token = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    expected, report = layer(token)
    idle = report.tokens_per_expert == 0
    assert idle.sum() == 2
    layer.expand[idle] = float("nan")
    layer.out[idle] = float("nan")
    torch.testing.assert_close(layer.decode(token), expected)


@pytest.mark.filterwarnings("ignore:attention kind mhla is not causal")
def test_attention_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match="mhla"):
        generate(tiny_model(attention=MHLAConfig(num_heads=4)), PROMPTS, GREEDY)


def test_a_row_ends_at_end_of_text(model):
    whole = run(model, PROMPTS, GREEDY)
    eot_id = whole[0][4]
    for full, ended in zip(whole, run(model, PROMPTS, GREEDY, eot_id), strict=True):
        expected = full[: full.index(eot_id)] if eot_id in full else full
        assert ended == expected


def test_generation_stops_when_every_row_has_ended(model):
    first = run(model, PROMPTS[:1], GREEDY)[0][0]
    assert list(generate(model, PROMPTS[:1], GREEDY, eot_id=first)) == []


def test_a_row_draws_the_same_alone_and_in_a_batch(model):
    options = GenerateOptions(max_new_tokens=12, temperature=1.3, top_p=0.9, seed=5)
    batch = run(model, PROMPTS, options)
    for row, prompt in enumerate(PROMPTS):
        alone = GenerateOptions(max_new_tokens=12, temperature=1.3, top_p=0.9, seed=5 + row)
        assert run(model, [prompt], alone) == [batch[row]]


def test_the_seed_decides(model):
    options = [GenerateOptions(max_new_tokens=12, temperature=2.0, seed=s) for s in (0, 0, 1)]
    first, again, other = (run(model, PROMPTS[:1], option) for option in options)
    assert first == again
    assert first != other


@settings(max_examples=30)
@given(
    top_k=st.none() | st.integers(1, 9),
    top_p=st.floats(0.05, 1.0),
    temperature=st.floats(0.3, 3.0),
    seed=st.integers(0, 1000),
)
def test_drawn_frequencies_are_those_of_the_truncated_distribution(top_k, top_p, temperature, seed):
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)) * 2
    options = GenerateOptions(top_k=top_k, top_p=top_p, temperature=temperature)
    order = sorted(range(8), key=lambda token: -logits[0, token])[:top_k]
    weights = [(logits[0, token].double() / temperature).exp().item() for token in order]
    kept, mass = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if mass / sum(weights) < top_p:
            kept.append((token, weight))
            mass += weight
    expected = torch.zeros(8, dtype=torch.float64)
    for token, weight in kept:
        expected[token] = weight / mass

    draws = 2000
    generators = [torch.Generator().manual_seed(seed)] * draws
    picked = muonlab.generate._choose(logits.expand(draws, -1), options, generators)
    frequencies = picked.bincount(minlength=8) / draws
    assert torch.allclose(frequencies.double(), expected, atol=0.06)
    assert set(picked.tolist()) <= {token for token, _ in kept}


def test_streamed_text_is_the_decoded_continuation_and_never_half_a_character():
    tokenizer = TrainBPE(vocab_size=300).build(["naïve café 日本語 😀 plain words"] * 20)
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_length=128)
    options = GenerateOptions(max_new_tokens=100, temperature=1.5)
    prompts = ["plain", "caf"]
    steps = list(generate_text(model, tokenizer, prompts, options))
    text = ["".join(row) for row in zip(*steps, strict=True)]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    for row, new in enumerate(run(model, ids, options, tokenizer.eot_id)):
        whole = tokenizer.decode(ids[row] + new)
        assert whole.startswith(prompts[row] + text[row])
        assert set(whole[len(prompts[row] + text[row]) :]) <= {"\ufffd"}


def test_generation_leaves_training_mode_as_it_was(model):
    trainable = tiny_model(dropout=0.5)
    trainable.train()
    assert run(trainable, PROMPTS, GREEDY) == run(model, PROMPTS, GREEDY)
    assert trainable.training


def test_extended_positions_equal_a_model_built_longer():
    short, long = tiny_model(max_length=16), tiny_model(max_length=64)
    options = GenerateOptions(max_new_tokens=20, temperature=0, extend=True)
    with pytest.warns(UserWarning, match="position 30; the model was trained for 16"):
        extended = run(short, PROMPTS, options)
    assert extended == run(long, PROMPTS, options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts"),
        ([[1], []], "prompt 1 is empty"),
        ([[1, VOCAB]], f"prompt 0 has token {VOCAB}; the vocabulary is 0 to {VOCAB - 1}"),
        ([[-1]], "prompt 0 has token -1"),
        ([[1] * 40], "a prompt of 40 and 12 new tokens need 51 positions.*trained for 32"),
    ],
)
def test_bad_prompts_are_refused_in_one_line(model, prompts, message):
    with pytest.raises(ValueError, match=message) as error:
        generate(model, prompts, GREEDY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
    ],
)
def test_bad_options_are_refused_by_name(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name} is {field[name]}; it must"):
        GenerateOptions(**field)
