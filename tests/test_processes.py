import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    TINY,
    assert_same_end,
    directories,
)

from muonlab.cli import run
from muonlab.config import override
from muonlab.data import TokenData
from muonlab.recipes import nano
from muonlab.runs import RunBusyError, RunDirectory
from muonlab.train import train

if sys.platform == "win32":
    pytest.skip("Windows stops a process by other means than signals", allow_module_level=True)


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "muonlab", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def wait_for_step(process: subprocess.Popen[str], directory: RunDirectory, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in directory.metrics()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),  # handled by the same lines as SIGINT
    ],
)
def test_a_stopped_process_is_resumed_to_the_same_weights(
    text: Path,
    cache_dir: Path,
    tiny_data: TokenData,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    overrides = [
        *TINY,
        f"data.source.path={text}",
        "train.steps=40",
        "train.evaluate_every=10",
        "train.checkpoint_every=3",
        "model.dropout=0.1",
        "model.ffn.router_noise=0.5",
    ]
    config = override(nano(), overrides)
    directory = RunDirectory.place(tmp_path / "runs", config)
    arguments = ["train", "nano", *overrides, *directories(tmp_path, cache_dir)]
    # under a CPU quota a command would take fewer threads than this process has
    with start(arguments, OMP_NUM_THREADS=str(torch.get_num_threads())) as process:
        wait_for_step(process, directory, 8)
        assert directory.status() == "running"
        with pytest.raises(RunBusyError), directory.lock(wait_seconds=0):
            pass
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert "Traceback" not in error
    assert directory.status() == "interrupted"
    assert run(["resume", str(directory.path), "--cache-dir", str(cache_dir)]) == 0
    whole = RunDirectory.place(tmp_path / "whole", config)
    train(config, whole, tiny_data, progress=False)
    assert_same_end(whole, directory)


def test_a_terminal_without_unicode() -> None:
    with start(["inspect", "nano"], PYTHONIOENCODING="ascii", LC_ALL="C") as process:
        output, error = process.communicate()
    assert process.returncode == 0
    assert "74,144" in output
    assert error == ""
