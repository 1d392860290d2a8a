"""Fixtures of the trainer's tests: a tiny text, its cache, and runs on it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from on_device import working_on
from tiny_runs import TINY, MakeConfig, Train, directories, write_text

from muonlab.cli import run
from muonlab.config import override
from muonlab.data import TokenData
from muonlab.recipes import nano
from muonlab.runs import RunDirectory
from muonlab.train import train

# No test asserts a time: a container's quota may stop any example for a while.
hypothesis.settings.register_profile("muonlab", deadline=None)
hypothesis.settings.load_profile("muonlab")

# Tests leave the user's cache alone and keep one of their own from session to session.
USER_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "user-cache"
os.environ["XDG_CACHE_HOME"] = str(USER_CACHE.absolute())


# A shell ignores SIGINT for what it starts in the background, nohup ignores SIGHUP, and children
# inherit that: tests of signals want them as in a terminal.
for name in ("SIGINT", "SIGHUP"):
    if (number := getattr(signal, name, None)) and signal.getsignal(number) is signal.SIG_IGN:
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(number, default)


@pytest.fixture(autouse=True)
def _same_threads():
    """A command run in this process may set its threads; runs are bitwise equal only at as many."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one: the test runs once on each."""
    return torch.device(request.param)


@pytest.fixture
def on_device(device: torch.device) -> Iterator[None]:
    """The test works on that device: see ``tests/on_device.py``."""
    if device.type == "cpu":
        yield
        return
    with working_on(device):
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "invented.txt", 30_000)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def make_config(text: Path) -> MakeConfig:
    """The tiny config with overrides."""
    return lambda *overrides: override(nano(), [*TINY, f"data.source.path={text}", *overrides])


@pytest.fixture(scope="session")
def tiny_data(make_config: MakeConfig, cache_dir: Path) -> TokenData:
    return make_config().data.prepare(cache_dir, progress=False)


@pytest.fixture(scope="session")
def finished_run(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A whole run of the tiny config; do not write to it."""
    config = make_config("train.keep_checkpoints=9")
    run = RunDirectory.place(tmp_path_factory.mktemp("runs"), config)
    train(config, run, tiny_data, progress=False)
    return run


@pytest.fixture
def train_tiny(text: Path, cache_dir: Path, tmp_path: Path) -> Train:
    """``muonlab train nano`` on the tiny text with more overrides; the exit code."""

    def call(*overrides: str) -> int:
        arguments = ["train", "nano", *TINY, f"data.source.path={text}", *overrides]
        return run([*arguments, *directories(tmp_path, cache_dir)])

    return call
