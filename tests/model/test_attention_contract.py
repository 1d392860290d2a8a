"""What every attention kind must do; a new member of the union is tested without a new test.

Causality, decoding, batch invariance, gradients, shapes, accounting. A kind that is not causal is
the control: it must fail the causality tests, say so, and refuse to decode.
"""

import itertools
import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import only_on_the_cpu, placed
from torch import Tensor

from muonlab.model import ModelConfig
from muonlab.model.accounting import account
from muonlab.model.attention import (
    AttentionConfig,
    CausalMHLAConfig,
    MHLAConfig,
    MHSAConfig,
    MLAConfig,
    PrefixMHLAConfig,
)
from muonlab.model.cache import Chunk
from muonlab.model.ffn import DenseConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:attention kind mhla is not causal"),
    pytest.mark.usefixtures("on_device"),
]

DIM, T = 16, 23
DEFAULTS = [config() for config in get_args(get_args(AttentionConfig)[0])]
VARIANTS = [
    MHSAConfig(num_kv_heads=2, qk_norm=True),
    MHSAConfig(num_heads=2, num_kv_heads=1, head_dim=6),
    MHLAConfig(num_heads=2, num_latents=5),
    CausalMHLAConfig(num_heads=2, num_latents=5, chunk=8),
    CausalMHLAConfig(num_latents=3, chunk=1),
    CausalMHLAConfig(num_latents=0, chunk=7),
    PrefixMHLAConfig(num_heads=2, num_latents=5),
    MLAConfig(kv_rank=6, rope_dim=4),
    MLAConfig(kv_rank=6, rope_dim=2, query_rank=5, head_dim=3, qk_norm=True),
]
# defaults that need a wider model than the others
WIDE = {"mla": 32}
CASES = {config.kind: config for config in DEFAULTS} | {
    f"{config.kind} {number}": config for number, config in enumerate(VARIANTS)
}
CAUSAL = {name: config for name, config in CASES.items() if config.causal}
NOT_CAUSAL = {name: config for name, config in CASES.items() if not config.causal}
every = pytest.mark.parametrize("config", CASES.values(), ids=CASES)
every_causal = pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
every_other = pytest.mark.parametrize("config", NOT_CAUSAL.values(), ids=NOT_CAUSAL)


def width(config: AttentionConfig) -> int:
    return WIDE[config.kind] if config in DEFAULTS and config.kind in WIDE else DIM


def build(config: AttentionConfig, dtype: torch.dtype = torch.float64, max_length: int = 64) -> Any:
    """The module in evaluation mode, with weights of size one so that nothing hides."""
    module = placed(config.build(width(config), max_length, 1e-6, 0.0)).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = 1 + 0.3 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(values)
    return module


def tokens(config: AttentionConfig, batch: int = 2, length: int = T) -> Tensor:
    return torch.randn(batch, length, width(config), dtype=torch.float64)


def leak(config: AttentionConfig) -> Tensor:
    """Largest |∂ output_t / ∂ input_s| over all s > t, sampled at every t."""
    module = build(config)
    x = tokens(config, 1).requires_grad_()
    out = module(x)
    worst = []
    for t in range(T - 1):
        direction = torch.randn_like(out[:, t])
        (gradient,) = torch.autograd.grad(out[:, t], x, direction, retain_graph=True)
        worst.append(gradient[:, t + 1 :].abs().amax())
    return torch.stack(worst)


def change_of_prefix(config: AttentionConfig, dtype: torch.dtype) -> float:
    """Largest change of a prefix's outputs when everything after it is replaced."""
    module = build(config, dtype)
    x = tokens(config, 2, T).to(dtype)
    worst = 0.0
    for cut in (1, 7, 8, T - 1):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:]) * 3
        difference = (module(changed) - module(x))[:, :cut].abs().amax()
        worst = max(worst, difference.item())
    return worst


@every_causal
def test_the_gradient_towards_the_future_is_exactly_zero(config: AttentionConfig):
    assert leak(config).amax() == 0


@every_other
def test_the_control_leaks_gradients(config: AttentionConfig):
    assert leak(config).amin() > 1e-6


@every_causal
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_another_future_leaves_the_prefix_bitwise_equal(
    config: AttentionConfig, dtype: torch.dtype
):
    assert change_of_prefix(config, dtype) == 0


