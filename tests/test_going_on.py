"""Going on from something: a finished run, the weights of a run, a model of transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    TINY,
    Capture,
    Killed,
    MakeConfig,
    assert_same_end,
    complaint,
    die_before_step,
    directories,
    train_in,
)

from muonlab.cli import run as command
from muonlab.config import ConfigError, InitFrom, RunConfig, override
from muonlab.data import TokenData
from muonlab.evaluate import evaluate
from muonlab.loading import load
from muonlab.pretrained import begin_from, import_run, open_pretrained
from muonlab.recipes import nano
from muonlab.runs import RunDirectory, RunError
from muonlab.train import train

# -- more steps ------------------------------------------------------------------------------------


def test_an_extended_run_equals_one_that_was_planned_so(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_in(tmp_path / "parts", make_config("train.steps=4"), tiny_data)
    before = run.summary()
    config = run.extend(3)
    assert (config.train.steps, config.train.extended_at) == (7, (4,))
    assert run.status() == "interrupted"
    with monkeypatch.context() as patch:
        die_before_step(patch, 5)
        with pytest.raises(Killed):
            train(config, run, tiny_data, progress=False)
    train(run.config(), run, tiny_data, progress=False)
    whole = train_in(
        tmp_path / "whole", make_config("train.steps=7", "train.extended_at=[4]"), tiny_data
    )
    assert_same_end(whole, run)
    assert run.config() == whole.config()
    (extension,) = run.manifest()["extended"]
    assert (extension["from_step"], extension["to_step"]) == (4, 7)
    assert extension["fingerprint_before"] == make_config("train.steps=4").fingerprint()
    assert json.loads((run.path / "summary-step-00000004.json").read_text()) == before


def test_the_learning_rate_of_an_extended_run(make_config: MakeConfig) -> None:
    short, long = make_config("train.steps=4"), make_config("train.steps=7")
    both = make_config("train.steps=7", "train.extended_at=[4]")
    rates = [both.learning_rate_multiplier(step) for step in range(7)]
    assert rates[:4] == [short.learning_rate_multiplier(step) for step in range(4)]
    assert rates[4:] == [long.learning_rate_multiplier(step) for step in range(4, 7)]
    assert len({config.fingerprint() for config in (short, long, both)}) == 3


@pytest.mark.parametrize("fatal", ["manifest.json", "summary.json", "config.json"])
def test_a_process_that_dies_while_it_extends(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fatal: str,
) -> None:
    run = train_in(tmp_path, make_config("train.steps=2"), tiny_data)
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if fatal in (path.name, Path(target).name):
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            run.extend(2)
    train(run.untouched_config(), run, tiny_data, progress=False)
    assert (run.status(), run.summary()["steps"]) == ("finished", 2)
    train(run.extend(2), run, tiny_data, progress=False)
    assert run.summary()["steps"] == 4


def test_extending_by_command(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, cache_dir: Path, capsys: Capture
) -> None:
    run = train_in(tmp_path, make_config("train.steps=4"), tiny_data)
    more = ["resume", str(run.path), "--cache-dir", str(cache_dir), "--steps-more"]
    assert command([*more, "0"]) == 2
    assert "--steps-more is 0; it must be at least 1" in complaint(capsys)
    assert command([*more, "4"]) == 0
    said = capsys.readouterr().out
    assert "ended at step 4 and goes on to step 8. Its last learning rate was 0.0025" in said
    assert "of 8 steps goes on at 0.005 (50% of the peak) and ends at 0.0013" in said
    (run.path / "summary.json").unlink()
    assert command([*more, "4"]) == 2
    assert "is interrupted; --steps-more is for a finished run" in complaint(capsys)


def test_what_cannot_be_extended(finished_run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run directory"):
        RunDirectory(tmp_path).extend(2)
    with pytest.raises(ConfigError, match=r"extended_at is \[9\]; it must rise, from 1 to below"):
        override(nano(), ["train.steps=9", "train.extended_at=[9]"])


# -- other weights ---------------------------------------------------------------------------------


NO_LIMIT = ("data.max_documents=null",)


def second_text(path: Path) -> Path:
    parts = "beside", "a", "quiet", "river", "old", "boats", "wait", "and", "children", "sing", "of"
    parts = *parts, "summer", "rain"
    lines = [" ".join(parts[(i * 7 + j * (i % 5)) % 13] for j in range(9)) for i in range(900)]
    path.write_text(".\n\n".join(lines), encoding="utf-8")
    return path


def fine_tuning(source: Path, text: Path, *changes: str) -> RunConfig:
    config = begin_from(nano(), open_pretrained(source))
    place = [item for item in TINY if item.startswith(("data.s", "data.max", "train"))]
    return override(config, [*place, f"data.source.path={text}", "train.steps=20", *changes])


def test_fine_tuning_begins_with_the_weights_of_a_run(
    finished_run: RunDirectory, tmp_path: Path, cache_dir: Path
) -> None:
    config = fine_tuning(finished_run.path, second_text(tmp_path / "second.txt"))
    data = config.data.prepare(cache_dir, progress=False)
    source = load(finished_run.path)
    assert data.tokenizer.to_json() == source.tokenizer.to_json()
    run = train_in(tmp_path, config, data)
    losses = [row["val/loss"] for row in run.metrics() if "val/loss" in row]
    expected = evaluate(
        source.model, data, "validation", batch_size=4, sequence_length=32, max_batches=2
    )
    assert losses[0] == pytest.approx(expected["val/loss"], abs=1e-5)
    assert losses[-1] < losses[0] - 1
    assert run.config().init_from == InitFrom(
        path=finished_run.checkpoints / "step-00000006",
        sha256=config.init_from.sha256,  # type: ignore[union-attr]
    )


def test_the_config_knows_its_weights_and_not_where_they_lie(
    finished_run: RunDirectory, make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    plain = begin_from(make_config(), open_pretrained(finished_run.path))
    assert plain.init_from is not None
    moved = replace(plain, init_from=replace(plain.init_from, path=Path("elsewhere")))
    other = replace(plain, init_from=replace(plain.init_from, sha256="0"))
    earlier = begin_from(make_config(), open_pretrained(finished_run.checkpoints / "step-00000002"))
    assert plain.fingerprint() == moved.fingerprint()
    assert len({c.fingerprint() for c in (make_config(), plain, other, earlier)}) == 4
    with pytest.raises(ConfigError, match="now holds other weights than the config says"):
        train_in(tmp_path, other, tiny_data)


def test_another_tokenizer_is_refused(
    finished_run: RunDirectory, tmp_path: Path, cache_dir: Path, capsys: Capture
) -> None:
    text = second_text(tmp_path / "second.txt")
    where = ["--init-from", str(finished_run.path), *directories(tmp_path, cache_dir)]
    arguments = ["train", "nano", f"data.source.path={text}", "data.source.kind=local", *NO_LIMIT]
    others = ["data.tokenizer.kind=train", "data.tokenizer.vocab_size=290"]
    assert command([*arguments, *others, *where]) == 2
    assert "data.tokenizer is not the one that" in complaint(capsys)
    assert command([*arguments, "model.dim=64", *where]) == 2
    assert "the model's is" in complaint(capsys)
    assert command(["train", "nano", "--init-from", str(tmp_path)]) == 2
    assert "is neither a run nor a Hugging Face directory" in complaint(capsys)


# -- transformers ----------------------------------------------------------------------------------

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "rope_interleave": False,
}
CLASSES: dict[str, dict[str, Any]] = {"Llama": {}, "Mixtral": EXPERTS, "DeepseekV3": LATENT}


def make_hf(name: str, tokenizer_json: str, directory: Path) -> Any:
    """A model that transformers made from a config, with a tokenizer of ours; random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer_json)
    options = SHAPE | CLASSES[name] | {"vocab_size": backend.get_vocab_size()}
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model.save_pretrained(directory)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>"
    ).save_pretrained(directory)
    return model


