"""A way out to Hugging Face: weights, config and tokenizer that plain `transformers` loads."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muonlab.data import TextTokenizer
from muonlab.export.families import ExportError, family_of, from_hf, to_hf
from muonlab.export.tensors import absent, entries
from muonlab.model import LanguageModel, ModelConfig

__all__ = ["ExportError", "export_hf", "import_hf", "read_json"]

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # of a checkpoint in several files


def export_hf(model: LanguageModel, tokenizer: TextTokenizer, directory: Path) -> str:
    """Write ``directory`` for `AutoModelForCausalLM` and `AutoTokenizer`; returns the class's name.

    Written aside and renamed, so a directory that is there is whole. Raises ExportError if no
    class computes the model, the tokenizer does not fit it, or the directory is in use.
    """
    config = model.config
    family = family_of(config)
    if tokenizer.vocab_size > config.vocab_size:
        raise ExportError(
            f"the tokenizer has {tokenizer.vocab_size} tokens; the model has {config.vocab_size}"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportError(f"{directory} exists and is not empty; give a new directory")
    aside = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        state = model.state_dict()
        tensors = {
            name: part.cpu()
            for entry in entries(config, family)
            for name, part in entry.split(state[entry.ours])
        }
        save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
        dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eot_id, "pad_token_id": None}
        _write_json(aside / "config.json", to_hf(config, family) | ids | {"dtype": dtype})
        _write_json(aside / "generation_config.json", ids)
        (aside / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        _write_json(
            aside / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": tokenizer.end_of_text,
                "model_max_length": config.max_length,
                "clean_up_tokenization_spaces": False,
            },
        )
        aside.replace(directory)
    except BaseException:
        shutil.rmtree(aside)
        raise
    return family.architecture


def import_hf(directory: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the weights, for ``load_state_dict``, of a checkpoint of a known class.

    Raises ExportError if the class or one of its settings is none that our models have.
    """
    try:
        fields = read_json(directory / "config.json")
    except FileNotFoundError:
        raise ExportError(f"{directory} has no config.json; it is no exported model") from None
    config, family = from_hf(fields, str(directory / "config.json"))
    theirs = _read_weights(directory)
    try:
        weights = {entry.ours: entry.join(theirs) for entry in entries(config, family)}
    except KeyError as error:
        raise ExportError(f"{directory}: tensor {error.args[0]} is missing") from None
    weights |= dict(absent(config, family))
    if config.tie_head:
        weights["head.weight"] = weights["embedding.weight"]
    return config, weights


def _read_weights(directory: Path) -> dict[str, Tensor]:
    files = [directory / WEIGHTS]
    if (index := directory / WEIGHTS_INDEX).exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ExportError(f"{index}: it has no weight_map, which names the files")
        files = [directory / _plain_name(name, index) for name in sorted(set(names.values()))]
    weights = {}
    for path in files:
        if not path.exists():
            raise ExportError(f"{path} is missing; only safetensors weights can be imported")
        try:
            with safe_open(path, framework="pt") as file:
                weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ExportError(f"{path} is damaged: {error}") from None
    return weights


def _plain_name(name: object, index: Path) -> str:
    """A file of the same directory, and no other."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ExportError(f"{index}: weight_map names {name!r}; it must be a file beside it")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ExportError, or FileNotFoundError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ExportError(f"{path}: not a JSON object")
    return values


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
