"""`make matrix`: a line a machine, failures counted, what has passed not run again."""

import sys
from pathlib import Path

import matrix
import pytest
from matrix import Machine, NotHereError

PASS = (sys.executable, "-c", "import os; print(os.environ['AS'])")
FAIL = (sys.executable, "-c", "import sys; sys.exit(3)")


def not_here() -> None:
    raise NotHereError("there is no such tool")


def test_one_line_a_machine_and_what_has_passed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = [
        Machine(name="good one", commands=[PASS, PASS], environment={"AS": "other"}),
        Machine(name="bad", commands=[FAIL, PASS]),
        Machine(name="absent", commands=[PASS], prefix=not_here),  # type: ignore[arg-type]
    ]
    assert matrix.main(machines, tmp_path) == 1
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    results = [line for line in lines if not line.endswith("…")]
    assert [line[:14].strip() for line in results] == ["good one", "bad", "absent"]
    assert results[0][15:].startswith("passed, ")
    assert f"failed with exit code 3, see {tmp_path / 'bad.log'}" in results[1]
    assert "not run: there is no such tool" in results[2]
    assert (tmp_path / "good-one.log").read_text() == "other\nother\n"

    (tmp_path / "good-one.log").write_text("kept")
    assert matrix.main(machines[:1], tmp_path) == 0
    assert (tmp_path / "good-one.log").read_text() == "kept"
    monkeypatch.setattr(matrix, "fingerprint", lambda: "of changed sources")
    assert matrix.main(machines[:1], tmp_path) == 0
    assert (tmp_path / "good-one.log").read_text() == "other\nother\n"


def test_one_core_is_one_core(tmp_path: Path) -> None:
    show = (sys.executable, "-c", "import muonlab.cores as c; print(c.usable_cores())")
    for prefix in (matrix.one_core, matrix.cpu_quota):
        machine = Machine(name="limited", commands=[show], prefix=prefix)
        outcome = matrix.run(machine, tmp_path / "log", "sources")
        if not outcome.result.startswith("not run"):
            assert outcome.result == "passed"
            cores = 1 if prefix is matrix.one_core else max(matrix.usable_cores() // 2, 1)
            assert (tmp_path / "log").read_text() == f"{cores}\n"
