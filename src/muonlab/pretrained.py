"""Weights to begin with, instead of random ones: of a run, or of a Hugging Face directory."""

import dataclasses
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from muonlab.checkpoints import CHECKPOINT_NAME, RunState, load_weights
from muonlab.config import ConfigError, InitFrom, RunConfig, TrainConfig
from muonlab.data import DataConfig, TextTokenizer, TokenizerFile, parse_tokenizer
from muonlab.export import ExportError, import_hf, read_json
from muonlab.loading import load
from muonlab.model import LanguageModel, ModelConfig
from muonlab.runs import RunDirectory, RunError, now


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """A model that was trained before, with the tokenizer that it reads and writes.

    ``path`` is a checkpoint of a run, or a Hugging Face directory; ``about`` says which it is.
    ``trained_by`` is the kind of the optimizer, None where nobody has told.
    """

    path: Path
    about: str
    trained_by: str | None
    model: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: TextTokenizer
    tokenizer_path: Path
    sha256: str

    def init_from(self) -> InitFrom:
        return InitFrom(path=self.path, sha256=self.sha256)


def open_pretrained(path: Path) -> Pretrained:
    """What lies at ``path``: a run (its newest checkpoint), one of its checkpoints, or a
    Hugging Face directory. Raises `RunError`, `ExportError` or `DataError`.
    """
    path = path.absolute()
    if match := CHECKPOINT_NAME.match(path.name):
        return _open_run(path.parents[1], int(match[1]))
    if (path / "manifest.json").is_file():
        return _open_run(path, None)
    if (path / "config.json").is_file():
        return _open_hf(path)
    raise RunError(f"{path} is neither a run nor a Hugging Face directory: it has no config.json")


def begin_from(config: RunConfig, source: Pretrained) -> RunConfig:
    """The config with the model, the tokenizer and the weights of ``source``.

    Sequences are no longer than what that model was trained for.
    """
    length = min(config.train.sequence_length, source.model.max_length)
    tokenizer = TokenizerFile(path=source.tokenizer_path, end_of_text=source.tokenizer.end_of_text)
    return dataclasses.replace(
        config,
        model=source.model,
        data=dataclasses.replace(config.data, tokenizer=tokenizer),
        train=dataclasses.replace(config.train, sequence_length=length),
        init_from=source.init_from(),
    )


def load_pretrained(model: LanguageModel, tokenizer: TextTokenizer, wanted: InitFrom) -> None:
    """Put the weights into ``model``; raises ConfigError where they, or the tokenizer, changed."""
    source = open_pretrained(wanted.path)
    if source.sha256 != wanted.sha256:
        raise ConfigError(f"init_from: {wanted.path} now holds other weights than the config says")
    if source.tokenizer.to_json() != tokenizer.to_json():
        raise ConfigError(
            f"data.tokenizer is not the one that {wanted.path} was trained with, "
            f"{source.tokenizer_path}; its tokens have another meaning"
        )
    load_weights(model, source.weights, wanted.path)


def import_run(source: Pretrained, directory: Path) -> RunDirectory:
    """Write ``source`` as a run of no steps, for `load` and `open_pretrained`.

    Written aside and renamed. Raises RunError if ``directory`` is in use.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunError(f"{directory} exists and is not empty; give a new directory")
    length = min(TrainConfig().sequence_length, source.model.max_length)
    tokenizer = TokenizerFile(
        path=directory.absolute() / "tokenizer.json", end_of_text=source.tokenizer.end_of_text
    )
    config = RunConfig(
        name="imported",
        variant=re.sub(r"[^A-Za-z0-9._-]|^[.-]", "_", directory.name)[:100],
        model=source.model,
        data=DataConfig(tokenizer=tokenizer),
        train=TrainConfig(sequence_length=length),
        init_from=source.init_from(),
    )
    model = config.model.build(0)
    load_weights(model, source.weights, source.path)
    facts = {
        "created": now(),
        "fingerprint": config.fingerprint(),
        "data_hash": "",
        "dtype": "fp32",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "warnings": [],
        "imported_from": str(source.path),
    }
    aside = RunDirectory(directory.with_name(f"{directory.name}.partial-{os.getpid()}"))
    try:
        aside.create(config, facts, source.tokenizer)
        optimizer = config.optimizer.build(model)
        aside.save_checkpoint(0, model, optimizer, RunState(dtype="fp32"), keep=1)
        aside.finish({"steps": 0, "finished": now()})
        aside.path.replace(directory)
    except OSError as error:
        raise RunError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)
    return RunDirectory(directory)


def _open_run(path: Path, step: int | None) -> Pretrained:
    loaded = load(path, step=step)
    checkpoint = path / "checkpoints" / f"step-{loaded.step:08d}"
    if loaded.run.tokenizer() is None:
        raise RunError(f"{path} keeps no tokenizer.json: it was made before runs kept theirs")
    return Pretrained(
        path=checkpoint,
        about=f"step {loaded.step} of run {path}",
        trained_by=loaded.config.optimizer.kind if loaded.step else None,
        model=loaded.config.model,
        weights=loaded.run.load_checkpoint(loaded.step).model,
        tokenizer=loaded.tokenizer,
        tokenizer_path=path / "tokenizer.json",
        sha256=_sha256([checkpoint / "model.safetensors"]),
    )


def _open_hf(directory: Path) -> Pretrained:
    config, weights = import_hf(directory)
    if config.tie_head:
        del weights["head.weight"]  # is the embedding
    tokenizer_path = directory / "tokenizer.json"
    tokenizer = _hf_tokenizer(directory, tokenizer_path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ExportError(
            f"{tokenizer_path} has {tokenizer.vocab_size} tokens; the model has {config.vocab_size}"
        )
    return Pretrained(
        path=directory,
        about=f"Hugging Face directory {directory}",
        trained_by=None,
        model=config,
        weights=weights,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        sha256=_sha256(sorted(directory.glob("*.safetensors"))),
    )


def _hf_tokenizer(directory: Path, path: Path) -> TextTokenizer:
    """The tokenizer, with the end-of-text token that the directory names."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExportError(
            f"{path} is missing; a model without its tokenizer cannot be trained or read"
        ) from None
    facts = directory / "tokenizer_config.json"
    named: Any = read_json(facts).get("eos_token") if facts.exists() else None
    if isinstance(named, dict):  # transformers 4 also wrote the token's options
        named = named.get("content")
    if not isinstance(named, str):
        raise ExportError(f"{facts} names no eos_token, the token that ends a text")
    return parse_tokenizer(text, named, str(path))


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
