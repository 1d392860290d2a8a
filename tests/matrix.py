"""The suite and a short demo as other machines would run them: ``make matrix``.

    as it is         this machine
    AVX2 alone       a processor without AVX512, AMX and bf16 (x86 only)
    one core         the process may use the first core only
    a CPU quota      a container that may use half of its cores' time (Linux, as root)
    other systems    without the modules and names that macOS or Windows lack

One line of result each; the exit code is 1 if one fails. Output is kept in ``runs/matrix``. After
an interruption the same command goes on: what has passed with the same sources is not run again.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from muonlab.cores import usable_cores

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "runs" / "matrix"
PERIOD = 100_000  # microseconds
SUITE = (sys.executable, "-m", "pytest")
SCRATCH = "{a directory that is deleted afterwards}"
DEMO = (sys.executable, "-m", "muonlab", "demo", "--steps", "2", "--runs-dir", SCRATCH)


class NotHereError(Exception):
    """This machine cannot play that one; the line says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """How commands are run so that they see another machine; ``prefix`` begins each of them."""

    name: str
    commands: Sequence[Sequence[str]] = (SUITE, DEMO)
    environment: dict[str, str] = field(default_factory=dict)
    prefix: Callable[[], AbstractContextManager[Sequence[str]]] = lambda: contextlib.nullcontext(())


@dataclass(frozen=True, slots=True)
class Outcome:
    """``result``: passed, "failed …" or "not run: …"; ``sources``: `fingerprint` at the time."""

    result: str
    seconds: float
    sources: str


@contextlib.contextmanager
def avx2_alone() -> Iterator[Sequence[str]]:
    """No prefix: the environment does it, where there is something to leave out."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX2":
        raise NotHereError("this processor has AVX2 alone, so that the first line is this one")
    if not capability.startswith("AVX"):
        raise NotHereError(f"the processor's instructions are {capability}")
    yield ()


@contextlib.contextmanager
def one_core() -> Iterator[Sequence[str]]:
    """A prefix that keeps a command on one core."""
    if shutil.which("taskset") is None:
        raise NotHereError("there is no taskset")
    yield ("taskset", "-c", str(min(os.sched_getaffinity(0))))


@contextlib.contextmanager
def cpu_quota() -> Iterator[Sequence[str]]:
    """A prefix that puts a command into a control group with half of the time of our cores."""
    microseconds = usable_cores() * PERIOD // 2
    unified, single = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")
    name = f"muonlab-matrix-{os.getpid()}"
    try:
        if (unified / "cgroup.controllers").exists():  # version 2
            (unified / "cgroup.subtree_control").write_text("+cpu")
            group = unified / name
            group.mkdir()
            (group / "cpu.max").write_text(f"{microseconds} {PERIOD}")
        else:
            group = single / name
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(microseconds))
    except OSError as error:
        raise NotHereError(f"no control group can be made: {error}") from None
    try:
        yield ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group))
    finally:
        for _ in range(50):  # until the last of its processes is gone
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


MACHINES = (
    Machine(name="as it is"),
    Machine(
        name="AVX2 alone",
        environment={"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
        prefix=avx2_alone,
    ),
    Machine(name="one core", prefix=one_core),
    Machine(name="a CPU quota", prefix=cpu_quota),
    Machine(
        name="other systems",
        commands=((*SUITE, "-m", "slow", "tests/packaging/test_portability.py"),),
    ),
)


def main(machines: Sequence[Machine] = MACHINES, results: Path = RESULTS) -> int:
    """Run every machine that has not passed yet; returns the exit code."""
    results.mkdir(parents=True, exist_ok=True)
    sources = fingerprint()
    failed = False
    for machine in machines:
        kept = results / f"{machine.name.replace(' ', '-')}.json"
        outcome = read(kept, sources)
        if outcome is None:
            print(f"{machine.name:14} …", end="\r", flush=True)
            outcome = run(machine, kept.with_suffix(".log"), sources)
            kept.write_text(json.dumps(asdict(outcome), indent=2) + "\n", encoding="utf-8")
        print(f"{machine.name:14} {outcome.result}, {outcome.seconds:.0f} s", flush=True)
        failed |= outcome.result.startswith("failed")
    return int(failed)


def run(machine: Machine, log: Path, sources: str) -> Outcome:
    """Run the commands until one fails."""
    start = time.monotonic()
    result = "passed"
    with log.open("w") as output, tempfile.TemporaryDirectory() as scratch:
        try:
            with machine.prefix() as prefix:
                for command in machine.commands:
                    ended = subprocess.run(
                        [*prefix, *(scratch if part == SCRATCH else part for part in command)],
                        cwd=ROOT,
                        env=os.environ | machine.environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        check=False,
                    )
                    if ended.returncode:
                        result = f"failed with exit code {ended.returncode}, see {log}"
                        break
        except NotHereError as reason:
            result = f"not run: {reason}"
    return Outcome(result, time.monotonic() - start, sources)


def read(kept: Path, sources: str) -> Outcome | None:
    """The outcome of an earlier call, if it passed with the same sources."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        outcome = Outcome(**json.loads(kept.read_text(encoding="utf-8")))
        if outcome.result == "passed" and outcome.sources == sources:
            return outcome
    return None


def fingerprint() -> str:
    """A hash of the sources, the tests, the locked packages, the kind of machine and Python."""
    digest = hashlib.sha256(f"{platform.machine()} {platform.python_version()}".encode())
    folders = (ROOT / "src", ROOT / "tests")
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    files += [ROOT / "pyproject.toml", ROOT / "requirements.lock"]
    for file in sorted(files):
        if "__pycache__" not in file.parts:
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nmuonlab: interrupted; `make matrix` goes on from there", file=sys.stderr)
        sys.exit(130)
