"""`make gpu` without a GPU: every part at toy sizes, and what it says where it cannot run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, Part

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _same_default_device():
    yield
    torch.set_default_device(None)


# the tests and transformers' Mixtral take seconds to import; a dry run makes them, too
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if name in ("tests", "paper") else [])
    for name in PARTS
])  # fmt: skip
def test_every_part_at_toy_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu.measure(name, CPU, tmp_path, tiny=True)
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    assert facts["rows"]
    assert facts["toy_sizes"]
    assert facts["machine"]["device"] == "cpu"
    gpu.write_table(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert f"## {PARTS[name].title}" in table
    assert all(f"| {column} |" in table for column in list(facts["rows"][0])[:1])


def test_a_part_that_fails_or_hangs_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def answer(name: str, options: gpu.Options, out: Path) -> str | None:
        if name == "decode":
            return "failed, see decode.log"
        gpu.measure(name, CPU, out, tiny=True)
        return None

    rows = [{"value, s": 1.23456}]
    monkeypatch.setattr(gpu, "run_part", answer)
    for name in ("optimizer", "decode", "paper"):
        monkeypatch.setitem(PARTS, name, Part(name, 1, lambda device, tiny: rows))
    options = gpu.Options(dry_run=True, out=tmp_path, only=("optimizer", "decode", "paper"))
    assert gpu.main(options) == 1
    assert {path.stem for path in tmp_path.glob("*.json")} == {"optimizer", "paper"}
    assert "without decode" in capsys.readouterr().out
    assert "| 1.235 |" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(gpu, "run_part", lambda name, *rest: "ran again")
    gpu.main(options)
    said = capsys.readouterr().out
    assert said.count("measured before") == 2
    assert said.count("ran again") == 1


def test_a_part_over_its_budget_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PARTS, "decode", Part("decode", 0, lambda device, tiny: []))
    options = gpu.Options(dry_run=True, out=tmp_path)
    assert "took more than its 0 s" in str(gpu.run_part("decode", options, tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (gpu.Options(), "torch finds no CUDA GPU here"),
        (gpu.Options(dry_run=True), "--dry-run needs --out"),
        (gpu.Options(dry_run=True, out=Path("x"), only=("sing",)), "part 'sing' is unknown; legal"),
    ],
)
def test_what_cannot_run_is_one_line(
    options: gpu.Options, message: str, capsys: pytest.CaptureFixture[str]
):
    assert gpu.main(options) == 2
    said = capsys.readouterr().out
    assert message in said
    assert said.count("\n") == 1
