"""QK-clip in training: what the attentions record, what clipping makes of it, and what it costs."""

import pytest
import torch
from on_device import placed
from tiny_runs import MakeConfig, assert_same, train_in

from muonlab.config import ConfigError
from muonlab.data import TokenData
from muonlab.model.attention.softmax import causal_attention
from muonlab.optim.qk_clip import QKClip

pytestmark = pytest.mark.usefixtures("on_device")

ATTENTIONS = {
    "mhsa": (),
    "gqa": ("model.attention.num_kv_heads=2",),
    "mla": ("model.attention.kind=mla",),
    "mla, compressed queries": ("model.attention.kind=mla", "model.attention.query_rank=24"),
}


@pytest.mark.parametrize(
    ("heads", "groups", "length"), [(4, 4, 7), (4, 2, 130), (6, 1, 300), (2, 1, 1100)]
)
def test_recorded_logits_are_those_of_the_whole_matrix(heads, groups, length):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, heads, length, 8), torch.randn(2, groups, length, 8)
    found = torch.full((heads,), -torch.inf)
    causal_attention(queries, keys, keys, scale=0.5, max_logits=found)
    logits = 0.5 * queries @ keys.repeat_interleave(heads // groups, dim=1).mT
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    expected = logits.masked_fill(~visible, -torch.inf).amax(dim=(0, 2, 3))
    torch.testing.assert_close(found, expected)
    before = found.clone()
    causal_attention(queries, 0.5 * keys, keys, scale=0.5, max_logits=found)
    assert torch.equal(found, before)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_after_clipping_no_logit_of_the_same_batch_is_above_the_threshold(
    make_config: MakeConfig, attention: str
) -> None:
    config = make_config("model.num_layers=1", "model.init_std=0.3", *ATTENTIONS[attention])
    model = placed(config.model.build(0))
    tokens = torch.randint(300, (2, 4, 32), generator=torch.Generator().manual_seed(0))

    def recorded() -> torch.Tensor:
        for micro_batch in tokens:
            model(micro_batch, micro_batch)
        return model.layers()[0].attention.max_logits

    watch = QKClip(model)
    watch.begin_step(watch=True)
    before = recorded()
    threshold = before.median().item()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert watch.max_logit() == {"qk/max_logit": before.amax()}
    watch.end_step()
    assert_same(weights, dict(model.named_parameters()))

    clip = QKClip(model, threshold)
    clip.begin_step()
    recorded()
    clip.end_step()
    clip.begin_step()
    torch.testing.assert_close(recorded(), before.clamp_max(threshold), rtol=1e-4, atol=0)


def test_training_below_the_threshold(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path
) -> None:
    def logits(*overrides: str) -> list[float]:
        config = make_config("model.init_std=0.1", "learning_rate.kind=constant", *overrides)
        rows = train_in(tmp_path, config, tiny_data).metrics()
        return [row["qk/max_logit"] for row in rows if "train/loss" in row]

    free = logits("train.diagnostics_every=1")
    clipped = logits("optimizer.qk_clip=0.2")
    assert clipped[0] == free[0]  # is measured before the first clip
    assert min(free) > 0.5
    assert max(clipped[1:]) < 0.3  # the last step's update is not clipped yet


def test_it_is_off_unless_asked_for_and_watching_changes_nothing(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path
) -> None:
    plain = train_in(tmp_path, make_config(), tiny_data)
    assert not any("qk/max_logit" in row for row in plain.metrics())
    watched = train_in(tmp_path, make_config("train.diagnostics_every=2"), tiny_data)
    assert [row["step"] for row in watched.metrics() if "qk/max_logit" in row] == [2, 4, 6]
    assert_same(plain.load_checkpoint().model, watched.load_checkpoint().model)
    assert make_config().fingerprint() != make_config("optimizer.qk_clip=1.0").fingerprint()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.attention.kind=mhla",), "not this mhla"),
        (("model.attention.kind=causal_mhla",), "not this causal_mhla"),
        (("model.attention.kind=prefix_mhla",), "not this prefix_mhla"),
        (("model.attention.qk_norm=true",), "mla without qk_norm, not this mhsa"),
        (("optimizer.qk_clip=0",), "qk_clip 0.* must be positive"),
        (("optimizer.kind=adamw", "optimizer.qk_clip=3"), "qk_clip: unknown field"),
    ],
)
def test_where_it_has_no_meaning(
    make_config: MakeConfig, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(*{"optimizer.qk_clip=100": None} | dict.fromkeys(overrides))
