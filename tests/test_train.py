import itertools
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    EVERYTHING_RANDOM,
    Killed,
    MakeConfig,
    assert_same,
    assert_same_end,
    before_step,
    train_in,
)

import muonlab.train
from muonlab import machine
from muonlab.checkpoints import Checkpoint
from muonlab.config import RunConfig, override, stream_seed
from muonlab.data import TokenData
from muonlab.errors import InterruptedRun
from muonlab.model import LanguageModel
from muonlab.optim import Muon
from muonlab.runs import RunDirectory
from muonlab.signals import stop_signals
from muonlab.train import (
    Batches,
    NonfiniteLossError,
    accumulate_gradients,
    train,
)

CPU = torch.device("cpu")
# -- gradients and streams ------------------------------------------------------------------------


def gradients(config: RunConfig, data: TokenData) -> tuple[float, dict[str, torch.Tensor]]:
    model = config.model.build(stream_seed(config.seed, "init"), CPU).train()
    batch = Batches(config, data, CPU).take(3)
    loss = accumulate_gradients(config, model, batch, 3).item()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulation_equals_the_big_batch(
    make_config: MakeConfig, tiny_data: TokenData, micro_batch_size: int
) -> None:
    options = ("model.ffn.balancing=bias", "model.ffn.z_loss_coefficient=0.001")
    loss, expected = gradients(make_config(*options), tiny_data)
    split = make_config(*options, f"train.micro_batch_size={micro_batch_size}")
    split_loss, found = gradients(split, tiny_data)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale)


class Draws:
    """What a training run draws from its streams."""

    def __init__(self, patch: pytest.MonkeyPatch, config: RunConfig, data: TokenData) -> None:
        self.batches: list[torch.Tensor] = []
        self.noise: list[torch.Tensor] = []
        self.dropout: list[torch.Tensor] = []
        model = config.model.build(stream_seed(config.seed, "init"), CPU).train()
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        forward = model.forward

        def spy(tokens: torch.Tensor, targets: torch.Tensor, noise: torch.Generator) -> Any:
            self.batches.append(torch.cat((tokens, targets[:, -1:]), 1))
            self.noise.append(torch.randn(4, generator=noise.clone_state()))
            with torch.random.fork_rng(devices=[]):
                self.dropout.append(torch.rand(4))
            return forward(tokens, targets, noise)

        patch.setattr(model, "forward", spy)
        for step in range(2):
            accumulate_gradients(config, model, Batches(config, data, CPU).take(step), step)


