from pathlib import Path

import pytest
from tiny_runs import (
    EVERYTHING_RANDOM,
    Killed,
    MakeConfig,
    assert_same_end,
    die_before_step,
    train_in,
)

from muonlab.config import ConfigError
from muonlab.data import TokenData
from muonlab.runs import RunDirectory
from muonlab.sampling import printable
from muonlab.train import train

SAMPLED = ("train.sample_every=2", "train.sample_prompt=the muon")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_samples_do_not_change_training(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, dtype: str
) -> None:
    changes = (*EVERYTHING_RANDOM, f"train.dtype={dtype}")
    plain, sampled = make_config(*changes), make_config(*changes, *SAMPLED)
    assert plain.fingerprint() == sampled.fingerprint()
    silent = train_in(tmp_path / "plain", plain, tiny_data)
    speaking = train_in(tmp_path / "sampled", sampled, tiny_data)
    assert_same_end(silent, speaking)
    assert silent.samples() == []
    samples = speaking.samples()
    assert [(row["step"], row["prompt"]) for row in samples] == [
        (2, "the muon"),
        (4, "the muon"),
        (6, "the muon"),
    ]
    assert all(row["text"] for row in samples)


def test_a_resumed_run_samples_as_an_uninterrupted_one(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("train.sample_every=1", "train.checkpoint_every=2", "train.steps=4")
    whole = train_in(tmp_path / "whole", config, tiny_data)
    run = RunDirectory.place(tmp_path / "parts", config)
    with monkeypatch.context() as patch:
        die_before_step(patch, 3)
        with pytest.raises(Killed):
            train(config, run, tiny_data, progress=False)
    train(config, run, tiny_data)
    assert run.samples() == whole.samples()
    assert len(run.samples()) == 4
    said = (run.path / "log.txt").read_text().splitlines()
    assert any(
        line.endswith(f"step 4 writes: {printable(run.samples()[-1]['text'])}") for line in said
    )
    assert (
        printable("a\n\x1b[31m") == r"a\n\x1b[31m"
    )  # no colour, no cursor: a model writes anything


def test_a_prompt_that_cannot_be_continued(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    long = make_config("train.sample_every=2", f"train.sample_prompt={'muon ' * 200}")
    with pytest.raises(ConfigError, match=r"train.sample_prompt is 'muon .*the model was trained"):
        train_in(tmp_path, long, tiny_data)
    config = make_config(*SAMPLED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_data.tokenizer, "encode", lambda text: [])
        with pytest.raises(ConfigError, match="'the muon'; the tokenizer makes no token of it"):
            train_in(tmp_path, config, tiny_data)
    with pytest.raises(ConfigError, match="sample_every is -1; 0 is never"):
        make_config("train.sample_every=-1")


def test_a_run_that_goes_on_elsewhere_says_what_has_changed(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("train.steps=2")
    run = train_in(tmp_path, config, tiny_data)
    (run.path / "summary.json").unlink()
    monkeypatch.setattr("muonlab.manifest.git_state", lambda: {"sha": "f00", "dirty": False})
    if "sha" not in run.manifest()["git"]:
        pytest.skip("not in a checkout")
    with pytest.warns(UserWarning, match=r"it began with code \(commit\) .* goes on with f00"):
        train(config, run, tiny_data, progress=False)
