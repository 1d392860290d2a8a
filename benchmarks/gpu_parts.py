"""The parts of `make gpu`: each measures one thing and returns the rows of its table.

All run on the default device, which the caller has set.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers_optimizer
from benchmarks.train_step import OURS, SHAPES, Shape, mixtral_step, our_step, plain_step
from muonlab import machine
from muonlab.bench import decode as decode_bench
from muonlab.bench.interleave import interleave, paired_ratio
from muonlab.bench.optimizer import SETS, our_optimizer, torch_optimizer
from muonlab.config import RunConfig, override
from muonlab.model.accounting import account
from muonlab.optim.qk_clip import QKClip
from muonlab.papers.protocols import p2_base
from muonlab.recipes import nano, recipe
from muonlab.runs import RunDirectory
from muonlab.train import train, training_step

Rows = list[dict[str, Any]]
# Dense bf16 products with fp32 sums, FLOP/s, from the makers' data sheets (without sparsity).
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
P1_125M = Shape(
    dim=512, layers=8, heads=8, hidden_dim=1536, gated_dim=1024, batch=16, length=1024, vocab=16384
)
TINY = Shape(
    dim=32, layers=1, heads=2, hidden_dim=64, gated_dim=48, batch=2, length=16, vocab=64, experts=4
)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """``measure(device, tiny)`` returns rows; the process is ended after ``budget_seconds``."""

    title: str
    budget_seconds: int
    measure: Callable[[torch.device, bool], Rows]


def run_tests(device: torch.device, tiny: bool) -> Rows:
    """The tests that take a device; a failing test fails the part."""
    chosen = ["tests/model/test_loss.py"] if tiny else ["tests/optim", "tests/model"]
    command = [sys.executable, "-m", "pytest", *chosen, "-k", device.type, "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True)  # quieter ones give no counts
    print(done.stdout, done.stderr)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    if done.returncode or not counts.get("passed"):
        raise RuntimeError(f"pytest ended with {done.returncode}: {counts}")
    return [{"tests": " ".join(chosen), "device": device.type, **counts}]


def time_optimizers(device: torch.device, tiny: bool) -> Rows:
    """A step of muonlab's Muon and of its peers, on the benchmark's parameter sets."""
    if tiny:
        SETS["tiny"] = ([(8, 8), (4, 8, 16)], [(32, 8)])
    rows: Rows = []
    for name in ["tiny"] if tiny else SETS:
        candidates: dict[str, Callable[[], object]] = {
            "muonlab": our_optimizer(name).step,
            "torch.optim.Muon": torch_optimizer(name),
            "Keller Jordan": peers_optimizer.keller_jordan(name),
        }
        try:
            candidates["pytorch-optimizer"] = peers_optimizer.pytorch_optimizer_muon(name)
        except ImportError:
            rows.append({"set": name, "optimizer": "pytorch-optimizer", "ms a step": "missing"})
        rows += _timed({"set": name}, "optimizer", candidates, device, 2 if tiny else 20)
    return rows


def time_training_steps(device: torch.device, tiny: bool) -> Rows:
    """A training step with AdamW: ours, plain torch as it is and compiled, and Mixtral."""
    shapes = {"tiny": TINY} if tiny else SHAPES | {"p1_125m": P1_125M}
    rows: Rows = []
    for name, shape in shapes.items():
        candidates: dict[str, Callable[[], object]] = {
            "muonlab": our_step(shape, gated=False),
            "(a) plain": plain_step(shape),
            "muonlab, SwiGLU": our_step(shape, gated=True),
            "(b) Mixtral": mixtral_step(shape),
        }
        if not tiny:  # minutes on a CPU
            candidates["(a) plain, compiled"] = plain_step(shape, compiled=True)
        label = {"shape": name, "tokens a step": shape.batch * shape.length}
        rows += _timed(label, "candidate", candidates, device, 2 if tiny else 20)
    return rows


def time_decoding(device: torch.device, tiny: bool) -> Rows:
    """Tokens a second of latent attention with experts, and of its dense twin."""
    if tiny:
        decode_bench.SIZES["tiny"] = (48, 2, 16)
    rows: Rows = []
    dtype = machine.resolve_dtype("auto", device)
    for batch, context in [(2, 16)] if tiny else [(1, 1024), (8, 1024), (32, 4096)]:
        report = decode_bench.bench_decode(
            "tiny" if tiny else "200m",
            batch=batch,
            context=context,
            dtype=dtype,
            rounds=2 if tiny else 20,
            device=device,
        )
        for name in report.timings:
            rows.append(
                {
                    "model": name,
                    "dtype": report.dtype,
                    "batch": batch,
                    "context, tokens": context,
                    "tokens/s": report.tokens_per_second(name),
                    "cache, MB": report.state_bytes[name] / 1e6,
                }
            )
    return rows


class RandomBatches:
    """In place of `muonlab.train.Batches`: one batch, again and again."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        shape = (config.train.batch_size, config.train.sequence_length + 1)
        self.device = device
        self._batch = torch.randint(config.model.vocab_size, shape, device=device)

    def take(self, step: int) -> torch.Tensor:
        return self._batch

    def prepare(self, step: int) -> None: ...


