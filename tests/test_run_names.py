from dataclasses import replace
from pathlib import Path

from muonlab.config import from_json, override, to_json
from muonlab.optim.config import AdamWConfig
from muonlab.recipes import nano
from muonlab.run_names import arm_names
from muonlab.runs import RunDirectory


def test_a_run_is_called_by_its_optimizer() -> None:
    adamw = override(nano(), ["optimizer.kind=adamw"])
    assert RunDirectory.place(Path(), adamw).path.name.startswith("adamw-s0-")
    assert replace(nano(), optimizer=AdamWConfig()).label == "adamw"
    assert from_json(to_json(adamw)).label == "adamw"
    assert override(nano(), ["optimizer.kind=adamw", "variant=mine"]).label == "mine"
    assert override(nano(), ["variant=2026"]).label == "2026"


def test_only_the_seed_may_differ_within_an_arm() -> None:
    configs = [
        override(nano(), changes)
        for changes in ([], ["seed=3"], ["name=other", "variant=x"], ["optimizer.lr=0.5"])
    ]
    keys = [config.arm_fingerprint() for config in configs]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_arms_of_one_label_are_told_apart_by_what_differs() -> None:
    changes = ["seed=1"], ["optimizer.lr=0.5", "seed=1"], ["optimizer.kind=adamw"]
    configs = [nano(), *(override(nano(), list(change)) for change in changes)]
    assert arm_names(configs) == [
        "muon (optimizer.lr=0.01)",
        "muon (optimizer.lr=0.01)",
        "muon (optimizer.lr=0.5)",
        "adamw",
    ]
    assert arm_names(configs[:2]) == ["muon", "muon"]
    assert arm_names([]) == []


def test_a_run_misnamed_on_disk_is_no_seed_of_another_arm() -> None:
    misnamed = override(nano(), ["optimizer.kind=adamw", "variant=muon", "seed=1"])
    first, second = arm_names([nano(), misnamed])
    assert first != second


def test_arms_with_many_differences_go_by_their_fingerprint() -> None:
    other = override(nano(), [f"train.{name}=7" for name in ("steps", "batch_size")])
    third = override(nano(), ["model.dim=64", "optimizer.lr=1", "train.steps=9"])
    configs = [nano(), other, third]
    expected = [f"muon ({config.arm_fingerprint()[:8]})" for config in configs]
    assert arm_names(configs) == expected
