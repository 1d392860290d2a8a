"""The search against functions whose optimum is known."""

import math
import random
from collections.abc import Callable, Mapping

import pytest

from muonlab.lab.experiment import Search
from muonlab.lab.tuning import Trial, at_edge, best, choose, finalists, next_trials, plan

RATE = "optimizer.lr"
Loss = Callable[[Mapping[str, float]], float]


def finish(search: Search, loss: Loss, trials: list[Trial] | None = None) -> list[Trial]:
    """Train what is asked for until nothing is, as the engine does."""
    finished = list(trials or [])
    while wanted := next_trials(search, finished):
        finished += [Trial(values=values, loss=loss(values)) for values in wanted]
    return finished


def bowl(**optimum: float) -> Loss:
    """4 at the optimum, 3 more a decade away on either side."""
    names = {name.replace("__", "."): value for name, value in optimum.items()}
    return lambda values: (
        4
        + 3
        * sum(math.log10(values[field] / best_value) ** 2 for field, best_value in names.items())
    )


@pytest.mark.parametrize("optimum", [4e-4, 3e-3, 2e-2])
def test_it_finds_the_optimum_within_the_budget(optimum: float) -> None:
    search = Search(space={RATE: (1e-4, 1e-1)}, trials=8)
    finished = finish(search, bowl(optimizer__lr=optimum))
    assert len(finished) == search.total_trials == 8 + 4 + 4
    assert best(search, finished).loss < 4.03  # a quarter of an octave away


def test_it_finds_the_optimum_of_two_fields() -> None:
    search = Search(space={RATE: (1e-4, 1e-1), "optimizer.weight_decay": (1e-2, 1.0)}, trials=12)
    finished = finish(search, bowl(optimizer__lr=5e-3, optimizer__weight_decay=0.1))
    assert len(finished) == search.total_trials == 12 + 6 + 6
    assert best(search, finished).loss < 4.1


def test_the_first_half_can_run_in_parallel() -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=7)
    first = next_trials(search, [])
    assert len(first) == 4
    assert len({values[RATE] for values in first}) == 4
    assert all(1e-3 <= values[RATE] <= 1e-1 for values in first)
    half = [Trial(values=values, loss=1.0) for values in first[:2]]
    assert next_trials(search, half) == first[2:], "asked for until finished"


def test_the_best_trials_are_made_again_and_their_mean_chooses() -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, finalists=3, repeats=2)
    tried = {1e-3: 5.0, 3e-3: 4.1, 1e-2: 4.0, 3e-2: 4.2, 1e-1: math.inf}
    trials = [Trial(values={RATE: rate}, loss=loss) for rate, loss in tried.items()]
    assert finalists(search, trials) == [{RATE: 1e-2}, {RATE: 3e-3}, {RATE: 3e-2}]
    again = {1e-2: (4.3, 4.2), 3e-3: (4.1, 4.2), 3e-2: (4.0, math.inf)}
    repeated = [
        Trial(values={RATE: rate}, loss=loss) for rate, losses in again.items() for loss in losses
    ]
    choice = choose(search, trials, repeated)
    assert choice.values == {RATE: 3e-3}, "the best trial was lucky, and 3e-2 diverges"
    assert choice.regret == pytest.approx(0.1)
    third = [Trial(values={RATE: 3e-2}, loss=loss) for loss in (4.5, 4.6)]
    assert choose(search, trials, repeated[:4] + third).regret == pytest.approx(0.4)
    alone = choose(search, trials, repeated[:2])
    assert alone.values == {RATE: 1e-2}
    assert math.isnan(alone.regret), "nothing to compare with"
    assert choose(search, trials, []).values == {RATE: 1e-2}
    assert math.isnan(choose(search, trials, []).regret)


def test_an_optimum_beyond_the_edge_extends_the_range_and_the_budget() -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=6)
    finished = finish(search, bowl(optimizer__lr=0.5))
    done = plan(search, finished)
    assert done.extensions == 1
    assert done.space[RATE] == (1e-3, 1.0), "half of two decades more"
    assert len(finished) == 6 + 3 + 3
    found = best(search, finished)
    assert found.values[RATE] == pytest.approx(0.5, rel=0.3)
    assert not at_edge(done.space, found.values)


