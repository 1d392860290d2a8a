"""`compare_optimizer`: what it makes of known outcomes, and takes from others."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from muonlab.cli import run
from muonlab.config import RunConfig, changed
from muonlab.errors import UserError
from muonlab.lab.compare import compare_optimizer
from muonlab.lab.engine import Resources, run_study
from muonlab.lab.experiment import Study
from muonlab.lab.plan import Plan
from muonlab.lab.results import StudyResults
from muonlab.report.study import write_study

MakeConfig = Callable[..., RunConfig]
Capture = pytest.CaptureFixture[str]
FACTORY = "torch.optim:NAdam"
SPACE = {"lr": (1e-4, 1e-1)}


@pytest.fixture
def study(make_config: MakeConfig) -> Study:
    base = make_config("train.steps=8")
    return compare_optimizer(FACTORY, space=SPACE, base=base, scale="tiny", results=None, seeds=3)


def frame_of(study: Study, losses: dict[str, float]) -> pd.DataFrame:
    """Every seed's loss is the arm's and a little more, the same in every arm."""
    return pd.DataFrame(
        {
            "arm": arm.name,
            "seed": seed,
            "loss": losses[arm.name] + 0.001 * seed,
            "steady_seconds": 1.0,
            "run": "",
            "regret": 0.0,
        }
        for arm in study.arms
        for seed in study.seeds
    )


def test_every_arm_has_its_search_and_its_share_of_updates(study: Study) -> None:
    arms = {arm.name: arm for arm in study.arms}
    assert list(arms) == ["adamw", "muon", "nadam-0.25", "nadam-0.50", "nadam-0.75", "nadam-1.00"]
    assert [arms[name].config.train.steps for name in list(arms)[2:]] == [2, 4, 6, 8]
    searches = [arm.search for arm in study.arms if arm.search]
    assert len(searches) == 3
    assert len({search.total_runs for search in searches}) == 1
    assert arms["nadam-0.50"].tuned_as == "nadam-1.00"
    assert arms["nadam-1.00"].search is not None
    assert arms["nadam-1.00"].search.space == {"optimizer.options.lr": (1e-4, 1e-1)}
    assert study.name == "optimizer-nadam"


def test_known_costs_are_found(study: Study) -> None:
    """It reaches AdamW's loss at half of the updates, and Muon's never."""
    losses = {"adamw": 4.0, "muon": 2.0, "nadam-0.25": 5.0, "nadam-0.50": 4.0}
    losses |= {"nadam-0.75": 3.5, "nadam-1.00": 3.0}
    adamw, muon = study.judge(frame_of(study, losses))
    assert "To reach the final loss of adamw (4.001 nats/token), nadam needs" in adamw.sentence
    assert adamw.ours == "50% [50%, 50%] of the tokens"
    assert "its FLOPs, the model's alone," in adamw.sentence  # NAdam states none of its own
    assert "difference -1.000" in adamw.sentence
    assert "Times are not compared" in adamw.sentence
    assert "nadam does not reach the final loss of muon (2.001 nats/token)" in muon.sentence
    cut = frame_of(study, losses).iloc[:-2]
    assert [verdict.verdict for verdict in study.judge(cut)] == ["inconclusive"] * 2


def test_sgd_must_lose(make_config: MakeConfig) -> None:
    base = make_config("train.steps=8")
    study = compare_optimizer(
        FACTORY, space=SPACE, against=("sgd",), base=base, scale="tiny", results=None, seeds=3
    )
    same = dict.fromkeys((arm.name for arm in study.arms), 4.0)
    (verdict,) = study.judge(frame_of(study, same))
    assert "sgd should have lost: doubt this comparison." in verdict.sentence


def test_baselines_come_from_committed_results_of_the_same_fingerprint(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_config("train.steps=8")
    tuned = {"optimizer.lr": 0.02, "optimizer.adamw_lr_ratio": 2.0}
    rows = []
    for seed in (0, 1):
        print_ = changed(base, {"optimizer.kind": "muon", **tuned, "seed": seed}).fingerprint()
        row = {"arm": "any", "seed": seed, "status": "finished", "run": f"x/a-s{seed}-{print_[:8]}"}
        tuned_columns = {f"tuned/{field}": value for field, value in tuned.items()}
        rows.append(row | tuned_columns | {"val/loss": 4.0 + seed})
    (tmp_path / "some.tiny").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "some.tiny" / "runs.csv", index=False)

    def compared(seeds: int, base: RunConfig = base) -> Study:
        return compare_optimizer(
            FACTORY,
            space=SPACE,
            against=("muon",),
            base=base,
            scale="tiny",
            results=tmp_path,
            seeds=seeds,
        )

    study = compared(2)
    assert study.arm("muon").search is None
    assert any("2 runs of baselines come from some.tiny" in note for note in study.notes)
    plan = Plan(study, tmp_path / "runs")
    assert "muon" not in {job.arm for job in plan.to_do()}
    frame = StudyResults(study, tmp_path / "runs").frame
    found = [row for row in frame.to_dict("records") if row["arm"] == "muon"]
    assert [row["val/loss"] for row in found] == [4.0, 5.0]
    assert math.isnan(found[0]["regret"])  # that report did not measure it
    assert compared(3).arm("muon").search is not None  # a seed is missing
    assert compared(2, changed(base, {"train.batch_size": 2})).arm("muon").search is not None


def test_changes_are_of_ones_own_options_and_schedule(make_config: MakeConfig) -> None:
    changes = {"learning_rate.kind": "constant", "optimizer.options.weight_decay": 0.5}
    base = make_config()
    study = compare_optimizer(
        FACTORY, space=SPACE, base=base, scale="tiny", results=None, changes=changes
    )
    config = study.arm("nadam-1.00").config
    assert config.learning_rate.kind == "constant"
    assert study.arm("adamw").config.learning_rate.kind == "linear"
    with pytest.raises(UserError, match=r"train\.steps would change your arms alone"):
        compare_optimizer(FACTORY, space=SPACE, base=base, changes={"train.steps": 99})


BAD = [
    (["torch.optim:NAdam", "--space", "lrr=1e-4..1e-2"], "unexpected keyword argument 'lrr'; its"),
    (["torch.optim:NAdam", "--space", "lr=1e-2..1e-4"], "is (0.01, 0.0001); it must be 0 < low"),
    (["torch.optim:NAdam", "--space", "lr=0.1"], "--space 'lr=0.1' is no range; write OPTION=LOW"),
    (["nowhere.py:make", "--space", "lr=1e-4..1e-2"], "nowhere.py: No such file or directory"),
    (["torch.optim:NAdam", "--space", "lr=1e-4..1e-2", "--against", "adam"], "did you mean adamw?"),
    (["torch.optim:NAdam", "--space", "lr=1e-4..1e-2", "--scale", "paper"], "scale is 'paper'; le"),
    (["torch.optim:NAdam", "--space", "lr=1e-4..1e-2", "--seeds", "1"], "--seeds is 1; a comparis"),
    (
        ["torch.optim:NAdam", "model.dim=3", "--space", "lr=1e-4..1e-2"],
        "model.dim would change you",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(capsys: Capture, arguments: list[str], message: str) -> None:
    assert run(["study", "optimizer", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


STRANGERS = {
    "pytorch_optimizer:Lion": {"lr": (1e-4, 1e-2)},
    "pytorch_optimizer:AdEMAMix": {"lr": (1e-3, 1e-1)},
    "pytorch_optimizer:SOAP": {"lr": (1e-3, 1e-1)},
    "pytorch_optimizer:MARS": {"lr": (1e-3, 1e-1)},
    "schedulefree:AdamWScheduleFree": {"lr": (1e-3, 1e-1)},
    "pytorch_optimizer:Prodigy": {"lr": (0.1, 10.0)},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_optimizers_that_nobody_here_wrote(
    make_config: MakeConfig, tmp_path: Path, cache_dir: Path
) -> None:
    """From a search to a page, each; the baseline's runs are made for the first and then shared."""
    pytest.importorskip("pytorch_optimizer")
    pytest.importorskip("schedulefree")
    base = make_config("train.steps=8")
    for factory, space in STRANGERS.items():
        study = compare_optimizer(
            factory,
            space=space,
            against=("sgd",),
            base=base,
            scale="tiny",
            results=None,
            seeds=2,
            trials=3,
        )
        study = dataclasses.replace(
            study,
            arms=tuple(
                dataclasses.replace(
                    arm,
                    search=arm.search
                    and dataclasses.replace(arm.search, extensions=0, finalists=2, repeats=0),
                )
                for arm in study.arms
            ),
        )
        resources = Resources(workers=2, cache_dir=cache_dir)
        run_study(study, tmp_path / "runs", resources)
        frame = StudyResults(study, tmp_path / "runs").frame
        assert set(frame["status"]) == {"finished"}, factory
        (verdict,) = study.judge(frame)
        assert verdict.verdict == "measured, nothing claimed", verdict.sentence
        assert write_study(study, tmp_path / "runs", tmp_path / study.name).exists()
