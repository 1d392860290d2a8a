import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from muonlab.config import (
    ConfigError,
    LearningRateConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    changed,
    from_dict,
    from_json,
    override,
    stream_seed,
    to_dict,
    to_json,
)
from muonlab.data import DataConfig, Source, Split, TokenizerConfig
from muonlab.model import ModelConfig
from muonlab.model.attention import AttentionConfig
from muonlab.model.transformer import FeedForwardConfig
from muonlab.optim.config import AdamWConfig
from muonlab.recipes import RECIPES, nano, recipe

TWO_SOURCES = [{"kind": "builtin"}, {"kind": "local", "path": "corpus.txt", "text_field": "text"}]
REQUIRED = {
    "path": "corpus.txt",
    "name": "someone/something",
    "sources": TWO_SOURCES,
    "factory": "torch.optim:SGD",
}


def required(name: str) -> str:
    value = REQUIRED[name]
    return value if isinstance(value, str) else json.dumps(value)


def members(union: Any) -> list[type]:
    return list(get_args(get_args(union)[0]))


def configs_of(union: Any) -> st.SearchStrategy[Any]:
    """Any member of a union, with one value of a plain field changed to another legal one."""

    def build(cls: type) -> st.SearchStrategy[Any]:
        required = {
            field.name: st.just(REQUIRED[field.name])
            for field in dataclasses.fields(cls)
            if field.default is field.default_factory is dataclasses.MISSING
        }
        choices = {
            field.name: strategy
            for field in dataclasses.fields(cls)
            if (strategy := CHANGES.get(field.name)) is not None
        }
        return st.fixed_dictionaries(required, optional=choices).map(
            lambda values: {"kind": cls.__dataclass_fields__["kind"].default, **values}
        )

    return st.sampled_from(members(union)).flatmap(build)


positive = st.floats(1e-6, 10)
fraction = st.floats(0, 0.4)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "lr": positive,
    "weight_decay": fraction,
    "momentum": fraction,
    "schedule": st.sampled_from(["keller5", "svd"])
    | st.lists(st.tuples(positive, positive, positive).map(list), min_size=1, max_size=3),
    "muon_roles": st.lists(st.sampled_from(["hidden", "router"]), max_size=2, unique=True),
    "betas": st.tuples(fraction, fraction).map(list),
    "second_moment": st.sampled_from(["none", "normuon", "adamuon"]),
    "warmup": fraction,
    "final": fraction,
    "hidden_dim": st.integers(1, 10_000),
    "activation": st.sampled_from(["relu", "relu2", "tanh"]),
    "gated": st.booleans(),
    "num_shared_experts": st.integers(0, 4),
    "router_noise": fraction,
    "rope_base": st.floats(2, 1e6),
    "validation_fraction": fraction,
    "text_field": st.text(max_size=5),
    "weights": st.none() | st.tuples(positive, positive).map(list),
    "max_characters": st.integers(1, 10**12),
}

train_values = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 10**9),
        "batch_size": st.integers(1, 10**6),
        "sequence_length": st.integers(1, 256),
        "dtype": st.sampled_from(["auto", "bf16", "fp32"]),
        "clip_norm": st.none() | positive,
        "evaluate_batches": st.none() | st.integers(1, 99),
        "nonfinite": st.sampled_from(["stop", "skip"]),
        "trackers": st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2),
    },
)


@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**80),
            "model": st.fixed_dictionaries(
                {
                    "attention": configs_of(AttentionConfig),
                    "ffn": configs_of(FeedForwardConfig),
                    "norm_eps": positive,
                }
            ),
            "data": st.fixed_dictionaries(
                {
                    "source": configs_of(Source),
                    "tokenizer": configs_of(TokenizerConfig),
                    "split": configs_of(Split),
                    "max_tokens": st.none() | st.integers(1, 10**12),
                }
            ),
            "optimizer": configs_of(OptimizerConfig),
            "learning_rate": configs_of(LearningRateConfig),
            "train": train_values,
        }
    )
)
def test_json_round_trip(values: dict[str, Any]) -> None:
    kinds = values["data"]["source"]["kind"], values["data"]["split"]["kind"]
    assume(kinds != ("mixture", "leaky_windows"))  # is refused
    config = from_dict(values)
    assert from_json(to_json(config)) == config
    assert from_json(to_json(config)).fingerprint() == config.fingerprint()
    given_values, found_values = flatten(values), flatten(to_dict(config))
    assert {path: found_values[path] for path in given_values} == given_values


