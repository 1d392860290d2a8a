"""The probes find what P2 published, and find nothing where there is nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from muonlab.config import changed
from muonlab.data import DocumentSplit, LeakyWindowSplit
from muonlab.probes import causality_leak, split_overlap
from muonlab.recipes import nano

TOKENS = torch.randint(512, (2, 24), generator=torch.Generator().manual_seed(0))
KINDS = {
    "mhsa": {"model.attention.kind": "mhsa", "model.attention.num_heads": 2},
    "mhla": {  # P2's
        "model.attention.kind": "mhla",
        "model.attention.num_heads": 2,
        "model.attention.num_latents": 4,
    },
}


@pytest.mark.filterwarnings("ignore:attention kind mhla is not causal")
@pytest.mark.parametrize("kind", KINDS)
def test_p2s_latent_attention_leaks_and_plain_attention_does_not(kind: str) -> None:
    model = changed(nano(), KINDS[kind]).model.build(0)
    model.train()
    leaks = causality_leak(model, TOKENS)
    assert model.training
    if kind == "mhsa":
        assert leaks == []
    else:  # every latent reads every token, so every output hears of the last one
        assert {(output, 23) for output in range(23)} <= set(leaks)


def test_the_very_pairs_that_leak_are_named() -> None:
    embedding = torch.nn.functional.one_hot

    def peeks(ids: torch.Tensor) -> SimpleNamespace:
        logits = embedding(ids, 512).float()
        logits[:, 3] += logits[:, 5]  # output 3 reads input 5
        return SimpleNamespace(logits=logits)

    assert causality_leak(peeks, TOKENS[0], vocab_size=512) == [(3, 5)]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(torch.zeros(2, 3, 4), "tokens are"), (torch.zeros(5, dtype=torch.long), "vocab_size is 1")],
)
def test_ids_that_cannot_be_probed(tokens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causality_leak(lambda ids: ids, tokens)


def test_p2s_split_overlaps_and_documents_do_not() -> None:
    stream = np.random.default_rng(0).integers(50, size=3000)
    length = 64
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)
    leaky = LeakyWindowSplit()
    train = windows[leaky.train_starts(len(stream), length, seed=0, epoch=0)]
    validation = windows[leaky.evaluation_starts("validation", len(stream), length)]
    assert split_overlap(train, validation) > 0.95

    split = DocumentSplit(validation_fraction=0.3, test_fraction=0.0)
    texts = [" ".join(map(str, stream[i : i + 100])) for i in range(0, 3000, 100)]
    parts = {
        name: np.concatenate(
            [
                np.fromstring(text, sep=" ", dtype=int)
                for text in texts
                if split.assign(text) == name
            ]
        )
        for name in ("train", "validation")
    }
    assert split_overlap(parts["train"], parts["validation"]) == 0.0


def test_the_share_is_counted_in_tokens() -> None:
    train = np.arange(1000)
    validation = np.concatenate([np.arange(5000, 5060), np.arange(100, 140)])  # 40 of 100
    assert split_overlap(train, validation) == pytest.approx(0.4)
    assert split_overlap(train, validation, length=41) == 0.0
    with pytest.raises(ValueError, match=r"validation is \(5,\); it must be"):
        split_overlap(train, np.arange(5))
