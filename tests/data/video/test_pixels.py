"""Pixels are those of a picture library, squared and normalised."""

import numpy as np
import torch
from PIL import Image

from abridged.data.video.pixels import Squares


def test_pixels_are_those_of_a_picture_library():
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (2, 6, 8, 3), dtype=np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(one).resize((48, 32))) for one in small])
    found = Squares(16, [0.5, 0.4, 0.3], [0.25, 0.5, 1.0])(pictures)
    assert found.shape == (2, 3, 16, 16)
    levels = (
        found * torch.tensor([0.25, 0.5, 1]).view(1, 3, 1, 1) + torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    ) * 255
    right = np.stack([np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.BICUBIC)) for one in pictures])
    assert np.abs(levels.permute(0, 2, 3, 1).numpy() - right).max() < 2
    same = Squares(16, [0, 0, 0], [1, 1, 1])(right)
    assert torch.equal(same, torch.from_numpy(right).permute(0, 3, 1, 2) / 255)
