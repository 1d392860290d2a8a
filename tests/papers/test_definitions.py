"""Arms keep their names and their runs' fingerprints: committed results stay those of the studies.

Where a study is changed on purpose, change its line here and say so in CHANGELOG.md.
"""

import hashlib
import json

import pytest

from muonlab.lab.experiment import SCALES, Study
from muonlab.papers import EXPERIMENTS

# number of arms, and a hash of every arm's name, fingerprint and the arm that it is tuned as
DEFINITIONS = {
    "p1-compute.nano": (25, "11f30678389b14d3"),
    "p1-compute.small": (25, "ace9c8be52d143f8"),
    "p1-compute.paper": (25, "1573e1677759725a"),
    "p1-batch.nano": (32, "b6d23ab003a6d931"),
    "p1-batch.small": (32, "1290253da611d477"),
    "p1-batch.paper": (32, "813b5548fcd0dff4"),
    "p1-components.nano": (58, "7648880974618e8d"),
    "p1-components.small": (58, "728fc6e26ffc2ea3"),
    "p1-components.paper": (58, "2ba1aa91dae24d73"),
    "p1-factorial.nano": (12, "d8a0668f3aeb5249"),
    "p1-factorial.small": (12, "78533deb40f17a10"),
    "p1-factorial.paper": (12, "1b72a5393724e3b3"),
    "p1-stability.nano": (56, "376cd61210562d55"),
    "p1-stability.small": (56, "a66d502c44f9081c"),
    "p1-stability.paper": (56, "e62b91624fcfd372"),
    "p2-table1.nano": (10, "66df64d303b7fa36"),
    "p2-table1.small": (10, "56adac8622d22fe1"),
    "p2-table1.paper": (10, "cde291b72a42aa46"),
    "p2-table2.nano": (8, "a12fcaa8230abeef"),
    "p2-table2.small": (8, "2b8e3bfe4a96ddf5"),
    "p2-table2.paper": (8, "06360f008becb240"),
    "p2-table3.nano": (24, "074d4730a09d8af2"),
    "p2-table3.small": (24, "c69b2d5d689da8b4"),
    "p2-table3.paper": (24, "a0d131c1d9f25dac"),
    "p2-table4.nano": (32, "7eb4fcdee4d4ee01"),
    "p2-table4.small": (32, "27425a6d88144983"),
    "p2-table4.paper": (32, "de9657bdfbfdddb0"),
    "p2-leak.nano": (3, "70601837e542ac9a"),
    "p2-leak.small": (3, "f9a3ff530ff0eaff"),
    "p2-leak.paper": (3, "c29423fb160f23cc"),
    "p2-crossover.nano": (6, "3efe39500ab13da2"),
    "p2-crossover.small": (6, "b85d5b3a81a4f889"),
    "p2-crossover.paper": (6, "a148c36c3b4dfb8c"),
    "p2-latents.nano": (24, "8acf889ac6be9cc2"),
    "p2-latents.small": (24, "66c56a4922872cf7"),
    "p2-latents.paper": (24, "d9ccfa05a9db62ec"),
}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if f"{name}.nano" in DEFINITIONS])
def test_arms_stay_what_results_were_made_of(name: str) -> None:
    for scale in SCALES:
        study = EXPERIMENTS[name](scale)
        assert isinstance(study, Study)
        facts = [(arm.name, arm.config.fingerprint(), arm.tuned_as) for arm in study.arms]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        assert (len(facts), digest) == DEFINITIONS[f"{name}.{scale}"]


def test_every_study_is_listed() -> None:
    studies = {name for name, make in EXPERIMENTS.items() if isinstance(make("nano"), Study)}
    assert studies == {key.rpartition(".")[0] for key in DEFINITIONS}
