"""The native kernels against the formulas in float64, and against torch's way through a model."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from muonlab.generate import GenerateOptions, generate
from muonlab.model import ModelConfig, native
from muonlab.model.attention import MLAConfig
from muonlab.model.moe import MoEConfig

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture
def kernels() -> Iterator[None]:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    assert native.enable()
    with torch.inference_mode():
        yield
    native.enable(False)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("heads", [3, 8, 11])
@pytest.mark.parametrize(("width", "rank"), [(16, 16), (64, 48), (256, 96)])
@pytest.mark.parametrize("lengths", [[1], [64], [300], [65, 1, 2, 128, 63, 127, 130]])
def test_attention_over_latents(
    dtype: torch.dtype, heads: int, width: int, rank: int, lengths: list[int]
):
    torch.manual_seed(0)
    cache = torch.randn(len(lengths), 310, width).to(dtype)
    queries = (torch.randn(len(lengths), heads, width) * 3 / width**0.5).to(dtype)
    queries[0] *= 5  # few tokens take all
    mixed = native.attend_latents(queries, cache, lengths, rank)
    for row, length in enumerate(lengths):
        tokens = cache[row, :length].double()
        expected = (queries[row].double() @ tokens.T).softmax(-1) @ tokens[:, :rank]
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(
            mixed[row].double(), expected, rtol=tolerance, atol=10 * tolerance
        )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (33, 64), (100, 130)])
def test_products_with_one_vector(rows: int, columns: int):
    torch.manual_seed(0)
    weight = torch.randn(rows, columns).bfloat16()
    x = torch.randn(columns).bfloat16()
    expected = weight.double() @ x.double()
    out = native.matvec(weight, x)
    assert torch.equal(out, expected.float().bfloat16()) or torch.allclose(
        out.double(), expected, rtol=8e-3, atol=1e-5
    )
    native.add_matvec(out, weight, x, -0.5)
    torch.testing.assert_close(out.double(), expected / 2, rtol=2e-2, atol=1e-2)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(dtype: torch.dtype, weighted: bool):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 40).to(dtype)[..., 4:]  # rows that do not lie together
    weight = torch.randn(36) if weighted else None
    wide = None if weight is None else weight.double()
    expected = torch.nn.functional.rms_norm(x.double(), (36,), wide, 1e-6)
    out = native.rms_norm(x, weight, 1e-6)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
    )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("prompts", [[[5, 6, 7]], [[1, 2, 3, 4], [9], [7, 7]]])
def test_a_model_continues_as_with_torch(prompts: list[list[int]]):
    config = ModelConfig(
        vocab_size=50,
        dim=64,
        num_layers=3,
        max_length=40,
        attention=MLAConfig(num_heads=4, kv_rank=16, rope_dim=16),
        ffn=MoEConfig(hidden_dim=48, gated=True, num_experts=4, num_shared_experts=1),
        init_std=0.2,
    )
    options = GenerateOptions(max_new_tokens=30, temperature=0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model = config.build(seed=0).for_inference(dtype)
        logits = []
        for on in (False, True):
            assert native.enable(on) == on
            state = model.new_state(len(prompts), 8)
            longest = max(map(len, prompts))
            padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
            model.decode(padded, state, [len(prompt) for prompt in prompts])
            logits.append(model.decode(torch.full((len(prompts), 1), 3), state))
        torch.testing.assert_close(logits[1], logits[0], rtol=tolerance, atol=tolerance)
    model = config.build(seed=0).for_inference(torch.float32)
    continuations = []
    for on in (False, True):
        native.enable(on)
        continuations.append(list(generate(model, prompts, options)))
    assert continuations[0] == continuations[1]


@pytest.mark.usefixtures("kernels")
def test_what_is_trained_or_too_wide_is_left_to_torch():
    assert not native.serves_latents(torch.zeros(1, 1, 272), 256)
    assert not native.serves_latents(torch.zeros(1, 1, 24), 16)
    assert not native.serves(torch.zeros(1, dtype=torch.float64))
    with torch.inference_mode(False), torch.enable_grad():
        assert not native.serves(torch.zeros(1))


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "there is no C[+][+] compiler 'no-such-compiler'"), ("false", "failed")],
)
def test_without_a_compiler_one_line_says_so(
    compiler: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load.cache_clear()
    with pytest.warns(UserWarning, match=reason) as raised:
        assert not native.enable()
    assert "\n" not in str(raised[0].message)
    assert not native.enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.enable(False)
