"""The run directory: what a run leaves on disk, and how it is found again.

    config.json      complete and reloadable
    manifest.json    code, versions, machine, data, warnings
    tokenizer.json   what the model reads and writes; its checksum stands in the manifest
    metrics.jsonl    flat rows
    samples.jsonl    what the model wrote while it trained, if it was asked to
    log.txt          what was said while it trained
    checkpoints/step-00000500/{model.safetensors, optimizer.pt, state.json}
    summary.json     written last: present means finished

Files are written aside, flushed to disk and renamed: what is present is whole. A disk that fills
up or a process that dies leaves the previous checkpoint as it was.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from torch import nn

from muonlab import checkpoints
from muonlab.checkpoints import Checkpoint, RunState
from muonlab.config import ConfigError, RunConfig, from_json, to_json
from muonlab.custom_optimizer import AnyOptimizer
from muonlab.data import TextTokenizer, parse_tokenizer
from muonlab.files import as_json, write_whole
from muonlab.run_errors import RunError, one_line_errors


class RunBusyError(RunError):
    """Another process holds the run."""


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def place(cls, root: Path, config: RunConfig) -> "RunDirectory":
        """Where this config's run belongs below ``root``."""
        label = f"{config.label}-s{config.seed}-{config.fingerprint()[:8]}"
        return cls(root / config.name / label)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").exists()

    def check_is_of(self, config: RunConfig, data_hash: str) -> None:
        """Raise RunError unless this is an untouched run of ``config`` on that data."""
        if self.untouched_config().fingerprint() != config.fingerprint():
            raise RunError(f"{self.path} is the run of another config")
        if data_hash != self.manifest()["data_hash"]:
            raise RunError(f"{self.path} was trained on other data than the corpus now holds")

    def create(
        self, config: RunConfig, manifest: dict[str, Any], tokenizer: TextTokenizer | None = None
    ) -> None:
        """Start a run here, which keeps its tokenizer (None: only its corpus knows it)."""
        with one_line_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if tokenizer is not None:
                text = tokenizer.to_json()
                write_whole(self.path / "tokenizer.json", text)
                manifest = manifest | {"tokenizer_sha256": _sha256(text)}
            write_whole(self.path / "manifest.json", as_json(manifest))
            write_whole(self.path / "config.json", to_json(config))

    def extend(self, steps_more: int) -> RunConfig:
        """Give a finished run more steps to make; returns its new config. Raises RunError.

        The manifest keeps what the run was before, and the old summary stays under its own name.
        A process that dies in between leaves a finished run, or one that `resume` finishes again.
        """
        before, manifest, summary = self.untouched_config(), self.manifest(), self.summary()
        done = before.train.steps
        if summary["steps"] != done or self.checkpoint_steps()[-1:] != [done]:
            raise RunError(f"{self.path} has no checkpoint of its last step {done}")
        ends = dataclasses.replace(
            before.train, steps=done + steps_more, extended_at=before.train.ends()
        )
        config = dataclasses.replace(before, train=ends)
        extension = {
            "from_step": done,
            "to_step": config.train.steps,
            "time": now(),
            "fingerprint_before": before.fingerprint(),
        }
        changed = manifest | {
            "fingerprint": config.fingerprint(),
            "extended": [*manifest.get("extended", []), extension],
        }
        with self.lock(), one_line_errors(self.path):
            write_whole(self.path / "manifest.json", as_json(changed))
            (self.path / "summary.json").rename(self.path / f"summary-step-{done:08d}.json")
            write_whole(self.path / "config.json", to_json(config))
        return config

    def config(self) -> RunConfig:
        """The run's config; raises RunError where there is none or it is damaged."""
        path = self.path / "config.json"
        if not path.is_file():
            raise RunError(f"{self.path} is no run directory: it has no config.json")
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except (ConfigError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}") from None

    def untouched_config(self) -> RunConfig:
        """The config, as it was when the run began; raises RunError."""
        config, manifest = self.config(), self.manifest()
        legal = [manifest["fingerprint"]]
        if manifest.get("extended"):  # a crash may have come between manifest and config
            legal.append(manifest["extended"][-1]["fingerprint_before"])
        if config.fingerprint() not in legal:
            raise RunError(f"{self.path}/config.json was changed after the run began")
        return config

    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer, or None where the run was made before runs kept it; raises RunError."""
        expected = self.manifest().get("tokenizer_sha256")
        if expected is None:
            return None
        path = self.path / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RunError(f"{path} does not exist") from None
        except UnicodeDecodeError as error:
            raise RunError(f"{path} is damaged: {error}") from None
        if _sha256(text) != expected:
            raise RunError(f"{path} was changed after the run began")
        return parse_tokenizer(text, self.config().data.tokenizer.end_of_text, str(path))

    def manifest(self) -> dict[str, Any]:
        """What `muonlab.manifest` found at the start; raises RunError."""
        return self._read_json("manifest.json", "fingerprint", "data_hash", "warnings")

    def summary(self) -> dict[str, Any]:
        """The outcome of a finished run; raises RunError."""
        return self._read_json("summary.json", "steps")

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        with one_line_errors(self.path):
            write_whole(self.path / "summary.json", as_json(summary))

    def status(self) -> str:
        """``finished``, ``running``, ``interrupted`` (has a checkpoint) or ``started``.

        Raises RunError where there is no run, and leaves nothing there.
        """
        if not self.exists():
            raise RunError(f"{self.path} is no run directory: it has no config.json")
        if (self.path / "summary.json").exists():
            return "finished"
        try:
            with self.lock(wait_seconds=0):
                pass
        except RunBusyError:
            return "running"
        except RunError:
            pass  # a directory that may only be read
        return "interrupted" if self.checkpoint_steps() else "started"

    @contextlib.contextmanager
    def lock(self, *, wait_seconds: float = 1.0) -> Iterator[None]:
        """Hold the run for this process; raises RunBusyError if another one holds it.

        It waits a little, because `status` holds every run that it looks at for a moment.
        """
        with one_line_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / ".lock", timeout=wait_seconds)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise RunBusyError(f"{self.path} is in use by another process") from None
        try:
            yield
        finally:
            lock.release()

    # -- metrics ---------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, float | int]) -> None:
        """Add one flat row; it survives a killed process once this returns."""
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._append("metrics.jsonl", json.dumps(finite))

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep what the model wrote after ``step`` updates."""
        self._append("samples.jsonl", json.dumps({"step": step, "prompt": prompt, "text": text}))

    def append_log(self, line: str) -> None:
        """Keep a line of what was said."""
        self._append("log.txt", line)

    def _append(self, name: str, line: str) -> None:
        with one_line_errors(self.path), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line cut by a crash is left out, any other damage raises RunError."""
        return self._rows("metrics.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        """What the model wrote while it trained: ``step``, ``prompt``, ``text``; as `metrics`."""
        return self._rows("samples.jsonl")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines(keepends=True)
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise RunError(f"{path}, line {number}: not JSON") from None
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise RunError(f"{path}, line {number}: no row of a run, it has no step")
            rows.append(row)
        return rows

    def truncate_rows(self, step: int) -> None:
        """Keep what the first ``step`` updates wrote: a resumed run writes the others again."""
        for name, rows in (("metrics.jsonl", self.metrics()), ("samples.jsonl", self.samples())):
            kept = [row for row in rows if step and row["step"] <= step]
            if rows or name == "metrics.jsonl":
                with one_line_errors(self.path):
                    text = "".join(json.dumps(row) + "\n" for row in kept)
                    write_whole(self.path / name, text)

    # -- checkpoints -----------------------------------------------------------------------------

    def checkpoint_steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return checkpoints.steps(self.checkpoints)

    def save_checkpoint(
        self, step: int, model: nn.Module, optimizer: AnyOptimizer, state: RunState, keep: int
    ) -> None:
        """Write a checkpoint, and drop all but the newest ``keep``; raises RunError."""
        checkpoints.save(self.checkpoints, step, model, optimizer, state, keep)

    def load_checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the newest; raises RunError if absent or damaged."""
        return checkpoints.load(self.checkpoints, step)

    def _read_json(self, name: str, *needed: str) -> dict[str, Any]:
        path = self.path / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{path} does not exist") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path} is damaged: {error}") from None
        for key in needed:
            if not isinstance(values, dict) or key not in values:
                raise RunError(f"{path} is damaged: it has no {key!r}")
        return values


def find_runs(root: Path) -> list[RunDirectory]:
    """Every run below ``root``, by path; what lies inside a run is not another one."""
    found: list[Path] = []
    for path in sorted(config.parent for config in root.rglob("config.json")):
        if not any(run in path.parents for run in found):
            found.append(path)
    return [RunDirectory(path) for path in found]


def now() -> str:
    """UTC time, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
