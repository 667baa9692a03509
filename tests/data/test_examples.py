"""The order in which training reads its examples."""

import numpy as np
import pytest
import torch

from abridged.data.examples import Order


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(0).integers(1, 500, 1000)], ids=["any", "by length"])
def test_an_epoch_has_every_example_once_and_the_next_another_order(lengths):
    order = Order(1000, 7, lengths, 8)
    first, second = order[0:1000], order[1000:2000]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1000))
    assert not torch.equal(first, second)
    assert torch.equal(Order(1000, 7, lengths, 8)[992:1010], torch.cat([first[992:], second[:10]]))
    assert not torch.equal(Order(1000, 8, lengths, 8)[0:1000], first)


def test_batches_are_of_about_one_length_and_in_no_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 500, 1003)
    batches = lengths[Order(1003, 0, lengths, 8)[0:1000].numpy()].reshape(-1, 8)
    spread = batches.max(1) - batches.min(1)
    assert np.median(spread) < 30
    assert abs(np.corrcoef(np.arange(len(batches)), batches.mean(1))[0, 1]) < 0.3