@every_other
def test_another_future_changes_the_controls_prefix(config: AttentionConfig):
    assert change_of_prefix(config, torch.float64) > 1e-3


LONG = 300  # beyond a block of queries (128), a chunk of tokens (64, 128) and their multiples
EDGES = (63, 64, 65, 127, 128, 129, 256, 299)


@every_causal
def test_causal_beyond_a_block_and_a_chunk(config: AttentionConfig):
    module = build(config, torch.float32, LONG)
    x = tokens(config, 1, LONG).to(torch.float32).requires_grad_()
    out = module(x)
    for edge in EDGES:
        changed = x.detach().clone()
        changed[:, edge:] = torch.randn_like(changed[:, edge:]) * 3
        assert torch.equal(module(changed)[:, :edge], out[:, :edge]), edge
        direction = torch.randn_like(out[:, edge - 1])
        (gradient,) = torch.autograd.grad(out[:, edge - 1], x, direction, retain_graph=True)
        assert gradient[:, edge:].abs().amax() == 0, edge
        assert gradient[:, edge - 1].abs().amax() > 0, edge


@every_other
def test_the_control_leaks_beyond_a_block(config: AttentionConfig):
    module = build(config, torch.float32, LONG)
    x = tokens(config, 1, LONG).to(torch.float32)
    changed = x.clone()
    changed[:, 256:] = torch.randn_like(changed[:, 256:]) * 3
    assert (module(changed) - module(x))[:, :256].abs().amax() > 1e-3


def decoded(module: Any, x: Tensor, sizes: list[int]) -> Tensor:
    state = module.new_state(x.shape[0], x.shape[1], x)
    outputs, start = [], 0
    for size in sizes:
        chunk = Chunk.after([start] * x.shape[0], size, x.device)
        outputs.append(module.decode(x[:, start : start + size], state, chunk))
        start += size
    return torch.cat(outputs, dim=1)


@every_causal
@settings(max_examples=12)
@given(cuts=st.sets(st.integers(1, T - 1), max_size=6))
def test_decoding_in_any_chunks_equals_the_full_pass(config: AttentionConfig, cuts: set[int]):
    module = build(config)
    x = tokens(config)
    bounds = [0, *sorted(cuts), T]
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    torch.testing.assert_close(decoded(module, x, sizes), module(x), rtol=1e-10, atol=1e-10)


@every_causal
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_decoding_token_by_token(config: AttentionConfig, dtype: torch.dtype, tolerance: float):
    module = build(config, torch.float32)
    x = tokens(config, 2, 40).to(dtype)
    actual = decoded(module, x, [1] * 40)
    torch.testing.assert_close(actual, module(x), rtol=tolerance, atol=tolerance)


@every_causal
@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, 13), min_size=3, max_size=3), more=st.integers(1, 9))
def test_ragged_rows_decode_as_if_alone(config: AttentionConfig, lengths: list[int], more: int):
    """Right-padded prompts of different lengths, then single tokens, then a chunk."""
    module = build(config)
    x = tokens(config, 3, 40)
    state = module.new_state(3, 40, x)
    longest = max(lengths)
    seen = [0, 0, 0]
    for size, valid in ((longest, lengths), (1, [1] * 3), (1, [1] * 3), (more, [more] * 3)):
        rows = [x[i, seen[i] : seen[i] + valid[i]] for i in range(3)]
        padded = torch.full((3, size, x.shape[-1]), 7.0, dtype=x.dtype)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        chunk = Chunk.after(seen, size, x.device, valid)
        out = module.decode(padded, state, chunk)
        for i in range(3):
            start, seen[i] = seen[i], seen[i] + valid[i]
            expected = module(x[i : i + 1, : seen[i]])[0, start:]
            torch.testing.assert_close(out[i, : valid[i]], expected, rtol=1e-9, atol=1e-9)


@every_causal
def test_a_row_may_sit_out_a_chunk(config: AttentionConfig):
    """Later chunks of long prompts: rows whose prompt is already read have no valid token."""
    module = build(config)
    x = tokens(config, 2, 40)
    state = module.new_state(2, 40, x)
    lengths = [0, 0]
    for valid in ([9, 5], [9, 0], [8, 0], [1, 1], [3, 3]):
        size = max(valid)
        padded = torch.full((2, size, x.shape[-1]), 7.0, dtype=x.dtype)
        for i in range(2):
            padded[i, : valid[i]] = x[i, lengths[i] : lengths[i] + valid[i]]
        out = module.decode(padded, state, Chunk.after(lengths, size, x.device, valid))
        for i in range(2):
            start, lengths[i] = lengths[i], lengths[i] + valid[i]
            expected = module(x[i : i + 1, : lengths[i]])[0, start:]
            torch.testing.assert_close(out[i, : valid[i]], expected, rtol=1e-9, atol=1e-9)


