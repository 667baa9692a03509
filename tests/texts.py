"""Random texts that a runner may be given, and tiny models on disk."""

from dataclasses import dataclass

import torch

import tiny
from abridged import families
from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.training.runners import Pass


@dataclass
class Texts:
    """Random texts for a model, some of them padded."""

    model: object
    count: int = 12
    length: int = 10
    context = tokens_in_example = 10
    same_length = True

    def __len__(self):
        return self.count

    def order(self, seed, batch_size):
        return Order(self.count, seed)

    def fingerprint(self):
        return "random"

    def batch(self, index):
        draw = torch.Generator().manual_seed(3)
        ids = torch.randint(3, tiny.TOKENS, (self.count, self.length), generator=draw)[index]
        mask = torch.ones_like(ids)
        mask[ids[:, 0] % 3 == 0, 7:] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        if self.model.config.is_encoder_decoder:
            given |= {"decoder_input_ids": ids.flip(1)[:, :6]}
        return Batch(given, ids, index)


def saved(name, folder):
    """The directory of a tiny model, and the model."""
    model = tiny.build(name)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder / name)
    return folder / name, model


def pass_of(model, stage, work, **more):
    """What a runner is given for a stage of a model, on random texts."""
    view = families.view(model)
    given = {"number": 0, "device": torch.device("cpu"), "width": view.hidden_size, "layers": view.layers, **more}
    return Pass(stage=stage, examples=Texts(model), work=work, **given)
