"""The knapsack against every combination there is, and what must hold of any front."""

import itertools
import math
import random

import pytest

from abridged.planning.knapsack import Choice, Knapsack, least, solve_within


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


def limited(seed, amounts, count=5, choices=5):
    """As `things`, each choice with amounts beside its size; the larger the choice, the less it costs, roughly."""
    draw = random.Random(seed)
    return [
        [
            Choice(size, draw.uniform(0.5, 1.5) * 100 / size, tuple(draw.uniform(1, 10) for _ in range(amounts)))
            for size in draw.sample(range(5, 60), choices)
        ]
        for _ in range(count)
    ]


def all_within(given, size, limits):
    """The cost of each combination that fits."""
    for chosen in itertools.product(*given):
        sums = [sum(c.more[i] for c in chosen) for i in range(len(limits))]
        if sum(c.size for c in chosen) <= size and all(map(lambda a, b: a <= b, sums, limits)):
            yield sum(c.cost for c in chosen)


@pytest.mark.parametrize("amounts", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_within_limits_it_is_nearly_as_good_as_trying_everything(seed, amounts):
    given, draw = limited(seed, amounts), random.Random(100 + seed)
    apart = []
    for _ in range(6):
        limits, size = [draw.uniform(18, 40) for _ in range(amounts)], draw.randint(90, 250)
        chosen, costs = solve_within(given, size, limits), list(all_within(given, size, limits))
        taken = None if chosen is None else [own[i] for own, i in zip(given, chosen, strict=True)]
        if not costs:
            assert taken is None
        if taken is None:  # with two limits what is within both may lie off the hull
            assert not costs or amounts == 2
            continue
        assert sum(c.size for c in taken) <= size
        assert all(sum(c.more[i] for c in taken) <= limit for i, limit in enumerate(limits))
        apart.append(sum(c.cost for c in taken) / min(costs))
    assert len(apart) >= 2
    assert min(apart) == pytest.approx(1)
    assert max(apart) < 1.35


def test_limits_that_nothing_reaches_change_nothing():
    given = limited(1, 2)
    assert solve_within(given, 150, [math.inf, math.inf]) == Knapsack(given).solve(150)


@pytest.mark.parametrize("seed", range(4))
def test_the_least_of_an_amount_is_that_of_trying_everything(seed):
    given = limited(seed, 1)
    found = least(given, 150, [math.inf], 0)
    everything = [c for c in itertools.product(*given) if sum(one.size for one in c) <= 150]
    best = min(sum(one.more[0] for one in c) for c in everything)
    assert sum(own[i].more[0] for own, i in zip(given, found, strict=True)) == pytest.approx(best)
    assert solve_within(given, 150, [0.99 * best]) is None
