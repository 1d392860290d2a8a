"""The wheel and the sdist, built once, and environments in which the wheel is installed."""

import re
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of this source tree."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is in the extra dev")
    folder = tmp_path_factory.mktemp("distributions")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="session")
def optimizer_environment(
    distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An environment with the wheel, torch, what torch requires, and nothing else."""
    environment = tmp_path_factory.mktemp("optimizer") / "venv"
    packages = install(distributions[0], environment)
    for name in requirements_of("torch"):
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    return environment


@pytest.fixture(scope="session")
def lab_environment(
    distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An environment with the wheel and every package of this one; no editable install."""
    environment = tmp_path_factory.mktemp("lab") / "venv"
    packages = install(distributions[0], environment)
    (packages / "others.pth").write_text(
        "\n".join(path for path in sys.path if "-packages" in path)
    )
    return environment


def install(wheel: Path, environment: Path) -> Path:
    """Make an environment with the wheel alone; returns where its packages are."""
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)
    places = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", "venv", places))


def requirements_of(name: str) -> set[str]:
    """The distribution and all that it requires without extras, as far as they are installed."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for requirement in metadata.requires(name) or ():
            needed, _, marker = requirement.partition(";")
            if not marker:
                waiting.append(re.split(r"[^A-Za-z0-9._-]", needed, maxsplit=1)[0])
    return found
