"""The training loop: `train(config, run, data)`, from set-up to summary in reading order."""

import contextlib
import math
import time
import warnings
from typing import Any

import torch

from muonlab import machine
from muonlab.checkpoints import RunState, load_weights
from muonlab.config import ConfigError, RunConfig, stream_seed
from muonlab.custom_optimizer import AnyOptimizer, weights_to_evaluate, weights_to_train
from muonlab.data import SplitName, TokenData
from muonlab.errors import FailedRunError
from muonlab.evaluate import evaluate
from muonlab.manifest import changes_since, manifest, peak_memory_bytes
from muonlab.model import LanguageModel
from muonlab.optim.qk_clip import QKClip
from muonlab.pretrained import load_pretrained
from muonlab.progress import show_progress
from muonlab.runs import RunDirectory, RunError, now
from muonlab.sampling import make_sampler, printable
from muonlab.signals import interrupted, stop_signals
from muonlab.trackers import check_installed, open_trackers


class NonfiniteLossError(FailedRunError):
    """Loss or gradient became NaN or infinite and the config says to stop, or the weights did."""


def train(
    config: RunConfig,
    run: RunDirectory,
    data: TokenData,
    *,
    device: torch.device | None = None,
    progress: bool = True,
    read_test: bool = False,
) -> dict[str, Any]:
    """Train ``config`` in ``run``, from its newest checkpoint if it has one; returns the summary.

    On the same machine with the same number of threads, an interrupted and resumed run ends in the
    same weights, bit for bit: batches, dropout and router noise are functions of seed and step.
    ``read_test``: the summary also holds the whole test split's ``test/loss``, ``test/accuracy`` ….
    Raises `InterruptedRun` after SIGINT, SIGTERM or SIGHUP (a checkpoint is written first),
    `NonfiniteLossError`, and `RunError` where the directory cannot be written.
    """
    device = device or machine.default_device()
    settings = config.train
    tokens_per_step = settings.batch_size * settings.sequence_length
    check_fits(config, data)
    check_installed(settings.trackers)
    model = config.model.build(stream_seed(config.seed, "init"), device)
    optimizer = config.optimizer.build(model)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    qk_clip = QKClip(model, config.optimizer.qk_clip)
    batches = Batches(config, data, device)

    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        stop = stack.enter_context(stop_signals())
        if run.exists():
            run.check_is_of(config, data.data_hash)
        else:
            facts = manifest(config, data, model, optimizer, device)
            run.create(config, facts, data.tokenizer)
        if run.checkpoint_steps():
            step, state = restore(run, model, optimizer)
            for change in changes_since(run.manifest(), device):
                warnings.warn(f"{run.path}: {change}", stacklevel=2)
        else:
            step, state = 0, RunState(dtype=run.manifest()["dtype"])
            if config.init_from:
                load_pretrained(model, data.tokenizer, config.init_from)
        say_if_dtype_differs(run, state.dtype, settings.dtype, device)
        run.truncate_rows(step)
        model.compute_dtype = machine.resolve_dtype(state.dtype, device)
        mirror = stack.enter_context(open_trackers(settings.trackers, run, step))
        display = stack.enter_context(show_progress(config, run, step)) if progress else None

        def log(row: dict[str, float]) -> None:
            stamp = {"step": step, "tokens": step * tokens_per_step, "time": state.seconds}
            run.append_metrics(stamp | row)
            mirror(step, row)
            if display:
                display.row(step, row)

        def checkpoint() -> None:
            if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                raise NonfiniteLossError(stop_message(run, step, "weights are not finite"))
            with weights_to_evaluate(optimizer):
                run.save_checkpoint(step, model, optimizer, state, settings.keep_checkpoints)

        def measure(split: SplitName) -> dict[str, float]:
            with weights_to_evaluate(optimizer):
                return evaluate(
                    model,
                    data,
                    split,
                    batch_size=settings.micro_batch_size or settings.batch_size,
                    sequence_length=settings.sequence_length,
                    max_batches=settings.evaluate_batches if split == "validation" else None,
                )

        def validate() -> dict[str, float]:
            return measure("validation")

        sample = make_sampler(config, model, data.tokenizer) if settings.sample_every else None

        if step == 0:
            log(validate())
        model.train()
        weights_to_train(optimizer)  # a checkpoint holds those to evaluate
        while step < settings.steps:
            started = time.perf_counter()
            multiplier = config.learning_rate_multiplier(step)
            for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = base_rate * multiplier

            row = training_step(config, model, optimizer, qk_clip, batches, step)
            if not (math.isfinite(row["train/loss"]) and math.isfinite(row["train/grad_norm"])):
                if settings.nonfinite == "stop":
                    problem = f"loss {row['train/loss']}, gradient norm {row['train/grad_norm']}"
                    raise NonfiniteLossError(stop_message(run, step + 1, problem))
                state.skipped_steps += 1

            step += 1
            seconds = time.perf_counter() - started
            state.seconds += seconds
            state.optimizer_seconds += row["train/optimizer_seconds"]
            row |= {
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                "train/step_seconds": seconds,
                "train/tokens_per_second": tokens_per_step / seconds,
                "train/skipped_steps": state.skipped_steps,
            }
            log(row)

            if step % settings.evaluate_every == 0 or step in settings.ends():
                state.final = validate()
                log(state.final)
            if sample and step % settings.sample_every == 0:
                with weights_to_evaluate(optimizer):
                    text = sample()
                run.append_sample(step, settings.sample_prompt, text)
                if display:
                    display.say(f"step {step} writes: {printable(settings.sample_prompt + text)}")
            stopping = bool(stop)
            if step % settings.checkpoint_every == 0 or step in settings.ends() or stopping:
                checkpoint()
            if stopping and step < settings.steps:
                advice = f"`muonlab resume {run.path}` goes on"
                raise interrupted(stop, f"stopped after step {step}; {advice}")

        summary = {
            "steps": step,
            "dtype": state.dtype,
            "tokens": step * tokens_per_step,
            "skipped_steps": state.skipped_steps,
            "train_seconds": state.seconds,
            "tokens_per_second": step * tokens_per_step / max(state.seconds, 1e-9),
            "optimizer_share": state.optimizer_seconds / max(state.seconds, 1e-9),
            "optimizer_state_bytes": optimizer.state_bytes(),
            "peak_memory_bytes": peak_memory_bytes(device),
            "finished": now(),
            **state.final,
        }
        if read_test:
            tested = measure("test")
            summary |= {name: tested[name] for name in tested if name.startswith("test/")}
        run.finish(summary)
    return summary


