"""The recipes of docs/how-to/other-trainers.md, run word for word: the loss falls, runs resume."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "other-trainers.md"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
INTRODUCTION, *SECTIONS = PAGE.read_text(encoding="utf-8").split("\n## ")
RECIPES = {section.splitlines()[0]: "".join(CODE.findall(section)) for section in SECTIONS}
SETTING = "".join(CODE.findall(INTRODUCTION))

# what the reader sees: the loss of the model that was trained, before and after
BEFORE = "before = model(input_ids=pieces[:32], labels=pieces[:32]).loss.item()\n"
AFTER = """
model.eval()
after = model(input_ids=pieces[:32], labels=pieces[:32]).loss.item()
assert after < before - {fall}, (before, after)
"""
RESUMED = {
    "Hugging Face Trainer": """
trainer.args.max_steps = 40
trainer.train(resume_from_checkpoint=True)
assert trainer.state.global_step == 40
""",
    "Lightning": """
trainer = lightning.Trainer(max_steps=40, gradient_clip_val=1.0, logger=False)
trainer.fit(LanguageModel(model), loader, ckpt_path="model.ckpt")
assert trainer.global_step == 40
""",
    "torch.compile": """
names = [[group["param_names"] for group in build_groups(module)] for module in (model, compiled)]
assert [[name.removeprefix("_orig_mod.") for name in group] for group in names[1]] == names[0]
""",
}
PACKAGE = {"LoRA with PEFT": "peft", "Accelerate": "accelerate", "Lightning": "lightning"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, tmp_path: Path) -> None:
    package = PACKAGE.get(name, "transformers")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it is in the extra recipes")
    if name == "torch.compile" and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    fall = 0.05 if name == "LoRA with PEFT" else 1.0  # adapters of a random model learn little
    program = SETTING + BEFORE + RECIPES[name] + RESUMED.get(name, "") + AFTER.format(fall=fall)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
