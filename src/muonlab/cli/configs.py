"""From what stands on the command line to a config: a recipe, the user's own text, overrides."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muonlab.errors import UserError
from muonlab.places import corpora

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.data import LocalConfig, Source, TokenData


def chosen_config(
    recipe_name: str, data: Sequence[str], overrides: Sequence[str], cache_dir: Path | None
) -> "RunConfig":
    """The recipe, with the text of ``--data`` as its corpus, and then with the overrides."""
    from muonlab.config import override
    from muonlab.recipes import recipe

    config = override(with_data(recipe(recipe_name), data, cache_dir), list(overrides))
    check_factory_of_json(recipe_name, config, overrides)
    return config


def with_data(config: "RunConfig", data: Sequence[str], cache_dir: Path | None) -> "RunConfig":
    """The config with the whole of these texts as its corpus; none: as it is."""
    if not data:
        return config
    whole = dataclasses.replace(
        config.data,
        source=read_source(data, cache_dir),
        max_documents=None,
        max_characters_per_document=None,
        max_tokens=None,
    )
    return dataclasses.replace(config, data=whole)


def check_factory_of_json(recipe_name: str, config: "RunConfig", overrides: Sequence[str]) -> None:
    """Raise UserError where a config file, and not the user, names code to execute."""
    named = [item.partition("=")[2] for item in overrides if item.startswith("optimizer.factory=")]
    if recipe_name.endswith(".json") and (named or config.optimizer.kind == "custom"):
        check_factory(config, named[-1] if named else None, f"{recipe_name} optimizer.factory=")


def check_factory(config: "RunConfig", named: str | None, command: str) -> None:
    """Raise UserError unless the user named the factory that a stored config would execute.

    ``command`` is what the factory has to follow on the command line.
    """
    from muonlab.custom_optimizer import CustomConfig

    optimizer = config.optimizer
    if not isinstance(optimizer, CustomConfig):
        if named is not None:
            raise UserError(f"factory {named}: this run's optimizer is {optimizer.kind}")
    elif named is None:
        raise UserError(
            f"this run's optimizer comes from {optimizer.factory}, which is executed only if you "
            f"name it: {command}{optimizer.factory}"
        )
    elif CustomConfig(factory=named).sha256 != optimizer.sha256:
        raise UserError(f"factory {named} is not the source that the run was configured with")


def read_source(data: Sequence[str], cache_dir: Path | None) -> "Source":
    """One text, or a mixture of several, from ``PATH`` or ``PATH=WEIGHT`` each."""
    from muonlab.data import MixtureConfig

    pairs = [_path_and_weight(text) for text in data]
    weights = [weight for _, weight in pairs if weight is not None]
    if len(pairs) == 1 and not weights:
        return _local(pairs[0][0], cache_dir)
    if weights and len(weights) < len(pairs):
        without = next(path for path, weight in pairs if weight is None)
        raise UserError(f"--data {without} has no weight; give every text one, or none")
    try:
        return MixtureConfig(
            sources=tuple(_local(path, cache_dir) for path, _ in pairs),
            weights=tuple(weights) or None,
        )
    except ValueError as error:
        raise UserError(f"--data: {error}") from None


def data_notes(config: "RunConfig", data: "TokenData") -> Iterator[str]:
    """What a user should know before training: limits, and a vocabulary that is used in part."""
    for name in ("max_documents", "max_characters_per_document", "max_tokens"):
        if (limit := getattr(config.data, name)) is not None:
            yield f"the corpus is cut by data.{name}={limit:,}; data.{name}=null takes all of it"
    unused = config.model.vocab_size - data.vocab_size
    if unused > 0:
        yield (
            f"the tokenizer has {data.vocab_size:,} tokens and the model room for "
            f"{config.model.vocab_size:,}: {unused:,} rows of its embedding are never used; "
            f"model.vocab_size={data.vocab_size} leaves them out"
        )


def _path_and_weight(text: str) -> tuple[str, float | None]:
    """``a.txt=0.7`` is a path and its weight, unless a file of that whole name exists."""
    path, separator, number = text.rpartition("=")
    if separator and not Path(text).exists():
        try:
            return path, float(number)
        except ValueError:
            pass
    return text, None


def _local(path: str, cache_dir: Path | None) -> "LocalConfig":
    """A path from any directory; ``-`` is standard input, kept beside the encoded corpora."""
    from muonlab.data import LocalConfig
    from muonlab.data.standard_input import keep_standard_input

    if path == "-":
        stream = sys.stdin
        if stream is None:
            raise UserError("--data -: there is no standard input")
        return LocalConfig(
            path=keep_standard_input((cache_dir or corpora()) / "stdin", stream.buffer).absolute()
        )
    return LocalConfig(path=Path(path).absolute())