class Batches:
    """A run's training batches, on its device.

    A GPU does not wait for them: the next one is copied while it computes.
    """

    def __init__(self, config: RunConfig, data: TokenData, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.device = device
        self._prepared: tuple[int, torch.Tensor] | None = None

    def take(self, step: int) -> torch.Tensor:
        """The batch of the update after ``step`` of them, (B, T + 1) int64."""
        if self._prepared is None or self._prepared[0] != step:
            return self._load(step)
        return self._prepared[1]

    def prepare(self, step: int) -> None:
        """Begin to bring that batch to a GPU, without waiting for it; on a CPU, nothing."""
        if self.device.type == "cuda":
            self._prepared = (step, self._load(step))

    def _load(self, step: int) -> torch.Tensor:
        settings = self.config.train
        seed = stream_seed(self.config.seed, "data")
        batch = self.data.batch(seed, step, settings.batch_size, settings.sequence_length)
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)


def training_step(
    config: RunConfig,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    qk_clip: QKClip,
    batches: Batches,
    step: int,
) -> dict[str, float]:
    """One update, after ``step`` of them; returns its metrics.

    Where loss or gradient is not finite, nothing is updated. The host reads a GPU's values once:
    loss, norms and what the optimizer asks, together. It also waits for the end of the step.
    """
    settings = config.train
    watch = settings.diagnostics_every > 0 and (step + 1) % settings.diagnostics_every == 0
    qk_clip.begin_step(watch=watch)
    loss = accumulate_gradients(config, model, batches.take(step), step)
    norms = optimizer.clip_(settings.clip_norm)
    batches.prepare(step + 1)
    stopwatch = machine.Stopwatch(batches.device)
    logits = qk_clip.max_logit()
    found = optimizer.step(diagnostics=watch, read={"loss": loss, **norms, **logits})
    healthy = all(map(math.isfinite, found.values()))
    if healthy:
        qk_clip.end_step()
    model.update_balance(skipped=not healthy)
    optimizer.zero_grad()
    row = {
        "train/loss": found["loss"],
        "train/clip_scale": found["scale"],
        **{f"train/grad_{name}": found[name] for name in norms if name != "scale"},
        "train/optimizer_seconds": stopwatch.stop(),
    }
    if healthy:
        row |= {name: found[name] for name in logits}
        row |= optimizer.diagnostics if watch else {}
    return row


def accumulate_gradients(
    config: RunConfig, model: LanguageModel, batch: torch.Tensor, step: int
) -> torch.Tensor:
    """Forward and backward over the micro-batches of ``batch``, (B, T + 1).

    Returns their mean cross-entropy, 0-d and on the device. Dropout and the router's noise are
    functions of seed and ``step``.
    """
    micro_batches = batch.split(config.train.micro_batch_size or config.train.batch_size)
    noise = torch.Generator(batch.device)
    total = torch.zeros((), device=batch.device)
    for index, micro_batch in enumerate(micro_batches):
        torch.manual_seed(stream_seed(config.seed, "dropout", step, index))
        noise.manual_seed(stream_seed(config.seed, "router", step, index))
        output = model(micro_batch[:, :-1], micro_batch[:, 1:], noise)
        (output.loss / len(micro_batches)).backward()
        total += output.cross_entropy.detach() / len(micro_batches)
    return total


def check_fits(config: RunConfig, data: TokenData) -> None:
    """Raise ConfigError unless this model can read this data."""
    if data.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}; "
            f"the tokenizer has {data.vocab_size} tokens"
        )
    data.batch(0, 0, config.train.batch_size, config.train.sequence_length)  # raises if too small


def say_if_dtype_differs(run: RunDirectory, stored: str, wanted: str, device: torch.device) -> None:
    """Warn where "auto" would choose another dtype here than on the machine where ``run`` began."""
    here = machine.resolve_dtype_name(wanted, device)
    if stored != here:
        warnings.warn(
            f"{run.path} began in {stored} and goes on in {stored}; a new run on this machine "
            f"would take {here}, which is faster here",
            stacklevel=3,
        )


def restore(
    run: RunDirectory, model: LanguageModel, optimizer: AnyOptimizer
) -> tuple[int, RunState]:
    """Load the newest checkpoint; raises RunError if it is damaged or of another model."""
    checkpoint = run.load_checkpoint()
    load_weights(model, checkpoint.model, run.path)
    try:
        optimizer.load_state_dict(checkpoint.optimizer)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.path}: this optimizer cannot continue it: {error}") from None
    return checkpoint.step, checkpoint.state


def stop_message(run: RunDirectory, step: int, problem: str) -> str:
    steps = run.checkpoint_steps()
    last = f"the last good checkpoint is of step {steps[-1]}" if steps else "no checkpoint yet"
    return (
        f"step {step}: {problem}; {last}; a lower learning rate, or train.nonfinite=skip, may help"
    )
