import json
import re
from pathlib import Path

import pytest
from tiny_runs import Capture

from muonlab.cli import run as command
from muonlab.runs import RunDirectory


def test_json_of_runs(finished_run: RunDirectory, tmp_path: Path, capsys: Capture) -> None:
    root = finished_run.path.parents[1]
    assert command(["runs", str(root), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts["run"] == str(finished_run.path)
    assert (facts["status"], facts["step"], facts["steps"]) == ("finished", 6, 6)
    assert facts["val_loss"] == finished_run.summary()["val/loss"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert command(["runs", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "damaged"
    assert "not JSON" in facts["problem"]
    assert command(["runs", str(tmp_path / "nothing"), "--json"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", ["30", "200"])
def test_a_path_is_on_one_line(
    finished_run: RunDirectory,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    far = RunDirectory(tmp_path / ("long-" * 40) / "[x]")
    far.create(finished_run.config(), finished_run.manifest())
    assert command(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(f" {far.path}")
    assert re.split(r"  +", lines[0])[:3] == ["status", "steps", "train loss"]


def test_watching_until_ctrl_c(
    finished_run: RunDirectory, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("muonlab.cli.run_list.time.sleep", wait)
    assert command(["runs", str(finished_run.path.parents[1]), "--watch"]) == 0
    assert "finished" in capsys.readouterr().out
    assert len(waits) == 3
