"""The knapsack against every combination there is, and what must hold of any front."""

import itertools
import random

import pytest

from abridged.planning.knapsack import Choice, Knapsack


def things(seed, count=5, choices=4, unit=1):
    draw = random.Random(seed)
    return [
        [Choice(unit * draw.randint(1, 60), draw.uniform(0, 10)) for _ in range(draw.randint(1, choices))]
        for _ in range(count)
    ]


def every(given):
    """(size, cost) of each combination."""
    for chosen in itertools.product(*given):
        yield sum(c.size for c in chosen), sum(c.cost for c in chosen)


@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_it_finds_what_trying_everything_finds(seed, unit):
    given = things(seed, unit=unit)
    knapsack = Knapsack(given)
    everything = list(every(given))
    for size in sorted({size for size, _ in everything})[::7]:
        best = min(cost for taken, cost in everything if taken <= size)
        chosen = knapsack.solve(size)
        assert knapsack.size(chosen) <= size
        assert knapsack.cost(chosen) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_with_few_grains_it_fits_and_is_nearly_as_good(seed):
    given = things(seed, count=6)
    exact, coarse = Knapsack(given), Knapsack(given, grains=120)
    for size in range(exact.smallest, exact.largest, 9):
        chosen = coarse.solve(size)
        assert coarse.size(chosen) <= size
        assert coarse.cost(chosen) <= 1.1 * exact.cost(exact.solve(size)) + 1e-9


def test_what_rounding_up_leaves_is_spent():
    given = [[Choice(0, 10.0), Choice(1001, 0.0)], [Choice(0, 1.0), Choice(7, 0.0)]]
    chosen = Knapsack(given, grains=2).solve(1008)
    assert chosen == [1, 1]


def test_more_room_never_costs_more():
    knapsack = Knapsack(things(3, count=30, choices=8), grains=100)
    sizes = range(knapsack.smallest, knapsack.largest + 50)
    costs = [knapsack.cost(knapsack.solve(size)) for size in sizes]
    drops = sum(later > earlier + 0.02 * costs[0] for earlier, later in itertools.pairwise(costs))
    assert drops == 0
    assert costs[-1] == pytest.approx(sum(min(c.cost for c in choices) for choices in knapsack.things))


def test_a_size_below_the_smallest_has_no_answer():
    knapsack = Knapsack([[Choice(5, 1.0), Choice(3, 2.0)], [Choice(4, 0.0)]])
    assert knapsack.smallest == 7
    assert knapsack.solve(6) is None
    assert knapsack.solve(7) == [1, 0]


def test_a_choice_that_is_larger_and_no_better_is_never_taken():
    knapsack = Knapsack([[Choice(5, 1.0), Choice(9, 1.0), Choice(8, 3.0)]])
    assert knapsack.largest == 5
    assert knapsack.solve(100) == [0]
