"""What `pip install muonlab` brings, what works without its extras, and what is in the files."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny_runs import write_text

OPTIMIZER = """
import sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch's own, without numpy
import torch
from muonlab.optim import Muon, build_groups

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
optimizer = Muon(build_groups(model), lr=0.1)
inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
losses = []
for _ in range(20):
    loss = (model(inputs) - inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
assert {"numpy", "pydantic", "tyro", "tokenizers"}.isdisjoint(sys.modules)
print(sys.modules["muonlab"].__file__)
"""


def outside(environment: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in a directory that holds nothing."""
    empty = environment.parent / "empty"
    empty.mkdir(exist_ok=True)
    return subprocess.run(
        [str(environment / "bin" / program), *arguments],
        cwd=empty,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_optimizer_needs_torch_alone(optimizer_environment: Path) -> None:
    result = outside(optimizer_environment, "python", "-c", OPTIMIZER)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(optimizer_environment))


@pytest.mark.slow
def test_the_command_says_which_extra_it_needs(optimizer_environment: Path) -> None:
    result = outside(optimizer_environment, "muonlab", "train", "nano")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "muonlab: the command needs tyro, which is not installed: pip install 'muonlab[lab]'\n"
    )


def test_the_wheel_holds_what_it_needs_and_requires_torch_alone(
    distributions: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = wheel.namelist()
        (facts,) = (name for name in names if name.endswith("/METADATA"))
        lines = wheel.read(facts).decode().splitlines()
    for file in ("py.typed", "model/native.cpp", "report/templates/page.html", "__main__.py"):
        assert f"muonlab/{file}" in names
    assert all(name.startswith(("muonlab/", "muonlab-")) for name in names)
    needed = [line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert [line.split()[1].partition("<")[0] for line in needed] == ["torch"]


def test_the_sdist_is_small_and_builds_the_same_wheel(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, sdist = distributions
    assert sdist.stat().st_size < 2e6
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (source,) = (tmp_path / "sdist").iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(tmp_path)], cwd=source, check=True)
    assert contents(tmp_path / wheel.name) == contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_directory(lab_environment: Path) -> None:
    empty = lab_environment.parent / "empty"
    empty.mkdir(exist_ok=True)
    write_text(empty / "own.txt", 60_000)
    arguments = ["--data", "own.txt", "--steps", "1", "--cache-dir", "cache"]
    result = outside(lab_environment, "muonlab", "demo", *arguments)
    assert result.returncode == 0, result.stderr
    assert (empty / "runs" / "demo" / "report" / "index.html").stat().st_size > 100_000
    where = outside(lab_environment, "python", "-c", "import muonlab; print(muonlab.__file__)")
    assert where.stdout.startswith(str(lab_environment))