@pytest.mark.parametrize("optimum", [1e-4, 3e-3, 0.5])
def test_every_arm_has_as_many_trials_wherever_its_optimum_lies(optimum: float) -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=6)
    assert len(finish(search, bowl(optimizer__lr=optimum))) == search.total_trials == 12


def test_the_first_settings_are_scrambled_by_arm() -> None:
    """Common ones would favour the arm whose optimum happens to lie near one of them."""
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=6)
    muon, adamw = (next_trials(search, [], arm) for arm in ("muon", "adamw"))
    assert not {values[RATE] for values in muon} & {values[RATE] for values in adamw}
    assert muon == next_trials(search, [], "muon")


def test_extensions_end() -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=6, extensions=2)
    finished = finish(search, lambda values: 1 / values[RATE])  # larger is always better
    done = plan(search, finished)
    assert done.extensions == 2
    assert len(finished) == 6 + 3 + 3
    assert at_edge(done.space, best(search, finished).values) == {RATE: "high"}
    never = Search(space={RATE: (1e-3, 1e-1)}, trials=6, extensions=0)
    assert len(finish(never, lambda values: 1 / values[RATE])) == 6


def test_the_low_side_extends_too_and_only_the_field_at_its_edge() -> None:
    search = Search(space={RATE: (1e-3, 1e-1), "optimizer.weight_decay": (1e-2, 1.0)}, trials=10)
    finished = finish(search, bowl(optimizer__lr=2e-4, optimizer__weight_decay=0.1))
    done = plan(search, finished)
    assert done.space[RATE][0] < 1e-3
    assert done.space[RATE][1] == 1e-1
    assert done.space["optimizer.weight_decay"] == (1e-2, 1.0)


def test_a_diverged_trial_counts_and_never_wins() -> None:
    def cliff(values: Mapping[str, float]) -> float:
        return math.inf if values[RATE] > 3e-2 else bowl(optimizer__lr=8e-3)(values)

    search = Search(space={RATE: (1e-4, 1.0)}, trials=8)
    finished = finish(search, cliff)
    assert any(math.isinf(trial.loss) for trial in finished)
    assert best(search, finished).values[RATE] <= 3e-2
    assert best(search, finished).loss < 4.1


def test_when_everything_diverged_the_search_ends_and_says_so() -> None:
    search = Search(space={RATE: (1e-1, 1e1)}, trials=6)
    finished = finish(search, lambda values: math.nan)
    assert len(finished) == 6
    with pytest.raises(ValueError, match=r"all 6 trials of optimizer\.lr diverged"):
        best(search, finished)


def test_a_flat_loss_uses_the_whole_budget() -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=9, extensions=0)
    finished = finish(search, lambda values: 4.0)
    assert len({trial.values[RATE] for trial in finished}) == 9


def test_the_order_of_finishing_changes_nothing() -> None:
    search = Search(space={RATE: (1e-3, 1e-1)}, trials=6)
    loss = bowl(optimizer__lr=0.3)
    finished = finish(search, loss)
    for cut in range(len(finished)):
        kept = finished[:cut]
        random.Random(cut).shuffle(kept)
        resumed = finish(search, loss, kept)
        assert sorted(t.values[RATE] for t in resumed) == sorted(t.values[RATE] for t in finished)


def test_values_have_three_digits_and_survive_text() -> None:
    search = Search(space={RATE: (0.00123456, 0.0987654)}, trials=6)
    for trial in finish(search, bowl(optimizer__lr=1e-3)):
        assert float(f"{trial.values[RATE]:.3g}") == trial.values[RATE]


def test_another_seed_is_another_search() -> None:
    first = Search(space={RATE: (1e-3, 1e-1)})
    second = Search(space={RATE: (1e-3, 1e-1)}, seed=1001)
    assert next_trials(first, []) != next_trials(second, [])
    assert next_trials(first, []) == next_trials(first, [])