@every
def test_rows_of_a_batch_are_independent(config: AttentionConfig):
    module = build(config)
    x = tokens(config, 3)
    together = module(x)
    for i in range(3):
        torch.testing.assert_close(module(x[i : i + 1])[0], together[i], rtol=1e-12, atol=1e-12)
    order = [2, 0, 1]
    torch.testing.assert_close(module(x[order]), together[order], rtol=1e-12, atol=1e-12)


@every
@pytest.mark.parametrize("length", [1, 5])
def test_gradients_by_finite_differences(config: AttentionConfig, length: int):
    module = build(config)
    x = tokens(config, 1, length).requires_grad_()
    names = list(dict(module.named_parameters()))
    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_are_finite(config: AttentionConfig, dtype: torch.dtype, scale: float):
    module = build(config, torch.float32)
    x = (tokens(config) * scale).to(dtype).requires_grad_()
    out = module(x)
    assert out.shape == x.shape
    assert out.dtype == dtype
    out.float().square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in module.parameters() if p.requires_grad)):
        assert gradient is not None
        assert gradient.isfinite().all()


@every
@pytest.mark.parametrize("length", [1, 2, 9, 64])
def test_shapes(config: AttentionConfig, length: int):
    x = tokens(config, 3, length)
    assert build(config)(x).shape == x.shape


@every
def test_parameters_equal_the_accounting(config: AttentionConfig):
    module = build(config)
    actual = sum(p.numel() for p in module.parameters())
    assert config.num_parameters(width(config)) == actual


@every
def test_the_layout_names_matrices_of_the_module(config: AttentionConfig):
    module = build(config)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    for name, layout in module.muon_layout().items():
        rows = shapes[name][0]
        blocks = layout.get("row_blocks") or (rows,)
        assert layout["role"] in ("hidden", "latents")
        assert sum(blocks) == rows
        assert all(block % layout.get("heads", 1) == 0 for block in blocks)


@every_causal
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_equal_the_accounting(config: AttentionConfig, dtype: torch.dtype):
    state = build(config).new_state(3, 50, torch.empty(0, dtype=dtype))
    assert state.num_bytes() == config.state_bytes(width(config), 3, 50, dtype.itemsize)


