"""What methods look at before training, where examples draw what they mask."""

from types import SimpleNamespace

import torch

from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.training.runners.whole import Whole


class Drawn:
    """Examples that are drawn anew at each visit."""

    context, tokens_in_example = 8, 8.0

    def __len__(self):
        return 64

    def order(self, seed, batch_size):
        return Order(len(self), seed)

    def batch(self, index):
        ids = torch.randint(100, (len(index), self.context))
        return Batch({"input_ids": ids}, torch.zeros(len(index)), index)


class Seen(torch.nn.Linear):
    def forward(self, input_ids, use_cache):
        self.ids = input_ids.clone()


def test_models_read_the_same_whoever_comes_first_and_nothing_else_is_moved():
    stage = SimpleNamespace(training=TrainingSettings(mixed_precision="no"))
    runner = Whole(SimpleNamespace(stage=stage, examples=Drawn(), device="cpu"))
    for tokens in (None, 256):
        student, teacher = Seen(1, 1), Seen(1, 1)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        runner.calibrate(student, tokens)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(6)
        runner.calibrate(teacher, tokens)
        assert torch.equal(student.ids, teacher.ids)
