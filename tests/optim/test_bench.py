from muonlab.bench import optimizer as bench


def test_the_report_of_a_tiny_set(monkeypatch):
    monkeypatch.setitem(bench.SETS, "tiny", ([(8, 8), (3, 4, 8)], [(10, 8)]))
    report = bench.bench_optimizer("tiny", rounds=2)
    assert set(report.timings) == {"muonlab", "torch.optim.Muon"}
    assert abs(sum(report.shares.values()) - 1) < 1e-6
    assert report.shares["AdamW"] > 0
    assert report.state_bytes == (8 * 8 + 3 * 4 * 8) * 4 + 2 * 10 * 8 * 4 + 4
    text = report.text()
    assert "set tiny" in text
    assert "matrix products" in text
