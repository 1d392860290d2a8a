"""README and tutorial, command by command as they stand; a stranger's three tasks, timed.

A page's shell blocks are run in their order, in a clean clone of the last commit and in an empty
directory over an installed wheel. What the walk leaves out or makes shorter, it prints (``-s``).
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from muonlab.cli import COMMANDS

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone"),
    pytest.mark.skipif(sys.platform == "win32", reason="the pages' shell is a POSIX one"),
]
PAGES = ("README.md", "docs/tutorial.md")
TEXTS = ("my-book.txt", "letters.md", "my.txt", "other.txt", "a.md", "b.txt")
SKIPPED = {  # how a line begins: why it is not walked
    "make ": "it makes an environment and needs a package index; `.ci/run` and `make matrix` do it",
    ". .venv": "it belongs to `make setup`",
    "pip install": "the wheel is installed by another test's fixture",
    "muonlab study report p2-leak": "there are no runs to report, only their costs were asked for",
}
SHORT = {  # how a line begins: what is added, or put in the place of its end
    "muonlab train small": "train.steps=6 train.batch_size=8 train.evaluate_batches=2",
    "muonlab demo": "--steps 2",
    "muonlab study run p2-leak": "--dry-run",
}


@dataclass(frozen=True)
class Line:
    """A command of a page; what the page shows as its output; whether the reader stops it."""

    command: str
    output: tuple[str, ...]
    interrupted: bool


@dataclass(frozen=True)
class Shell:
    """Commands in a directory, with the home and the caches of a new user."""

    place: Path
    python: Path
    environment: dict[str, str]

    def __call__(self, command: str) -> str:
        """Run a command of a page; returns what it printed on standard output."""
        command = self.fill_in(command)
        done = subprocess.run(
            command.replace("muonlab ", f"{self.python} -m muonlab ", 1),
            shell=True,
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def interrupt(self, command: str) -> None:
        """Run a training, press Ctrl-C after its first step."""
        arguments = shlex.split(command)[1:]
        process = subprocess.Popen(
            [str(self.python), "-m", "muonlab", *arguments],
            cwd=self.place,
            env=self.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        for said in process.stderr:
            if re.match(r"step [1-9]\d*/", said):
                process.send_signal(signal.SIGINT)
                break
        _, rest = process.communicate()
        assert process.returncode == 130, f"{command}\n{rest}"

    def fill_in(self, command: str) -> str:
        """A name that a page leaves open (…) is that of the newest run of its kind."""

        def newest(match: re.Match[str]) -> str:
            pattern = match[0].replace("…", "*")
            found = [path for path in self.place.glob(pattern) if (path / "config.json").exists()]
            assert found, f"{command}: no run is named {pattern}"
            latest = max(found, key=lambda path: (path / "metrics.jsonl").stat().st_mtime)
            return str(latest.relative_to(self.place))

        return re.sub(r"runs/\S*…", newest, command)


@pytest.fixture(scope="module", params=["clone", "wheel"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """In a clean clone over its sources, and in an empty directory over the wheel."""
    place, home = (tmp_path_factory.mktemp(f"{request.param}-{name}") for name in ("work", "home"))
    environment = os.environ | {"HOME": str(home), "COLUMNS": "100"}
    environment.pop("XDG_CACHE_HOME", None)
    if request.param == "clone":
        subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
        environment["PYTHONPATH"] = str(place / "src")
        return Shell(place, Path(sys.executable), environment)
    environment.pop("PYTHONPATH", None)
    environment_directory: Path = request.getfixturevalue("lab_environment")
    return Shell(place, environment_directory / "bin" / "python", environment)


def book(seed: int) -> str:
    """Sentences of a small grammar, a paragraph each: enough for every split."""
    subjects = ["the river", "a miller", "our sister", "an old fox", "the winter", "every lamp"]
    verbs = ["remembers", "forgets", "carries", "follows", "answers", "builds"]
    objects = ["a stone bridge", "the long road", "two letters", "no one", "the snow", "its name"]
    lines = []
    for number in range(seed, seed + 6000):
        a, b, c = number % 6, number // 6 % 6, number // 36 % 6
        lines.append(f"{subjects[a]} {verbs[b]} {objects[c]}, {number} times.".capitalize())
    return "\n\n".join(lines)


def read_page(text: str) -> Iterator[Line]:
    """Every command of a page's ``sh`` and ``console`` blocks, in order."""
    blocks = re.findall(r"^```(sh|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [(kind, line.strip()) for kind, block in blocks for line in block.splitlines()]
    commands: list[tuple[str, list[str]]] = []
    for kind, line in lines:
        if kind == "console" and not line.startswith("$ "):
            commands[-1][1].append(line)
        elif line and not line.startswith("#"):
            commands.append((re.split(r" +# ", line)[0].removeprefix("$ "), []))
    for number, (command, output) in enumerate(commands):
        following = commands[number + 1 :]
        trains = [i for i, (each, _) in enumerate(following) if each.startswith("muonlab train")]
        resumes = [
            i
            for i, (each, _) in enumerate(following)
            if each.startswith("muonlab resume") and "--steps-more" not in each
        ]
        # A run is resumed because its reader has stopped it: the last one before.
        stopped = command.startswith("muonlab train") and bool(resumes)
        stopped = stopped and not (trains and trains[0] < resumes[0])
        yield Line(command, tuple(output), stopped)


def write_files(text: str, place: Path) -> None:
    """The reader's texts, and the Python files that a page shows under their name."""
    for number, name in enumerate(TEXTS):
        (place / name).write_text(book(1000 * number), encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if match := re.match(r"# (\w+\.py)\n", code):
            (place / match[1]).write_text(code, encoding="utf-8")


def shortened(command: str) -> str:
    """The same command at a test's length."""
    for beginning, added in SHORT.items():
        if command.startswith(beginning):
            command = re.sub(r" train\.steps=\d+", "", command)
            return f"{command} {added}"
    return re.sub(r"--steps-more \d+", "--steps-more 2", command)


def assert_shown(shown: tuple[str, ...], printed: str) -> None:
    """Every line that a page shows was printed, in this order; ``…`` and blanks stand for any."""
    rest = [" ".join(line.split()) for line in printed.splitlines()]
    for line in shown:
        pattern = re.escape(" ".join(line.split())).replace("…", ".*")
        found = [i for i, each in enumerate(rest) if re.fullmatch(pattern, each)]
        assert found, f"not printed: {line}\n{printed}"
        rest = rest[found[0] + 1 :]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works_as_it_stands(shell: Shell, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    write_files(text, shell.place)
    shutil.rmtree(shell.place / "runs", ignore_errors=True)  # of the page before
    lines = list(read_page(text))
    assert len(lines) >= 12
    for line in lines:
        why = [why for beginning, why in SKIPPED.items() if line.command.startswith(beginning)]
        if why:
            print(f"{'not walked':>10}  {line.command}: {why[0]}")
            continue
        words = line.command.split()
        if words[0] == "muonlab" and not words[1].startswith("-"):
            assert words[1] in COMMANDS, line.command
        command = shortened(line.command)
        started = time.perf_counter()
        if line.interrupted:
            shell.interrupt(command)
        else:
            assert_shown(line.output, shell(command))
        seconds = f"{time.perf_counter() - started:.1f} s"
        changed = "" if command == line.command else f"  (walked as: {command})"
        stopped = "  (stopped by Ctrl-C)" if line.interrupted else ""
        print(f"{seconds:>10}  {line.command}{changed}{stopped}")


def test_a_strangers_three_tasks(shell: Shell) -> None:
    def timed(task: str, *commands: str) -> str:
        started = time.perf_counter()
        output = "".join(shell(command) for command in commands)
        print(f"{time.perf_counter() - started:8.1f} s  {task}")
        return output

    write_files("", shell.place)
    own = "muonlab train nano --data my-book.txt name=own"
    speak = (
        "muonlab generate runs/own/muon-s0-… --prompt 'the river' "
        "--temperature 0 --max-new-tokens 8"
    )
    written = timed("train on an own text, and let the model write", own, speak)
    told = written.splitlines()[-1]
    assert told.startswith("the river")
    other = f"{own} optimizer.kind=adamw optimizer.lr=0.003"
    table = timed("compare two runs", other, "muonlab compare runs/own")
    assert {"muon", "adamw"} <= set(table.split())
    assert (shell.place / "runs" / "comparison" / "index.html").exists()
    timed("take the model to transformers", "muonlab export runs/own/muon-s0-… --to my-hf-model")
    pytest.importorskip("transformers")
    program = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        "model = M.from_pretrained('my-hf-model'); words = T.from_pretrained('my-hf-model'); "
        "prompt = words('the river', return_tensors='pt'); "
        "written = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]; "
        "print(words.decode(written, skip_special_tokens=True))"
    )
    assert shell(f'{shell.python} -c "{program}"').splitlines()[-1] == told
