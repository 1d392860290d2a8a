"""A study of a user's own file: everything that built-in studies have, and mistakes in one line."""

import re
import shutil
from pathlib import Path

import pytest

from muonlab.cli import run
from muonlab.lab.experiment import Search, Study
from muonlab.lab.grid import arm_name, grid
from muonlab.lab.study_file import read_studies
from muonlab.recipes import nano

Capture = pytest.CaptureFixture[str]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "studies.md"
SMALL = """\
from muonlab.lab.experiment import Arm, Study
from muonlab.recipes import nano


def study(scale="quick"):
    return Study(
        name="mine", scale=scale, question="?", arms=(Arm(name="a", config=nano()),), seeds=(0,)
    )
"""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example of the how-to page, word for word."""
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"`my_study.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert text.count("\n") <= 15
    (tmp_path / "my_study.py").write_text(text)
    return Path("my_study.py")


def test_the_example_of_the_page_is_a_study(example: Path, capsys: Capture) -> None:
    assert run(["study", "show", str(example)]) == 0
    text = capsys.readouterr().out
    assert "momentum at scale nano: Does momentum help" in text
    assert "arm off (honest)\n    optimizer.momentum: 0.95 → 0.0\n" in text
    assert run(["study", "list", str(example)]) == 0
    assert re.search(r"momentum\s+6", capsys.readouterr().out)
    assert run(["study", "status", str(example)]) == 0
    assert re.search(r"momentum\s+6", capsys.readouterr().out)


@pytest.mark.slow
def test_the_commands_of_the_page(example: Path, cache_dir: Path, capsys: Capture) -> None:
    commands = re.findall(r"\$ muonlab (study \w+ my_study.py[^#\n]*)", PAGE.read_text())
    assert len(commands) == 5
    for command in commands:
        cache = ["--cache-dir", str(cache_dir)] if " run " in command else []
        assert run([*command.split(), *cache]) == 0
    out = capsys.readouterr().out
    assert "6 runs to make" in out
    assert (Path("results") / "momentum.nano" / "index.html").exists()
    shutil.rmtree(next(Path("runs/studies/momentum.nano").glob("off-s0-*")))
    assert run(["study", "run", str(example), "--cache-dir", str(cache_dir)]) == 0


def test_a_function_makes_any_scale(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SMALL)
    assert [study.scale for study in read_studies(path)] == ["quick"]
    assert [study.scale for study in read_studies(path, "huge")] == ["huge"]


JUDGED = SMALL.replace("seeds=(0,)", "seeds=(0,), judge=lambda frame: 1 / 0")
BAD = {
    "syntax": ("x = (\n", "mine.py, line 1: '(' was never closed: x = ("),
    "none": ("x = 1\n", "mine.py defines no study; it must have a Study, a Measurement, or"),
    "twice": (SMALL + "other = study()\n", "mine.py defines two studies of the name 'mine'"),
    "built-in": (SMALL.replace('"mine"', '"p2-leak"'), "a built-in study is called 'p2-leak'"),
    "labels": (
        SMALL.replace(
            'Arm(name="a", config=nano()),',
            'Arm(name="a", config=nano(), labels={"x": 1}),'
            ' Arm(name="b", config=nano(), labels={"x": 1})',
        ),
        "mine.py, line 6: ValueError: arms 'a' and 'b' have the same labels: x 1",
    ),
    "named scale": (
        SMALL + "value = study()\ndel study\n",
        "mine.py defines mine at scale quick, not nano",
    ),
    "bad scale": (SMALL.replace("scale=scale", 'scale="a b"'), "scale 'a b' must be small letters"),
    "judge": (JUDGED, "mine.py, line 7: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD)
def test_bad_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(source)
    assert run(["study", "report", "mine.py", "--scale", "nano"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("muonlab: ")
    assert message in error
    assert "Traceback" not in error


def test_grid_names_labels_and_tunes() -> None:
    arms = grid(
        nano(),
        {
            "kind": {"big_one": {"model.dim": 64}, "small": lambda config: config},
            "budget": {0.5: {"train.steps": 30}, 1.0: {}},
        },
        name="{kind}-{budget:.2f}",
        search=lambda labels: Search(space={"optimizer.lr": (1e-3, 1e-1)}),
        tuned_at={"budget": 1.0},
    )
    assert [arm.name for arm in arms] == [
        "big.one-0.50",
        "big.one-1.00",
        "small-0.50",
        "small-1.00",
    ]
    assert [arm.tuned_as for arm in arms] == ["big.one-1.00", None, "small-1.00", None]
    assert [arm.search is None for arm in arms] == [True, False, True, False]
    assert (arms[0].config.model.dim, arms[0].config.train.steps) == (64, 30)
    assert arms[3].config == nano()
    assert arms[0].labels == {"kind": "big_one", "budget": 0.5}
    assert arm_name(arms, kind="small", budget=0.5) == "small-0.50"
    with pytest.raises(ValueError, match="2 arms have"):
        arm_name(arms, kind="small")
    Study(name="grid", scale="any", question="?", arms=arms, seeds=(0,))