def measure_utilisation(device: torch.device, tiny: bool) -> Rows:
    """Whole updates of the recipes, Muon included, against the peak of the GPU (MFU)."""
    gpu = machine.describe(device).get("gpu", "")
    peak, source = next(
        (
            (flops, f"data sheet of {name}")
            for name, flops in PEAK_FLOPS.items()
            if name in str(gpu)
        ),
        (0.0, ""),
    )
    if not peak:
        size = 256 if tiny else 8192
        peak, source = machine.gemm_flops(torch.bfloat16, device, size), f"measured, {size}-cube"
    names = ["nano"] if tiny else ["small", "p2", "p1_125m"]
    return [
        {
            **_time_updates(recipe(name), device, peak, rounds=2 if tiny else 10),
            "peak, TFLOP/s": peak / 1e12,
            "peak from": source,
        }
        for name in names
    ]


def _time_updates(
    config: RunConfig, device: torch.device, peak: float, rounds: int
) -> dict[str, Any]:
    model = config.model.build(0, device).train()
    model.compute_dtype = machine.resolve_dtype(config.train.dtype, device)
    optimizer = config.optimizer.build(model)
    clip = QKClip(model, config.optimizer.qk_clip)
    batches: Any = RandomBatches(config, device)

    def update() -> None:
        training_step(config, model, optimizer, clip, batches, 0)

    timing = interleave({"update": update}, rounds=rounds, device=device)["update"]
    tokens = config.train.batch_size * config.train.sequence_length
    costs = account(config.model, length=config.train.sequence_length)
    flops = tokens * (costs.forward_flops + costs.backward_flops) + optimizer.step_flops()
    return {
        "recipe": config.name,
        "s an update": timing.median,
        "tokens/s": tokens / timing.median,
        "TFLOP an update": flops / 1e12,
        "MFU, %": 100 * flops / timing.median / peak,
    }


def check_resumption(device: torch.device, tiny: bool) -> Rows:
    """Whether a run resumed half-way ends in the weights of the uninterrupted one."""
    steps = 4 if tiny else 40
    rows: Rows = []
    for dtype in ("fp32", "bf16"):
        changes = (f"steps={steps}", f"checkpoint_every={steps // 2}", f"dtype={dtype}")
        changes += ("evaluate_batches=2", "keep_checkpoints=2")
        config = override(nano(), [f"train.{change}" for change in changes])
        data = config.data.prepare(progress=False)
        with tempfile.TemporaryDirectory() as root:
            whole = RunDirectory.place(Path(root) / "whole", config)
            train(config, whole, data, device=device, progress=False)
            parts = RunDirectory.place(Path(root) / "parts", config)
            shutil.copytree(whole.path, parts.path)
            (parts.path / "summary.json").unlink()
            shutil.rmtree(parts.checkpoints / f"step-{steps:08d}")
            train(config, parts, data, device=device, progress=False)
            first, second = whole.load_checkpoint().model, parts.load_checkpoint().model
        differences = [(first[name] - second[name]).abs().max().item() for name in first]
        rows.append(
            {
                "dtype": dtype,
                "updates": steps,
                "equal bit for bit": all(torch.equal(first[name], second[name]) for name in first),
                "largest difference": max(differences),
            }
        )
    return rows


def train_paper_run(device: torch.device, tiny: bool) -> Rows:
    """P2's Muon run of table 2 as published, on the builtin corpus in place of Cosmopedia."""
    config = p2_base("nano" if tiny else "paper", "as_published", updates=2 if tiny else 250)
    changes = ["train.evaluate_batches=2"] if tiny else [
        "data.source.kind=builtin", "data.tokenizer.kind=train", "data.tokenizer.vocab_size=49152",
        "data.max_documents=null", "data.max_characters_per_document=null",
    ]  # fmt: skip
    config = override(config, changes)
    data = config.data.prepare(progress=False)
    with tempfile.TemporaryDirectory() as root:
        run = RunDirectory.place(Path(root), config)
        summary = train(config, run, data, device=device, progress=False)
    return [
        {
            "run": f"Muon, MHSA, as published, seed {config.seed}",
            "parameters, M": account(config.model).parameters / 1e6,
            "updates": summary["steps"],
            "dtype": summary["dtype"],
            "validation loss, nats/token": summary["val/loss"],
            "training, s": summary["train_seconds"],
            "tokens/s": summary["tokens_per_second"],
            "optimizer's share, %": 100 * summary["optimizer_share"],
            "peak memory, GB": (summary["peak_memory_bytes"] or 0) / 1e9,
        }
    ]


def _timed(
    label: dict[str, Any],
    column: str,
    candidates: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
) -> Rows:
    timings = interleave(candidates, rounds=rounds, warmup=2 if rounds < 10 else 5, device=device)
    return [
        {
            **label,
            column: name,
            "ms a step": 1e3 * timing.median,
            "spread, %": 100 * timing.spread,
            "muonlab is faster, times": paired_ratio(timing, timings[OURS.get(name, "muonlab")]),
        }
        for name, timing in timings.items()
    ]


PARTS = {
    "tests": Part("Tests on the device", 300, run_tests),
    "optimizer": Part("One optimizer step", 150, time_optimizers),
    "train_step": Part("One training step with AdamW", 300, time_training_steps),
    "decode": Part("Decoding", 120, time_decoding),
    "utilisation": Part("Whole updates against the GPU's peak", 90, measure_utilisation),
    "resumption": Part("Resumption", 60, check_resumption),
    "paper": Part("P2's table 2 at paper scale, builtin corpus", 180, train_paper_run),
}
