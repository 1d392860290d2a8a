import pytest

from muonlab.bench import optimizer as bench


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
def test_the_report_of_a_tiny_set(monkeypatch, native):
    monkeypatch.setattr(bench, "bf16_is_native", lambda device: native)
    monkeypatch.setitem(bench.SETS, "tiny", ([(8, 8), (3, 4, 8)], [(10, 8)]))
    report = bench.bench_optimizer("tiny", rounds=2)
    assert set(report.timings) == {"muonlab", *(["torch.optim.Muon"] if native else [])}
    assert set(report.slow_seconds) == (set() if native else {"torch.optim.Muon"})
    assert abs(sum(report.shares.values()) - 1) < 1e-6
    assert report.shares["AdamW"] > 0
    assert report.state_bytes == (8 * 8 + 3 * 4 * 8) * 4 + 2 * 10 * 8 * 4 + 4
    text = report.text()
    assert "set tiny" in text
    assert "matrix products" in text
    assert ("not in the rounds" in text) is not native


def test_a_peer_that_takes_too_long_is_timed_once_and_marked(monkeypatch):
    monkeypatch.setitem(bench.SETS, "tiny", ([(8, 8)], [(10, 8)]))
    monkeypatch.setattr(bench, "bf16_is_native", lambda device: True)
    calls = []
    lines = []
    report = bench.bench_optimizer(
        "tiny",
        rounds=2,
        peers={"slow": lambda: calls.append(1)},
        slow_after=0.0,  # all but ours
        report=lines.append,
    )
    assert calls == [1]
    assert set(report.timings) == {"muonlab"}
    assert set(report.slow_seconds) == {"torch.optim.Muon", "slow"}
    assert "(not in the rounds)" in report.text()
    assert any("first step of slow" in line for line in lines)
