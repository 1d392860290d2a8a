"""`optimizer.kind=custom`: the user's own optimizer trains, resumes and is never run unasked."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import Capture, MakeConfig, Train, assert_same_end, complaint, only_run, train_in

from muonlab.cli import run
from muonlab.config import from_json, override, to_json
from muonlab.data import TokenData
from muonlab.loading import load

OWN = """\
from pathlib import Path

import torch

Path("executed").touch()


class Averaged(torch.optim.SGD):  # as schedule-free ones: trains with other weights than it keeps
    is_training = False

    def eval(self):
        self.shift(-1.0 if self.is_training else 0.0)
        self.is_training = False

    def train(self):
        self.shift(0.0 if self.is_training else 1.0)
        self.is_training = True

    @torch.no_grad()
    def shift(self, by):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter += by


def make(model, lr=0.1, momentum=0.9):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


make.step_flops = lambda model: 3 * sum(p.numel() for p in model.parameters())


def averaged(model):
    return Averaged(model.parameters(), lr=0.1)


def lacks(model):
    return torch.optim.SGD(list(model.parameters())[1:], lr=0.1)


def nothing(model):
    return model


def fails(model):
    return 1 / 0


def closure(model):
    return torch.optim.LBFGS(model.parameters())


number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def custom(path: Path, name: str, *options: str) -> list[str]:
    return ["optimizer.kind=custom", f"optimizer.factory={path}:{name}", *options]


def test_it_trains_as_the_optimizer_does(
    own: Path, make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    config = make_config(*custom(own, "make", "optimizer.options.lr=0.02", "train.clip_norm=null"))
    done = train_in(tmp_path / "runs", config, tiny_data)
    assert done.path.name.startswith("own-s0-")

    model = config.model.build(0)
    numel = sum(parameter.numel() for parameter in model.parameters())
    assert done.summary()["optimizer_state_bytes"] == 4 * numel  # one momentum, measured
    rates = [row["train/learning_rate"] for row in done.metrics() if "train/loss" in row]
    expected = [0.02 * config.learning_rate_multiplier(step) for step in range(6)]
    assert rates == pytest.approx(expected)
    assert done.manifest()["optimizer_factory"] == {
        "factory": f"{own}:make",
        "sha256": hashlib.sha256(hashlib.sha256(own.read_bytes()).digest()).hexdigest(),
    }
    assert config.optimizer.build(model).step_flops() == 3 * numel


def test_clipping_is_torchs(own: Path, make_config: MakeConfig) -> None:
    config = make_config(*custom(own, "make"))
    model, other = config.model.build(0), config.model.build(0)
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        twin.grad = parameter.grad.clone()
    norms = config.optimizer.build(model).clip_(0.5)
    norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    torch.testing.assert_close(norms["norm"], norm)
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad)


def test_fingerprints_know_the_source_and_not_its_place(own: Path, make_config: MakeConfig) -> None:
    first = make_config(*custom(own, "make"))
    assert from_json(to_json(first)) == first
    moved = own.parent / "elsewhere"
    moved.mkdir()
    shutil.copy(own, moved / "other.py")
    assert make_config(*custom(moved / "other.py", "make")).fingerprint() == first.fingerprint()
    own.write_text(OWN.replace("lr=0.1", "lr=0.2"))
    assert make_config(*custom(own, "make")).fingerprint() != first.fingerprint()
    others = [
        make_config(*custom(own, "lacks")),
        make_config(*custom(own, "make", "optimizer.options.lr=0.3")),
        override(first, ["optimizer.sha256=null"]),
    ]
    assert len({config.fingerprint() for config in (first, *others)}) == 4
    assert not Path("executed").exists()


def test_a_package_is_hashed_whole_and_not_imported(
    own: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    package = tmp_path / "my_optimizers"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "inner.py").write_text("")
    (package / "sgd.py").write_text("from .inner import x\n" + OWN)
    overrides = ["optimizer.kind=custom", "optimizer.factory=my_optimizers.sgd:make"]
    first = make_config(*overrides)
    (package / "inner.py").write_text("x = 1\n")
    (package / "__init__.py").write_text("")
    second = make_config(*overrides)
    assert first.fingerprint() != second.fingerprint()
    second.optimizer.build(second.model.build(0))
    assert Path("executed").exists()


def test_a_class_is_given_all_parameters(make_config: MakeConfig) -> None:
    config = make_config("optimizer.kind=custom", "optimizer.factory=torch.optim:Adam")
    model = config.model.build(0)
    (group,) = config.optimizer.build(model).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert config.label == "Adam"


