"""The command before it does any work: quick help, its version, what ends it early."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from tiny_runs import Train

from muonlab import __version__
from muonlab.bench.optimizer import SETS
from muonlab.cli import COMMANDS, run
from muonlab.cli.options import RESULTS_DIR, STUDIES_DIR
from muonlab.lab.plan import ROOT
from muonlab.report.claims import RESULTS

MAIN = "from muonlab.__main__ import main; main()"
FORBID = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            {act}
sys.meta_path.insert(0, Forbidden())
"""


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def at_import_of(names: Sequence[str], act: str) -> str:
    """The start of a program: ``act`` runs where a module of one of the names is imported."""
    return FORBID.format(names=set(names), act=act)


def test_help_imports_neither_torch_nor_pandas() -> None:
    forbid = at_import_of(["torch", "numpy", "pandas", "pydantic"], "raise AssertionError(name)")
    lines = [[name, "--help"] for name in COMMANDS]
    lines += [["--help"], ["study", "run", "--help"], ["bench", "decode", "--help"]]
    program = f"{forbid}from muonlab.cli import run\nsys.exit(any(run(line) for line in {lines}))"
    result = python(program)
    assert result.returncode == 0, result.stderr
    assert "Continue an interrupted run" in result.stdout


def test_defaults_that_help_shows_are_those_of_the_library(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (STUDIES_DIR, RESULTS_DIR) == (ROOT, RESULTS)
    assert run(["bench", "optimizer", "--help"]) == 0
    assert f"(default: {' '.join(SETS)})" in " ".join(capsys.readouterr().out.split())


def test_version() -> None:
    command = [sys.executable, "-m", "muonlab", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"muonlab {__version__}, torch ")
    assert output.count("\n") == 1


def test_a_warning_of_the_model_is_said_once(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="not causal") as warned:
        assert train_tiny("model.attention.kind=mhla", "train.steps=1") == 0
    captured = capsys.readouterr()
    said = captured.out.count("not causal") + captured.err.count("not causal")
    places = {(each.filename, each.lineno) for each in warned}  # Python shows one of each
    assert len(places) + said == 1, places


GROUPS = {"study": "run report show status list", "bench": "attention decode optimizer"}


def test_help_shows_no_default_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [[name] for name in COMMANDS] + [["theory", "run"], ["data", "prepare"]]
    lines += [[group, name] for group, names in GROUPS.items() for name in names.split()]
    for line in lines:
        assert run([*line, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for riddle in ("{None}", "(default: )", "(default: None)"):
            assert riddle not in text, line


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion_knows_the_commands(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--tyro-print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)


def test_without_its_packages_the_command_says_how_to_get_them() -> None:
    forbid = at_import_of(["tyro"], "raise ModuleNotFoundError(name=name)")
    result = python(forbid + MAIN, "inspect")
    assert result.returncode == 2
    assert result.stderr == (
        "muonlab: the command needs tyro, which is not installed: pip install 'muonlab[lab]'\n"
    )


@pytest.mark.parametrize("module", ["tyro", "torch"])
def test_ctrl_c_while_modules_are_imported(module: str) -> None:
    interrupt = at_import_of([module], "sys.meta_path.pop(0); os.kill(os.getpid(), signal.SIGINT)")
    result = python("import os, signal" + interrupt + MAIN, "inspect", "nano")
    assert (result.returncode, result.stderr) == (130, "muonlab: interrupted\n")


def test_a_reader_that_leaves_is_no_failure() -> None:
    """As in `muonlab inspect nano | head -3`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "muonlab", "inspect", "nano"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_argument_that_is_not_utf8_is_one_line() -> None:
    command = [sys.executable, "-m", "muonlab", "generate", "run", "--prompt", b"caf\xe9"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "muonlab: 'caf\\udce9' is not UTF-8; arguments and names of files must be\n"
    )


def test_a_mistake_of_our_own_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr("muonlab.recipes.recipe", fail)
    with pytest.raises(ValueError, match="shorter than"):
        run(["inspect", "nano"])