def test_streams_are_separate(
    make_config: MakeConfig, tiny_data: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Draws(monkeypatch, make_config(), tiny_data)
    noisy = Draws(monkeypatch, make_config(*EVERYTHING_RANDOM[:2]), tiny_data)
    split = Draws(monkeypatch, make_config("train.micro_batch_size=1"), tiny_data)
    seeded = Draws(monkeypatch, make_config("seed=1"), tiny_data)
    for stream in ("weights", "batches", "noise", "dropout"):
        assert_same(getattr(plain, stream), getattr(noisy, stream), stream)
    assert_same(plain.weights, split.weights)
    assert torch.equal(torch.cat(plain.batches), torch.cat(split.batches))
    for stream in ("noise", "dropout"):  # every micro-batch of every step draws anew
        drawn = getattr(split, stream)
        assert len(drawn) == 8
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
        assert not torch.equal(getattr(plain, stream)[0], getattr(seeded, stream)[0])
    assert not torch.equal(plain.batches[0], seeded.batches[0])
    assert not torch.equal(plain.weights["embedding.weight"], seeded.weights["embedding.weight"])


def test_another_data_stream_leaves_the_others(
    make_config: MakeConfig, tiny_data: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_data(seed: int, *stream: str | int) -> int:
        return stream_seed(seed, *(("data", 2) if stream == ("data",) else stream))

    plain = Draws(monkeypatch, make_config(), tiny_data)
    monkeypatch.setattr(muonlab.train, "stream_seed", other_data)
    other = Draws(monkeypatch, make_config(), tiny_data)
    for stream in ("weights", "noise", "dropout"):
        assert_same(getattr(plain, stream), getattr(other, stream), stream)
    assert not torch.equal(plain.batches[0], other.batches[0])


# -- the guard ------------------------------------------------------------------------------------


def poison(step_to_poison: int, value: float) -> Callable[[int, LanguageModel], None]:
    def act(step: int, model: LanguageModel) -> None:
        if step == step_to_poison:
            gradient = model.layers()[1].attention_norm.weight.grad
            assert gradient is not None
            gradient[3] = value

    return act


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_stop_at_a_nonfinite_gradient(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    finished_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    config = make_config("train.keep_checkpoints=9")
    run = RunDirectory.place(tmp_path, config)
    with monkeypatch.context() as patch:
        before_step(patch, poison(4, value), after=True)
        message = rf"step 5: loss \d.*, gradient norm {value}; the last good checkpoint is of step"
        with pytest.raises(NonfiniteLossError, match=f"{message} 4; .*train.nonfinite=skip"):
            train(config, run, tiny_data, progress=False)
    assert run.checkpoint_steps() == [2, 4]
    train(config, run, tiny_data, progress=False)  # the poison was a passing one
    assert_same_end(finished_run, run)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_skip_changes_nothing_and_counts(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
) -> None:
    config = make_config(
        f"optimizer.kind={optimizer}",
        "train.nonfinite=skip",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
        *EVERYTHING_RANDOM,
    )
    run = RunDirectory.place(tmp_path, config)
    before_step(monkeypatch, poison(3, math.nan), after=True)
    train(config, run, tiny_data, progress=False)
    checkpoints: list[Checkpoint] = [run.load_checkpoint(step) for step in range(1, 7)]
    third, fourth, fifth = checkpoints[2:5]
    assert_same(third.model, fourth.model)
    assert any(name.endswith("selection_bias") for name in third.model)
    assert_same(third.optimizer["state"], fourth.optimizer["state"])
    assert not torch.equal(fourth.model["embedding.weight"], fifth.model["embedding.weight"])
    assert [checkpoint.state.skipped_steps for checkpoint in checkpoints] == [0, 0, 0, 1, 1, 1]
    rows = [row for row in run.metrics() if "train/loss" in row]
    assert [row["train/skipped_steps"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["train/grad_norm"] is None for row in rows] == [False] * 3 + [True] + [False] * 2
    assert run.summary()["skipped_steps"] == 1


def test_a_learning_rate_that_blows_up_stops_with_a_whole_checkpoint(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    config = make_config("optimizer.lr=1e30", "train.checkpoint_every=1", "learning_rate.warmup=0")
    run = RunDirectory.place(tmp_path, config)
    with pytest.raises(NonfiniteLossError, match=r"step \d: .*a lower learning rate"):
        train(config, run, tiny_data, progress=False)
    assert run.status() in ("interrupted", "started")
    for step in run.checkpoint_steps():
        assert all(tensor.isfinite().all() for tensor in run.load_checkpoint(step).model.values())


def test_weights_that_are_not_finite_are_not_kept(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = Muon.step

    def overflow(self: Muon, *arguments: Any, **options: Any) -> Any:
        result = real_step(self, *arguments, **options)
        self.param_groups[0]["params"][0].data.fill_(math.inf)
        return result

    monkeypatch.setattr(Muon, "step", overflow)
    config = make_config("train.checkpoint_every=1")
    run = RunDirectory.place(tmp_path, config)
    with pytest.raises(NonfiniteLossError, match="step 1: weights are not finite; no checkpoint"):
        train(config, run, tiny_data, progress=False)
    assert run.checkpoint_steps() == []


# -- clipping, schedule, rows ---------------------------------------------------------------------


def test_clipping_is_logged(make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path) -> None:
    run = train_in(tmp_path, make_config("train.clip_norm=0.25", "train.steps=2"), tiny_data)
    for row in run.metrics()[1:-1]:
        norms = [row[f"train/grad_norm{part}"] for part in ("", "_muon", "_adamw")]
        assert norms[0] == pytest.approx(math.hypot(*norms[1:]))
        assert row["train/clip_scale"] == pytest.approx(min(1.0, 0.25 / norms[0]), rel=1e-4)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant", "p2"])
def test_the_schedule_is_applied_exactly(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    used: list[list[tuple[str, float]]] = []
    real_step = Muon.step

    def spy(self: Muon, *arguments: Any, **options: Any) -> Any:
        used.append([(group["algorithm"], group["lr"]) for group in self.param_groups])
        return real_step(self, *arguments, **options)

    monkeypatch.setattr(Muon, "step", spy)
    config = make_config(
        f"learning_rate.kind={kind}", "learning_rate.warmup=0.4", "optimizer.adamw_lr_ratio=0.5"
    )
    run = train_in(tmp_path, config, tiny_data)
    steps, lr = config.train.steps, config.optimizer.lr
    expected = [lr * config.learning_rate.multiplier(step, steps) for step in range(steps)]
    for rates, rate in zip(used, expected, strict=True):
        assert set(rates) == {("muon", rate), ("adamw", rate / 2)}
    rows = [row for row in run.metrics() if "train/loss" in row]
    assert [row["train/learning_rate"] for row in rows] == expected


def test_rows_and_summary(finished_run: RunDirectory, make_config: MakeConfig) -> None:
    config = make_config("train.keep_checkpoints=9")
    rows = finished_run.metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert all(row["tokens"] == row["step"] * 4 * 32 for row in rows)
    validation = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in validation] == [0, 3, 6]
    assert validation[-1]["val/loss"] < validation[0]["val/loss"]
    assert all(
        {"moe/load_cv", "val/bits_per_byte", "val/perplexity"} <= set(row) for row in validation
    )
    summary = finished_run.summary()
    assert (summary["steps"], summary["tokens"]) == (6, 6 * 4 * 32)
    assert 0 < summary["optimizer_share"] < 1
    assert summary["val/loss"] == validation[-1]["val/loss"]
    assert finished_run.checkpoint_steps() == [2, 4, 6]
    manifest = finished_run.manifest()
    assert manifest["fingerprint"] == config.fingerprint()
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["warnings"] == []
    assert manifest["muon_parameters"] < manifest["parameters"]


def test_diagnostics_when_asked(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    run = train_in(tmp_path, make_config("train.diagnostics_every=2"), tiny_data)
    rows = [row for row in run.metrics() if "train/loss" in row]
    assert [any(key.startswith("muon/") for key in row) for row in rows] == [False, True] * 3


def test_warnings_reach_the_manifest(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, cache_dir: Path
) -> None:
    changes = ["data.split.kind=leaky_windows", "model.attention.kind=mhla", "train.steps=1"]
    config = override(make_config(), changes)
    data = config.data.prepare(cache_dir, progress=False)
    with pytest.warns(UserWarning, match="causal"):
        run = train_in(tmp_path, config, data)
    leaky, causal = run.manifest()["warnings"]
    assert "leaky split" in leaky
    assert "causal" in causal


@pytest.mark.parametrize("native", [True, False])
def test_the_dtype_is_settled_at_the_start(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
) -> None:
    """A run that goes on where "auto" would choose another dtype keeps its own, and says so."""
    config = make_config("train.dtype=auto", "train.steps=4")
    run = RunDirectory.place(tmp_path, config)
    first, second = ("bf16", "fp32") if native else ("fp32", "bf16")

    def interrupt(step: int, model: LanguageModel) -> None:
        dtypes.append(model.compute_dtype)
        if step == 0 and len(dtypes) == 1:
            raise Killed  # before there is a checkpoint
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    dtypes: list[torch.dtype] = []
    before_step(monkeypatch, interrupt)
    monkeypatch.setattr("muonlab.machine.bf16_is_native", lambda device: native)
    with pytest.raises(Killed):
        train(config, run, tiny_data, progress=False)
    monkeypatch.setattr("muonlab.machine.bf16_is_native", lambda device: not native)
    message = f"began in {first} and goes on in {first}; .* would take {second}"
    with pytest.warns(UserWarning, match=message), pytest.raises(InterruptedRun):
        train(config, run, tiny_data, progress=False)
    with pytest.warns(UserWarning, match=message):
        train(config, run, tiny_data, progress=False)
    assert dtypes == [machine.resolve_dtype(first, CPU)] * 5
    assert run.manifest()["dtype"] == run.summary()["dtype"] == first


def test_what_does_not_fit(make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path) -> None:
    for overrides, message in (
        (["model.vocab_size=256"], r"model.vocab_size is 256; the tokenizer has \d+ tokens"),
        (["train.batch_size=100000"], "the training split is too small for a batch of 100000"),
    ):
        config = make_config(*overrides)
        run = RunDirectory.place(tmp_path, config)
        with pytest.raises(ValueError, match=message):
            train(config, run, tiny_data, progress=False)
        assert not run.path.exists()


def test_a_second_signal_acts_at_once() -> None:
    # Where the tests run in the background of a shell, SIGINT is ignored from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