@pytest.mark.parametrize("name", ["make", "averaged"])
def test_resumed_equals_uninterrupted(
    own: Path, make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, name: str
) -> None:
    config = make_config(*custom(own, name), "train.keep_checkpoints=9")
    whole = train_in(tmp_path / "whole", config, tiny_data)
    cut = tmp_path / "cut" / whole.path.relative_to(tmp_path / "whole")
    shutil.copytree(whole.path, cut)
    (cut / "summary.json").unlink()
    for step in (4, 6):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:08d}")
    resumed = train_in(tmp_path / "cut", config, tiny_data)
    assert_same_end(whole, resumed)


def test_weights_are_judged_and_kept_as_the_optimizer_would(
    own: Path, make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    """`Averaged` adds 1 to all weights while it trains: nothing that it keeps may show that."""
    kept = train_in(tmp_path, make_config(*custom(own, "averaged")), tiny_data)
    norms = load(kept.path).model.state_dict()
    assert all(value.mean() < 0.5 for name, value in norms.items() if "embedding" in name)


def test_nothing_is_executed_unless_it_is_named_again(
    own: Path, train_tiny: Train, tmp_path: Path, cache_dir: Path, capsys: Capture
) -> None:
    assert train_tiny(*custom(own, "make")) == 0
    made = only_run(tmp_path)
    Path("executed").unlink()
    cache = ["--cache-dir", str(cache_dir)]
    assert run(["generate", str(made.path), "--max-new-tokens", "2"]) == 0
    assert run(["report", str(made.path)]) == 0
    assert run(["eval", str(made.path), *cache]) == 0
    more = ["resume", str(made.path), "--steps-more", "2", *cache]
    assert run(more) == 2
    assert f"executed only if you name it: muonlab resume {made.path} --factory" in complaint(
        capsys
    )
    assert run(["train", str(made.path / "config.json"), "seed=1", *cache]) == 2
    assert "optimizer.factory=" in complaint(capsys)
    assert run(["inspect", str(made.path / "config.json")]) == 2
    assert not Path("executed").exists()

    changed = tmp_path / "changed.py"
    changed.write_text(OWN + "\n")
    assert run([*more, "--factory", f"{changed}:make"]) == 2
    assert "is not the source that the run was configured with" in complaint(capsys)
    assert only_run(tmp_path).config().train.steps == 6
    moved = own.rename(tmp_path / "moved.py")
    assert run([*more, "--factory", f"{moved}:make"]) == 0
    assert made.summary()["steps"] == 8


BAD = [
    ("own.py:lost", "own.py has no 'lost'"),
    ("own.py:mak", "own.py has no 'mak'; did you mean make?"),
    ("own.py:lacks", "own.py:lacks: its optimizer lacks embedding.weight (1 of "),
    ("own.py:nothing", "own.py:nothing: it returned LanguageModel; it must be a torch.optim one"),
    ("own.py:number", "own.py:number is int; it must be a function"),
    ("own.py:fails", "own.py, line 46: ZeroDivisionError: division by zero"),
    ("own.py:closure", "own.py:closure: its optimizer's step needs a closure"),
    ("lost.py:make", "lost.py: No such file or directory"),
    ("syntax.py:make", "syntax.py, line 1: '(' was never closed: def make("),
    ("no_such_package.sophia:make", "module 'no_such_package.sophia' was not found"),
    ("own.py", "factory is 'own.py'; it must be package.module:make or path/to/file.py:make"),
]


@pytest.mark.parametrize(("factory", "message"), BAD, ids=[factory for factory, _ in BAD])
def test_bad_factories(
    own: Path, train_tiny: Train, tmp_path: Path, capsys: Capture, factory: str, message: str
) -> None:
    Path("syntax.py").write_text("def make(\n")
    assert train_tiny("optimizer.kind=custom", f"optimizer.factory={factory}") == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "runs").exists()


def test_bad_options(own: Path, train_tiny: Train, capsys: Capture) -> None:
    assert train_tiny(*custom(own, "make", "optimizer.options.lrr=0.1")) == 2
    line = complaint(capsys)
    assert "an unexpected keyword argument 'lrr'; its options: lr, momentum" in line


def test_state_that_cannot_be_read_back_is_refused_before_training(
    own: Path, make_config: MakeConfig
) -> None:
    config = make_config(*custom(own, "make"))
    optimizer = config.optimizer.build(config.model.build(0))
    optimizer.param_groups[0]["strange"] = Path("x")
    with pytest.raises(ValueError, match="holds a PosixPath; a checkpoint can hold"):
        optimizer.state_dict()
