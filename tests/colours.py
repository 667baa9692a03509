"""Models of colours, which are quick, for an index."""

import numpy as np

from abridged.evaluation.vectors import unit

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "grey": (128, 128, 128)}


class Colours:
    """A frame is its mean colour, a text that of its words, a clip the mean of its frames."""

    width, frames, side = 3, 4, 16

    def __init__(self, name=None):
        self.looked_at = 0

    def embed_frames(self, frames):
        self.looked_at += len(frames)
        vectors = unit(frames.reshape(len(frames), -1, 3).mean(axis=1) - 60)
        return vectors, unit(vectors.mean(axis=0))

    def embed_text(self, text):
        words = [np.array(COLOURS[word]) for word in text.replace(",", "").split() if word in COLOURS]
        return unit(np.mean(words, axis=0) - 60)


class Pooled(Colours):
    def pool(self, vectors):
        return unit(vectors.mean(axis=0))
