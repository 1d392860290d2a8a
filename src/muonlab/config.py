"""A whole run as one frozen value; JSON in and out, overrides, fingerprint.

Everything that comes from outside passes one border here: JSON and ``field=value`` overrides are
validated by the same schema, and a mistake becomes one line that names the field, its value and
what would be legal.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from muonlab.custom_optimizer import CustomConfig
from muonlab.data import DataConfig
from muonlab.errors import UserError
from muonlab.model import ModelConfig
from muonlab.optim.config import AdamWConfig, MuonConfig
from muonlab.optim.learning_rate import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    P2Config,
    WSDConfig,
)
from muonlab.spelling import did_you_mean

OptimizerConfig = Annotated[MuonConfig | AdamWConfig | CustomConfig, Field(discriminator="kind")]
LearningRateConfig = Annotated[
    LinearConfig | CosineConfig | WSDConfig | ConstantConfig | P2Config,
    Field(discriminator="kind"),
]
NAMED_BY_THE_USER = ("optimizer.options",)  # parts whose fields may have any name


class ConfigError(UserError):
    """A config that cannot be: one line naming the field, its value and what is legal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, how large, how watched. A step is one optimizer update.

    ``micro_batch_size`` splits a batch into passes whose gradients add up. ``dtype`` "auto" takes
    bf16 where the processor multiplies it in hardware. ``evaluate_batches`` bounds an evaluation
    (None: the whole split). At a non-finite loss or gradient, ``nonfinite`` "stop" ends the run,
    "skip" leaves that update out and counts it. ``diagnostics_every`` 0: never.
    ``log_every`` is how often a run without a terminal, and its log, say how far it is.
    Every ``sample_every`` steps (0: never) the model continues ``sample_prompt``, which changes
    nothing in the training.
    ``extended_at`` holds the steps at which the run once ended, before it got more: up to each of
    them the learning rate is that of a run that ends there.
    """

    steps: int = 300
    batch_size: int = 16
    micro_batch_size: int | None = None
    sequence_length: int = 256
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    clip_norm: float | None = 1.0
    evaluate_every: int = 50
    evaluate_batches: int | None = None
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    nonfinite: Literal["stop", "skip"] = "stop"
    diagnostics_every: int = 0
    log_every: int = 10
    sample_every: int = 0
    sample_prompt: str = ""
    extended_at: tuple[int, ...] = ()
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "micro_batch_size",
            "sequence_length",
            "evaluate_every",
            "evaluate_batches",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}; "
                f"it must divide batch_size {self.batch_size}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be positive, or null")
        for name in ("diagnostics_every", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 is never")
        ends = (0, *self.ends())
        if any(earlier >= later for earlier, later in itertools.pairwise(ends)):
            raise ValueError(
                f"extended_at is {list(self.extended_at)}; it must rise, from 1 to below "
                f"steps {self.steps}"
            )

    def ends(self) -> tuple[int, ...]:
        """The steps at which training ends or once ended, ascending."""
        return (*self.extended_at, self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class InitFrom:
    """Weights to begin with: a run's checkpoint or a Hugging Face directory, and their SHA-256."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run. ``name`` and ``variant`` only say where it is kept and what it is called.

    Without a ``variant`` the run is called by its optimizer.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str = "run"
    variant: str | None = None
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=MuonConfig)
    learning_rate: LearningRateConfig = field(default_factory=LinearConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init_from: InitFrom | None = None

    def __post_init__(self) -> None:
        for label in ("name", "variant"):
            value = getattr(self, label)
            if value is None:
                continue
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
                raise ValueError(
                    f"{label} is {value!r}; it must be letters, digits, '.', '_' or '-' "
                    f"and not begin with '.' or '-'"
                )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if self.train.sequence_length > self.model.max_length:
            raise ValueError(
                f"train.sequence_length is {self.train.sequence_length}; "
                f"it must not exceed model.max_length {self.model.max_length}"
            )

        if self.optimizer.qk_clip is not None and not self.model.attention.weights_set_logits:
            raise ValueError(
                f"optimizer.qk_clip is {self.optimizer.qk_clip}; it needs model.attention mhsa or "
                f"mla without qk_norm, not this {self.model.attention.kind}"
            )

    @property
    def label(self) -> str:
        """What the run is called among those of its ``name``."""
        if isinstance(self.optimizer, CustomConfig):
            return self.variant or self.optimizer.label
        return self.variant or self.optimizer.kind

    def learning_rate_multiplier(self, step: int) -> float:
        """What the learning rate is multiplied with at update ``step`` (from 0)."""
        end = next(end for end in self.train.ends() if step < end)
        return self.learning_rate.multiplier(step, end)

    def arm_fingerprint(self) -> str:
        """Equal for runs that differ in nothing but their seed: they are seeds of one arm."""
        return dataclasses.replace(self, seed=0).fingerprint()

    def fingerprint(self) -> str:
        """A hash of everything that can change weights or metrics: not of labels or displays."""
        facts = to_dict(self)
        del facts["name"], facts["variant"]
        for display in ("trackers", "log_every", "sample_every", "sample_prompt"):
            del facts["train"][display]
        if not self.train.extended_at:  # runs of before there was this option
            del facts["train"]["extended_at"]
        if self.init_from is None:
            del facts["init_from"]
        else:
            del facts["init_from"]["path"]
        facts["optimizer"]["nonfinite"] = "raise"  # as in runs that still had this option
        if isinstance(self.optimizer, CustomConfig):
            facts["optimizer"] = self.optimizer.identity()
        if self.optimizer.qk_clip is None:  # such runs are those of before there was this option
            facts["optimizer"].pop("qk_clip", None)
        canonical = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


_ADAPTER = TypeAdapter(RunConfig)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain JSON data."""
    return _ADAPTER.dump_python(config, mode="json")


def to_json(config: RunConfig) -> str:
    """Indented, complete, reloadable."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """Raises ConfigError."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error}") from None
    except RecursionError:
        raise ConfigError("not a config: the JSON is nested too deeply") from None
    if isinstance(values, dict) and isinstance(values.get("optimizer"), dict):
        values["optimizer"].pop("nonfinite", None)  # of runs until November 2026; had no effect
    return from_dict(values)


