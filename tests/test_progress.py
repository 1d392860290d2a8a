import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import TINY, Capture, MakeConfig, directories, only_run

from muonlab.config import override
from muonlab.progress import Display, show_progress
from muonlab.recipes import nano
from muonlab.runs import RunDirectory
from muonlab.signals import stop_signals
from muonlab.streams import LastingStream

ROW = {"train/loss": 4.25, "train/tokens_per_second": 12345.0}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    tmp_path.joinpath("run").mkdir()
    return RunDirectory(tmp_path / "run")


def test_without_a_terminal_lines_tell_how_far_a_run_is(
    run: RunDirectory, capsys: Capture, make_config: MakeConfig
) -> None:
    config = make_config("train.steps=7", "train.log_every=3")
    with show_progress(config, run, 0) as display:
        display.row(0, {"val/loss": 5.5, "val/bits_per_byte": 2.25})
        for step in range(1, 8):
            display.row(step, ROW)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 0: validation loss 5.5000 nats/token, 2.2500 bits/byte"
    steps = [line.split(":")[0] for line in lines[1:]]
    assert steps == ["step 1/7", "step 3/7", "step 6/7"]
    assert re.search(r": loss 4.2500 nats/token, 12,345 tokens/s, \d:\d\d left$", lines[2])
    kept = (run.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in kept] == lines
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in kept)


@pytest.mark.parametrize("width", [20, 32, 50, 80, 200])
def test_the_bar_shows_whole_facts_and_no_number_before_there_is_one(
    run: RunDirectory, make_config: MakeConfig, width: int
) -> None:
    display = Display(make_config("train.steps=60"), run, 0)
    display.console = Console(file=io.StringIO(), width=width, color_system=None)

    def shown() -> list[str]:
        with display.console.capture() as capture:
            display.console.print(display.bar.get_renderable())
        return capture.get().strip(" ━╺╸\n").split(", ")

    assert shown()[0] == "0/60"
    display.draws_bar = True
    display.row(20, ROW)
    whole = ["20/60", "loss 4.2500 nats/token", "12,345 tokens/s", "nano/muon s0"]
    assert shown()[0] == "20/60"
    assert set(shown()) <= set(whole)
    assert (shown() == whole) == (width >= 80)


class Leaving(io.StringIO):
    """A pipe whose reader has left."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return self.descriptor


def test_a_stream_whose_reader_has_left_is_silent(tmp_path: Path) -> None:
    stream = Leaving(tmp_path / "screen")
    with pytest.raises(BrokenPipeError):
        LastingStream(stream, pipe_errors=True).write("four")
    assert LastingStream(stream).write("four") == 4
    os.write(stream.descriptor, b"x")  # now leads nowhere
    os.close(stream.descriptor)
    assert (tmp_path / "screen").read_bytes() == b""


def test_training_goes_on_when_its_reader_leaves(text: Path, tmp_path: Path) -> None:
    program = "import sys; from muonlab.cli import main; sys.exit(main())"
    arguments = ["train", "nano", *TINY, f"data.source.path={text}", "train.log_every=1"]
    command = [sys.executable, "-c", program, *arguments, *directories(tmp_path, tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
    assert process.returncode == 0
    assert only_run(tmp_path).status() == "finished"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no hangup")
@pytest.mark.parametrize("nohup", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_closed_terminal(text: Path, cache_dir: Path, tmp_path: Path, nohup: bool) -> None:
    overrides = [*TINY, f"data.source.path={text}", "train.steps=30", "train.log_every=1"]
    config = override(nano(), overrides)
    directory = RunDirectory.place(tmp_path / "runs", config)
    main, side = pty.openpty()
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    program = ignore * nohup + "import sys; from muonlab.cli import main; sys.exit(main())"
    places = directories(tmp_path, cache_dir)
    command = [sys.executable, "-c", program, "train", "nano", *overrides, *places]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, start_new_session=True
    )
    os.close(side)
    deadline = time.monotonic() + 120
    while not any(row["step"] >= 3 for row in directory.metrics()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.close(main)
    process.send_signal(signal.SIGHUP)
    process.wait(120)
    if nohup:
        assert process.returncode == 0
        assert directory.status() == "finished"
    else:
        assert process.returncode == 129
        assert directory.status() == "interrupted"
        assert directory.checkpoint_steps()[-1] >= 3


def test_an_ignored_hangup_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before: Any = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop == []
    finally:
        signal.signal(signal.SIGHUP, before)