@every
def test_kept_activations_within_a_tenth(config: AttentionConfig):
    only_on_the_cpu("the accounting is that of the CPU's kernels")
    module = build(config, torch.float32).train()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = tokens(config, 8, 64).float().requires_grad_()
    own = {p.data_ptr() for p in (*module.parameters(), *module.buffers(), x)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    assert out.requires_grad
    actual = sum(t.untyped_storage().nbytes() for a, t in kept.items() if a not in own)
    expected = 4 * config.kept_values(width(config), 8, 64)
    assert actual == pytest.approx(expected, rel=0.1)


def trained_on_noise(config: AttentionConfig) -> tuple[float, float]:
    """Held-out cross-entropy on uniform i.i.d. tokens after training on them; its standard error.

    A model that sees only the past cannot do better than ln V, whatever it does.
    """
    V, batch, length = 64, 64, 12
    model_config = ModelConfig(
        vocab_size=V, dim=32, num_layers=2, max_length=length, attention=config,
        ffn=DenseConfig(hidden_dim=64),
    )  # fmt: skip
    model = placed(model_config.build(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        window = torch.randint(V, (batch, length + 1), generator=generator)
        model(window[:, :-1], window[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    window = torch.randint(V, (256, length + 1), generator=generator)
    scores, _ = model.eval().score(window[:, :-1], window[:, 1:])
    return scores.losses.mean().item(), (scores.losses.std() / len(scores.losses) ** 0.5).item()


@pytest.mark.parametrize("config", [c for c in DEFAULTS if c.causal], ids=lambda c: c.kind)
def test_noise_cannot_be_predicted(config: AttentionConfig):
    loss, error = trained_on_noise(config)
    assert loss > math.log(64) - 3 * error


@pytest.mark.parametrize("config", [c for c in DEFAULTS if not c.causal], ids=lambda c: c.kind)
def test_the_control_predicts_noise(config: AttentionConfig):
    loss, error = trained_on_noise(config)
    assert loss < math.log(64) - 3 * error


@every_other
def test_what_is_not_causal_says_so_and_refuses_to_decode(config: AttentionConfig):
    model_config = ModelConfig(vocab_size=31, dim=DIM, num_layers=1, attention=config)
    with pytest.warns(UserWarning, match="is not causal"):
        model = model_config.build(0)
    with pytest.raises(ValueError, match="is not causal"):
        model.new_state(1, 8)
    with pytest.raises(ValueError, match="is not causal"):
        config.state_bytes(DIM, 1, 8, 4)
    assert account(model_config).state_bytes == 0


@every_causal
def test_whole_model_decodes_like_its_full_pass(config: AttentionConfig):
    model_config = ModelConfig(
        vocab_size=31, dim=width(config), num_layers=2, max_length=64, attention=config
    )
    model = placed(model_config.build(0)).eval()
    sequence = torch.randint(31, (2, 30))
    state = model.new_state(2, 30)
    assert state.num_bytes() == account(model_config, batch=2, length=30).state_bytes
    for start in (0, 11, 12, 29):
        end = {0: 11, 11: 12, 12: 29, 29: 30}[start]
        logits = model.decode(sequence[:, start:end], state)
        expected = model.logits(sequence[:, :end])[:, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@every
def test_warnings_name_what_is_not_causal(config: AttentionConfig):
    assert bool(config.warnings) == (not config.causal)
    assert all("\n" not in text for text in config.warnings)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MHSAConfig, {"num_heads": 0}, "num_heads is 0"),
        (MHSAConfig, {"num_kv_heads": 3}, "num_kv_heads is 3; it must divide num_heads 4"),
        (MHSAConfig, {"head_dim": 7}, "head_dim is 7; rotary needs an even width"),
        (MHSAConfig, {"rope_base": 0.5}, "rope_base is 0.5"),
        (MHLAConfig, {"num_latents": 0}, "num_latents is 0; it must be at least 1"),
        (MHLAConfig, {"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        (CausalMHLAConfig, {"num_latents": -1}, "num_latents is -1; it must be at least 0"),
        (CausalMHLAConfig, {"chunk": 0}, "chunk is 0; it must be at least 1"),
        (PrefixMHLAConfig, {"num_latents": 0}, "num_latents is 0; it must be at least 1"),
        (MLAConfig, {"kv_rank": 0}, "kv_rank is 0; it must be at least 1"),
        (MLAConfig, {"query_rank": 0}, "query_rank is 0; it must be at least 1"),
        (MLAConfig, {"rope_dim": 5}, "rope_dim is 5; rotary needs an even width"),
    ],
)
def test_bad_options_are_one_clear_line(kind: Any, options: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        kind(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MHSAConfig(num_heads=5), "num_heads is 5; model width 16"),
        (MHLAConfig(num_heads=5), "num_heads is 5; model width 16"),
        (CausalMHLAConfig(num_heads=5), "num_heads is 5; model width 16"),
        (PrefixMHLAConfig(num_heads=5), "num_heads is 5; model width 16"),
        (MLAConfig(num_heads=5, kv_rank=4), "num_heads is 5; model width 16"),
        (MLAConfig(kv_rank=17), "kv_rank is 17; it must not exceed the model width 16"),
        (MLAConfig(kv_rank=4, query_rank=20), "query_rank is 20; it must not exceed"),
    ],
)
def test_what_does_not_fit_the_width_is_refused(config: AttentionConfig, message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(dim=16, attention=config)


@pytest.mark.parametrize("config", [MHSAConfig(), MLAConfig(kv_rank=6, rope_dim=4)])
def test_only_training_watches_the_logits(config: AttentionConfig):
    """QK-clip's largest logits are of training steps: validation neither pays for them nor adds."""
    module = build(config, torch.float32)
    module.max_logits = torch.full((4,), -math.inf)
    x = tokens(config).float()
    module(x)
    assert (module.max_logits == -math.inf).all()
    module.train()(x)
    assert module.max_logits.isfinite().all()
