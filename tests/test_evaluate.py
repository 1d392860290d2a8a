import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import MakeConfig

from muonlab.config import override
from muonlab.data import SplitName, TokenData
from muonlab.evaluate import evaluate


@pytest.mark.parametrize("split", ["validation", "test"])
def test_equals_a_pass_over_the_whole_stream_by_hand(
    make_config: MakeConfig, tiny_data: TokenData, split: SplitName
) -> None:
    """Oracle: windows cut by hand, full logits, one at a time."""
    length = 32
    model = make_config().model.build(0)
    stream = torch.cat(
        [
            torch.from_numpy(tiny_data.document(split, index).astype("int64"))
            for index in range(tiny_data.num_documents(split))
        ]
    )
    losses, correct = [], []
    for start in range(0, len(stream) - 1, length):
        window = stream[start : start + length + 1]
        logits = model.logits(window[None, :-1])[0]
        losses.append(F.cross_entropy(logits, window[1:], reduction="none"))
        correct.append(logits.argmax(-1) == window[1:])
    loss = torch.cat(losses).double().mean().item()
    assert len(torch.cat(losses)) == len(stream) - 1

    found = evaluate(model, tiny_data, split, batch_size=3, sequence_length=length)
    prefix = "val" if split == "validation" else "test"
    text = "".join(
        tiny_data.tokenizer.decode(tiny_data.document(split, index)[:-1].tolist())
        for index in range(tiny_data.num_documents(split))
    )
    bits = loss / math.log(2) * len(stream) / len(text.encode())
    assert found[f"{prefix}/loss"] == pytest.approx(loss, rel=1e-5)
    assert found[f"{prefix}/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found[f"{prefix}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    accuracy = torch.cat(correct).double().mean().item()
    assert found[f"{prefix}/accuracy"] == pytest.approx(accuracy, abs=2 / len(stream))


def test_draws_nothing_and_leaves_the_mode(make_config: MakeConfig, tiny_data: TokenData) -> None:
    config = make_config("model.dropout=0.5", "model.ffn.router_noise=1")
    model = config.model.build(0).train()
    before = torch.get_rng_state()
    first, second = (
        evaluate(model, tiny_data, "validation", batch_size=4, sequence_length=32, max_batches=2)
        for _ in range(2)
    )
    assert first == second
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_size_does_not_matter(
    make_config: MakeConfig, tiny_data: TokenData, batch_size: int
) -> None:
    model = make_config().model.build(0)
    one = evaluate(model, tiny_data, "validation", batch_size=7, sequence_length=32)
    other = evaluate(model, tiny_data, "validation", batch_size=batch_size, sequence_length=32)
    assert other["val/loss"] == pytest.approx(one["val/loss"], rel=1e-6)
    assert other["moe/load_cv"] == pytest.approx(one["moe/load_cv"], rel=1e-2)


def test_routing_of_a_router_that_sends_all_tokens_to_two_experts(
    make_config: MakeConfig, tiny_data: TokenData
) -> None:
    config = make_config("model.ffn.balancing=bias")  # its bias chooses the experts
    model = config.model.build(0)
    for name, bias in model.named_buffers():
        if name.endswith("selection_bias"):
            bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    found = evaluate(model, tiny_data, "validation", batch_size=4, sequence_length=32)
    assert found["moe/dead_experts"] == pytest.approx(0.5)
    assert found["moe/max_load"] == pytest.approx(2.0)
    assert found["moe/load_cv"] == pytest.approx(1.0)
    assert 0 < found["moe/router_entropy"] <= math.log(4)


def test_a_dense_model_has_no_routing(make_config: MakeConfig, tiny_data: TokenData) -> None:
    model = make_config("model.ffn.kind=dense").model.build(0)
    found = evaluate(model, tiny_data, "test", batch_size=4, sequence_length=32, max_batches=1)
    assert set(found) == {
        f"test/{name}" for name in ("loss", "bits_per_byte", "perplexity", "accuracy")
    }


def test_the_leaky_split_has_no_test(make_config: MakeConfig, cache_dir: Path) -> None:
    config = override(make_config(), ["data.split.kind=leaky_windows"])
    data = config.data.prepare(cache_dir, progress=False)
    with pytest.raises(ValueError, match="has no test split"):
        evaluate(config.model.build(0), data, "test", batch_size=4, sequence_length=32)
