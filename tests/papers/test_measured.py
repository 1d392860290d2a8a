import pandas as pd
import pytest

from muonlab.lab.experiment import Context, Measurement
from muonlab.papers import EXPERIMENTS

pytestmark = pytest.mark.filterwarnings("ignore:attention kind mhla is not causal")


def measurement(name):
    experiment = EXPERIMENTS[name]("nano")
    assert isinstance(experiment, Measurement)
    return experiment


def test_parameters_are_counted_from_built_models():
    experiment = measurement("p2-params")
    rows = experiment.measure(Context())
    assert rows["parameters"].tolist() == rows["accounted"].tolist()
    assert experiment.judge(rows)[0].verdict == "reproduced"
    rows.loc[0, "parameters"] += 1
    assert experiment.judge(rows)[0].verdict == "refuted"


@pytest.mark.parametrize(
    ("muon", "expected"),
    [(52e6, "reproduced"), (90e6, "reproduced"), (40e6, "direction only"), (101e6, "refuted")],
)
def test_the_saved_state_is_judged_by_its_share(muon, expected):
    rows = pd.DataFrame({"optimizer": ["muon", "adamw"], "state_bytes": [muon, 100e6]})
    assert measurement("p2-state").judge(rows)[0].verdict == expected


def costs(full, peak):
    """MHSA costs ``full`` and ``peak`` times what MHLA does, n / 128 times in the paper's way."""
    rows = []
    for length in (512, 1024, 2048, 4096):
        for kind, factors in (("mhsa", (length / 128, full, peak)), ("mhla", (1, 1, 1))):
            counted, flops, held = factors
            row = {"kind": kind, "length": length, "quoted_flops": counted, "forward_flops": flops}
            row |= {"quoted_bytes": counted, "peak_bytes": held, "step_seconds": 1.0}
            rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("full", "peak", "expected"),
    [
        (1.2, 0.5, ("artefact of the protocol", "refuted")),
        (9.0, 18.0, ("reproduced", "reproduced")),
        (0.9, 3.0, ("refuted", "artefact of the protocol")),
    ],
)
def test_a_saving_must_survive_the_full_count(full, peak, expected):
    verdicts = measurement("p2-attention-cost").judge(costs(full, peak))
    assert tuple(verdict.verdict for verdict in verdicts) == expected


def test_a_loss_is_not_called_a_saving():
    _, memory = measurement("p2-attention-cost").judge(costs(1.0, 0.5))
    assert memory.ours == "100 % more at 512, 100 % more at 4096"