def read_config(path: Path) -> RunConfig:
    """The config of a JSON file, such as a run's ``config.json``. Raises ConfigError."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def from_dict(values: Any) -> RunConfig:
    """A config from plain JSON data; a number in quotes is no number. Raises ConfigError."""
    for path, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path} is {value}; it must be a finite number")
    try:
        return _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_one_line(error, values)) from None


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A copy with other values: ``changed(config, {"train.steps": 5, "optimizer.kind": "adamw"})``.

    A field is named by its path; a member of a list by its number from 0, as in
    ``data.source.sources.1.text_field``. Setting a ``kind`` replaces that part by the defaults of
    the kind; a part can also be given whole, as in ``{"optimizer": AdamWConfig(lr=1e-3)}``. Both
    come before changes of the part's own fields. Raises ConfigError.
    """
    return _changed(config, [(path, _plain(value), None) for path, value in changes.items()])


def override(config: RunConfig, overrides: list[str]) -> RunConfig:
    """`changed`, from texts ``field.path=value``; values are JSON, or else plain text."""
    changes = [(*parsed(item), item.partition("=")[2]) for item in overrides]
    return _changed(config, changes)


def parsed(item: str) -> tuple[str, Any]:
    """Path and value of a text ``field.path=value``; raises ConfigError where it is none."""
    path, separator, text = item.partition("=")
    if not separator:
        raise ConfigError(f"{item!r} is no override; write field=value, such as model.dim=256")
    return path.strip(), _parse(text)


def _changed(config: RunConfig, changes: Sequence[tuple[str, Any, str | None]]) -> RunConfig:
    """From paths, values, and for each the text that it was read from, if it was."""
    values = to_dict(config)
    lists: list[tuple[dict[str, Any], str]] = []  # parts in which a list stands as a dict
    renewed: list[dict[str, Any]] = []  # parts whose fields only validation knows: of a new kind
    wholes_first = sorted(changes, key=lambda it: (it[0].count("."), not it[0].endswith(".kind")))
    for path, value, text in wholes_first:
        *parents, name = path.split(".")
        part = values
        for depth, parent in enumerate(parents):
            where = ".".join(parents[: depth + 1])
            if where in NAMED_BY_THE_USER and any(part is other for other in renewed):
                part.setdefault(parent, {})
            if parent not in part:
                raise ConfigError(_unknown(where, parent, part, values))
            if isinstance(part[parent], list):  # by number; the new dict goes into the config
                part[parent] = {str(index): item for index, item in enumerate(part[parent])}
                lists.append((part, parent))
            if not isinstance(part[parent], dict):
                raise ConfigError(f"{path}: {where} has no fields, it is a value")
            part = part[parent]
            if where in NAMED_BY_THE_USER:
                renewed.append(part)
        if name not in part and not any(part is other for other in renewed):
            raise ConfigError(_unknown(path, name, part, values))
        if name == "kind":
            part.clear()
            renewed.append(part)
        named = isinstance(part.get(name), str) or path == "variant"
        if text is not None and named and isinstance(value, int | float):
            value = text  # a name such as 2026
        part[name] = value
    for part, name in reversed(lists):
        part[name] = list(part[name].values())
    return from_dict(values)