@pytest.mark.parametrize("name", CLASSES)
def test_an_imported_model_computes_what_transformers_does(
    name: str, tiny_data: TokenData, tmp_path: Path
) -> None:
    theirs = make_hf(name, tiny_data.tokenizer.to_json(), tmp_path / "hf")
    run = import_run(open_pretrained(tmp_path / "hf"), tmp_path / "ours")
    ours = load(run.path)
    assert ours.tokenizer.eot_id == tiny_data.eot_id
    tokens = tiny_data.batch(0, 0, 2, 48)
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = ours.model.logits(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_from_transformers_to_a_second_text(
    tiny_data: TokenData, tmp_path: Path, cache_dir: Path, capsys: Capture
) -> None:
    make_hf("Mixtral", tiny_data.tokenizer.to_json(), tmp_path / "hf")
    text = second_text(tmp_path / "second.txt")
    imported = tmp_path / "imported"
    assert command(["import", str(tmp_path / "hf"), "--to", str(imported)]) == 0
    assert f"{imported}: " in capsys.readouterr().out
    sample = ["--prompt", "a quiet river", "--max-new-tokens", "12", "--seed", "1"]
    assert command(["generate", str(imported), *sample]) == 0
    before = capsys.readouterr().out
    changes = ["train.steps=30", "train.batch_size=8", "train.evaluate_every=30"]
    where = directories(tmp_path, cache_dir)
    arguments = ["train", "nano", *changes, "--data", str(text), "--init-from", str(imported)]
    assert command([*arguments, *where]) == 0
    said = capsys.readouterr().out
    assert f"beginning with the weights of step 0 of run {imported}" in said
    assert "training with muon at a peak learning rate of 0.01, as for recipe nano" in said
    assert "trained by an unknown optimizer: on a model that AdamW has trained" in said
    (found,) = (tmp_path / "runs").rglob("summary.json")
    losses = [row["val/loss"] for row in RunDirectory(found.parent).metrics() if "val/loss" in row]
    assert losses[-1] < losses[0] - 1
    assert command(["generate", str(found.parent), *sample]) == 0
    assert capsys.readouterr().out != before

    assert command(["resume", str(imported)]) == 2
    assert "is finished: 0 steps; `muonlab train RECIPE --init-from" in complaint(capsys)
    assert command(["resume", str(imported), "--steps-more", "3"]) == 2
    assert "has no corpus: it was imported" in complaint(capsys)
    assert command(["eval", str(imported)]) == 2
    assert "has no corpus: it was imported from" in complaint(capsys)
    assert command(["import", str(tmp_path / "hf"), "--to", str(imported)]) == 2
    assert "exists and is not empty" in complaint(capsys)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"model_type": "gpt2"}', "model_type is 'gpt2'; expected one of llama,"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{", "not JSON"),
        ("config.json", None, "is neither a run nor a Hugging Face directory"),
        ("tokenizer.json", None, "is missing; a model without its tokenizer"),
        ("tokenizer_config.json", "{}", "names no eos_token"),
        ("model.safetensors", None, "only safetensors weights can be imported"),
        ("model.safetensors", "torn", "model.safetensors is damaged"),
        ("model.safetensors.index.json", "{}", "it has no weight_map"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "../../secret.safetensors"}}',
            "must be a file beside it",
        ),
    ],
)
def test_what_cannot_be_imported(
    tiny_data: TokenData,
    tmp_path: Path,
    capsys: Capture,
    file: str,
    content: str | None,
    message: str,
) -> None:
    make_hf("Llama", tiny_data.tokenizer.to_json(), tmp_path / "hf")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"a pickle")  # is never looked at
    if content is None:
        (tmp_path / "hf" / file).unlink()
    else:
        (tmp_path / "hf" / file).write_text(content)
    assert command(["import", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")]) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "ours").exists()