def test_a_config_with_the_option_that_had_no_effect_is_still_read() -> None:
    values = to_dict(nano())
    values["optimizer"]["nonfinite"] = "raise"
    assert from_json(json.dumps(values)) == nano()
    assert nano().fingerprint().startswith("a819f65d1ed0")  # as it was with the option
    with pytest.raises(ConfigError, match="nonfinite: unknown field"):
        override(nano(), ["optimizer.nonfinite=skip"])


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{path}.{key}" if path else key)
    return flat


def another(value: Any) -> Iterator[Any]:
    """Values near a given one; some of them must be legal in its place."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value * 2, value + 1, value - 1, value // 2)
    elif isinstance(value, float):
        yield from (value / 2, value + 0.01, 0.5, 2.0)
    elif value is None:
        yield from ("other", 2, 4)
    elif isinstance(value, list):
        yield from (["tensorboard"], ["router"], [], [0.5, 0.6], [1])
    else:
        yield from ("other", "svd", "none", "fp32", "skip", "spectral", "adamuon", "bias")
        yield from ("sigmoid", "softmax", "relu")


@pytest.mark.filterwarnings("ignore:.*causal")
@pytest.mark.parametrize("name", RECIPES)
def test_overrides_reach_every_field_and_the_fingerprint_sees_them(name: str) -> None:
    config = recipe(name)
    for path, value in flatten(to_dict(config)).items():
        if path.endswith("kind") or path == "init_from":  # a whole part
            continue
        if path == "optimizer.qk_clip" and not config.model.attention.weights_set_logits:
            continue  # is refused
        for candidate in filter(lambda near: near != value, another(value)):
            try:
                changed = override(config, [f"{path}={json.dumps(candidate)}"])
            except ConfigError:
                continue
            break
        else:
            raise AssertionError(f"no legal change of {path} from {value!r} found")
        assert flatten(to_dict(changed))[path] == candidate
        same = flatten(to_dict(changed)) | {path: value}
        assert same == flatten(to_dict(config)), "nothing else changes"
        label = path in (
            "name",
            "variant",
            "train.trackers",
            "train.log_every",
            "train.sample_every",
            "train.sample_prompt",
        )
        assert (changed.fingerprint() == config.fingerprint()) == label, path


@pytest.mark.parametrize(
    ("path", "union"),
    [
        ("model.attention", AttentionConfig),
        ("model.ffn", FeedForwardConfig),
        ("data.source", Source),
        ("data.tokenizer", TokenizerConfig),
        ("data.split", Split),
        ("optimizer", OptimizerConfig),
        ("learning_rate", LearningRateConfig),
    ],
)
def test_overrides_reach_every_kind(path: str, union: Any) -> None:
    for cls in members(union):
        kind = cls.__dataclass_fields__["kind"].default
        needed = [
            f"{path}.{field.name}={required(field.name)}"
            for field in dataclasses.fields(cls)
            if field.default is field.default_factory is dataclasses.MISSING
        ]
        part: Any = override(nano(), [*needed, f"{path}.kind={kind}"])
        for name in path.split("."):
            part = getattr(part, name)
        assert isinstance(part, cls)


def test_changed_takes_values_and_whole_parts() -> None:
    new = changed(nano(), {"optimizer.lr": 0.5, "optimizer": AdamWConfig(lr=0.1), "train.steps": 5})
    texts = ["optimizer.kind=adamw", "optimizer.lr=0.5", "train.steps=5"]
    assert new == override(nano(), texts)
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown field; did you mean steps"):
        changed(nano(), {"train.stepz": 5})
    with pytest.raises(ConfigError, match=r'seed is "5"; it must be a valid integer'):
        changed(nano(), {"seed": "5"})


def test_a_new_kind_takes_its_own_fields_in_any_order() -> None:
    config = override(nano(), ["optimizer.other_lr_ratio=0.5", "optimizer.kind=adamw"])
    assert to_dict(config)["optimizer"]["other_lr_ratio"] == 0.5


def test_overrides_of_text_need_no_quotes() -> None:
    config = override(nano(), ["name=2026", "data.split.salt=true story", "train.clip_norm=None"])
    assert (config.name, config.train.clip_norm) == ("2026", None)
    assert config.data.split == dataclasses.replace(nano().data.split, salt="true story")


MISTAKES = [
    ("train.stepz=3", "train.stepz: unknown field; did you mean steps? legal: steps, batch_size"),
    ("modle.dim=3", "modle: unknown field; did you mean model? legal: name"),
    ("model.dim.x=3", "model.dim.x: model.dim has no fields"),
    ("model.dim", "'model.dim' is no override; write field=value"),
    ("train.steps=many", 'train.steps is "many"; it must be a valid integer'),
    ('train.steps="12"', 'train.steps is "12"; it must be a valid integer'),
    ("train.steps=true", "train.steps is true; it must be a valid integer"),
    ("train.steps=1.5", "train.steps is 1.5; it must be a valid integer"),
    ("train.steps=0", "train: steps is 0; it must be at least 1"),
    ("train.dtype=fp8", "train.dtype is \"fp8\"; it must be 'auto', 'bf16' or 'fp32'"),
    ("train.clip_norm=0", "train: clip_norm is 0.0; it must be positive, or null"),
    ("train.micro_batch_size=3", "train: micro_batch_size is 3; it must divide batch_size 8"),
    ("train.diagnostics_every=-1", "train: diagnostics_every is -1; 0 is never"),
    ('train.trackers=["visdom"]', "train.trackers.0 is \"visdom\"; it must be 'tensorboard' or"),
    ("train.sequence_length=65", "sequence_length is 65; it must not exceed model.max_length 64"),
    ("seed=-1", "seed is -1; it must not be negative"),
    ("name=../up", "name is '../up'; it must be letters, digits"),
    ("variant=.hidden", "variant is '.hidden'; it must be letters, digits"),
    ("name=", "name is ''; it must be letters, digits"),
    ("model=3", "model is 3; it must be an object"),
    ("model.ffn=null", "model.ffn is null; it must be an object"),
    ("model.attention.kind=rnn", "model.attention.kind is 'rnn'; legal: 'mhsa', 'mla'"),
    ("model.attention.num_heads=3", "model: num_heads is 3; model width 32 must be an even"),
    ("model.ffn.top_k=5", "model.ffn: top_k is 5; it must be from 1 to num_experts 4"),
    ("data.source.kind=hub", "data.source.name is missing"),
    ("data.tokenizer.vocab_size=9", "data.tokenizer: vocab_size=9: expected at least 257"),
    ("optimizer.lr=-1", "optimizer: lr -1.0 must be a finite number of at least 0"),
    ("optimizer.schedule=cubic", "optimizer: schedule 'cubic' is not a polynomial: legal are"),
    ("optimizer.schedule=[[1,2]]", "optimizer.schedule is [[1, 2]]; it must be a valid string"),
    ("optimizer.betas=[0.9]", "optimizer.betas.1 is missing"),
    ("init_from=model", 'init_from is "model"; it must be an object'),
    ('init_from={"path": "x"}', "init_from.sha256 is missing"),
    ("train.extended_at=[99]", "train: extended_at is [99]; it must rise, from 1 to below"),
    ("lr=1", "lr: unknown field; did you mean optimizer.lr? legal: name"),
    ("num_heads=2", "did you mean model.attention.num_heads?"),
    ("train.dtype=bf61", "train.dtype is \"bf61\"; did you mean bf16? it must be 'auto'"),
    ("model.attention.kind=mlha", "kind is 'mlha'; did you mean mla? legal: 'mhsa', 'mla'"),
    ("optimizer.eps=Infinity", "optimizer.eps is inf; it must be a finite number"),
    ("train.clip_norm=NaN", "train.clip_norm is nan; it must be a finite number"),
    ("data.source.kind=mixture", "data.source.sources is missing"),
    (
        'data.source={"kind":"mixture","sources":[{"kind":"lokal"},{"kind":"builtin"}]}',
        "data.source.sources.0.kind is 'lokal'; did you mean local? legal: 'builtin'",
    ),
    (
        'data.source={"kind":"mixture","sources":[{"kind":"builtin"},{"kind":"hub","name":"a","nam":"a"}]}',
        "data.source.sources.1.nam: unknown field; did you mean name? legal: kind, name, config",
    ),
    ("learning_rate.warmup=-1", "learning_rate: warmup -1.0 must be at least 0"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_one_line_with_field_value_and_what_is_legal(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(nano(), [text])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value: line 1 column 1"),
        ('{"seed": 1', "not JSON: Expecting ',' delimiter"),
        ("[]", "the config is []; it must be an object"),
        ('{"sead": 1}', "sead: unknown field; did you mean seed? legal: name"),
        ('{"optimizer": {"lr": 1.0}}', "optimizer.kind is missing"),
        ('{"optimizer": {"kind": "adamw", "momentum": 1}}', "optimizer.momentum: unknown field"),
        ('{"model": {"attention": []}}', "model.attention is []; it must be an object"),
        ('{"model": {"ffn": {"kind": "moe", "gated": 1}}}', "model.ffn.gated is 1; it must be a"),
    ],
)
def test_bad_json_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def config_or_one_line(make: Callable[[], RunConfig]) -> bool:
    """Whether a config comes out, or a ConfigError of one line."""
    try:
        return isinstance(make(), RunConfig)
    except ConfigError as error:
        return len(str(error).splitlines()) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from([*to_dict(nano()), "kind", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_config_or_one_line(values: Any) -> None:
    assert config_or_one_line(lambda: from_dict(values))


@given(
    st.sampled_from([path for path in flatten(to_dict(nano())) if path not in ("name", "variant")]),
    st.text(max_size=8) | st.sampled_from(["[]", "{}", "[[1]]", "-1", "1e999", "null", '{"a":1}']),
)
def test_any_override_is_a_config_or_one_line(path: str, text: str) -> None:
    assert config_or_one_line(lambda: override(nano(), [f"{path}={text}"]))


def test_defaults_and_replace() -> None:
    assert from_json("{}") == RunConfig()
    changed = replace(RunConfig(), seed=3)
    assert (changed.seed, changed.model, changed.data) == (3, ModelConfig(), DataConfig())
    assert changed.train == TrainConfig()


@given(st.integers(0, 2**70), st.integers(0, 10**9))
def test_streams_are_apart(seed: int, step: int) -> None:
    seeds = {
        stream_seed(seed, name, *rest)
        for name in ("init", "data", "dropout", "router")
        for rest in ((), (step,), (step + 1,), (step, 0), (step, 1))
    }
    assert len(seeds) == 20
    assert seeds.isdisjoint({stream_seed(seed + 1, "init"), stream_seed(seed + 1, "data")})
    assert all(0 <= value < 2**56 for value in seeds)
    assert stream_seed(seed, "data", step) == stream_seed(seed, "data", step)


def test_a_stream_seed_never_changes() -> None:
    assert stream_seed(0, "init") == 32010704297077034


def test_members_of_a_list_are_named_by_number() -> None:
    sources = json.dumps(TWO_SOURCES)
    config = override(nano(), ["data.source.kind=mixture", f"data.source.sources={sources}"])
    changed = override(config, ["data.source.sources.1.text_field=body"])
    assert to_dict(changed)["data"]["source"]["sources"][1]["text_field"] == "body"
    assert override(changed, ["data.source.sources.1.text_field=text"]) == config
    with pytest.raises(ConfigError, match=r"sources\.2: unknown field; legal: 0, 1"):
        override(config, ["data.source.sources.2.text_field=body"])
    with pytest.raises(ConfigError, match=r"1\.text_fild: unknown field; did you mean text_field"):
        override(config, ["data.source.sources.1.text_fild=body"])