def _plain(value: Any) -> Any:
    """A part of a config as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    return value


def stream_seed(seed: int, *stream: str | int) -> int:
    """The seed of an independent random stream, such as ``stream_seed(0, "dropout", step)``."""
    digest = hashlib.sha256("/".join(map(str, (seed, *stream))).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"None": None, "True": True, "False": False}.get(text, text)


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with its path."""
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in pairs:
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, values


def _unknown(path: str, name: str, legal: Iterable[str], config: Any) -> str:
    legal = list(legal)
    hint = did_you_mean(name, legal)
    elsewhere = [other for other, _ in _leaves(config) if other.rpartition(".")[2] == name]
    if elsewhere and not hint:
        hint = f"did you mean {' or '.join(elsewhere[:3])}? "
    return f"{path}: unknown field; {hint}legal: {', '.join(legal)}"


def _hint(value: Any, legal: str) -> str:
    """For a wrong value and its legal ones in quotes, as pydantic lists them."""
    return did_you_mean(value, re.findall(r"'([^']*)'", legal)) if isinstance(value, str) else ""


def _one_line(error: ValidationError, values: Any) -> str:
    """The first problem of a validation error, as "field: what is wrong; what is legal"."""
    problem = error.errors(include_url=False)[0]
    path, cls = _locate(problem["loc"], values)
    where = ".".join(path) or "the config"
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        legal = [f.name for f in dataclasses.fields(cls)] if cls else []
        return _unknown(where, path[-1], legal, values)
    if kind == "union_tag_invalid":
        tag, tags = context["tag"], context["expected_tags"]
        return f"{where}.kind is {tag!r}; {_hint(tag, tags)}legal: {tags}"
    if kind == "union_tag_not_found":
        return f"{where}.kind is missing"
    if kind == "value_error":
        return f"{where}: {context['error']}" if path else str(context["error"])
    if kind == "missing":
        return f"{where} is missing"
    legal = problem["msg"].replace("Input should be", "it must be")
    hint = _hint(problem["input"], legal) if kind == "literal_error" else ""
    return f"{where} is {json.dumps(problem['input'])}; {hint}{legal}"


def _locate(location: tuple[int | str, ...], values: Any) -> tuple[list[str], type | None]:
    """The field path of a pydantic location (without its union tags), and the innermost class."""
    path: list[str] = []
    cls: Any = RunConfig
    holder: Any = None
    for part in location:
        if isinstance(values, list) and isinstance(part, str):
            break  # a member of a union of plain types
        if isinstance(values, list) and isinstance(part, int):
            path.append(str(part))
            holder, values = cls, values[part] if part < len(values) else None
            members = typing.get_args(cls)
            cls = _class_for(members[0] if members else None, values)
            continue
        if isinstance(values, dict) and part == values.get("kind") and part not in values:
            continue  # the tag of a union
        path.append(str(part))
        holder = cls
        hint = typing.get_type_hints(cls).get(str(part)) if dataclasses.is_dataclass(cls) else None
        values = values.get(part) if isinstance(values, dict) else None
        cls = _class_for(hint, values)
    return path, holder


def _class_for(hint: Any, values: Any) -> Any:
    """The config class that a type hint means for these values (its ``kind`` picks of a union)."""
    members = typing.get_args(hint)
    if not members or isinstance(values, list):
        return hint
    kinds = [member for member in members if dataclasses.is_dataclass(member)]
    if len(kinds) == 1:  # a part that may be absent
        return kinds[0]
    kind = values.get("kind") if isinstance(values, dict) else None
    for member in kinds:
        if kind in typing.get_args(typing.get_type_hints(member)["kind"]):
            return member
    return None
