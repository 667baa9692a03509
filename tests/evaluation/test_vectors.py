"""What is stored of vectors, and how near its scores are to those of FP32."""

import numpy as np
import pytest

from abridged.evaluation.vectors import Matrix, decode, encode, unit


@pytest.fixture(scope="module")
def made():
    """Windows of videos: neighbours are alike, as they are in files."""
    random = np.random.default_rng(0)
    scenes = np.repeat(random.normal(size=(500, 100)), 20, axis=0)
    return unit(scenes + random.normal(size=scenes.shape)), unit(scenes[::97] + random.normal(size=scenes[::97].shape))


@pytest.mark.parametrize(("kind", "error"), [("float16", 2e-4), ("int8", 6e-3)])
def test_scores_are_cosines(made, kind, error):
    vectors, queries = made
    blobs = [encode(some, kind) for some in np.split(vectors, [1, 777])]
    matrix = Matrix(blobs, 100, kind)
    assert matrix.values.nbytes == len(vectors) * 100 * (4 if kind == "float16" else 1)
    scores = matrix.scores(queries[0])
    assert scores.dtype == np.float32
    assert np.abs(scores - vectors @ queries[0]).max() < error
    assert np.allclose(scores[777:], decode(blobs[2], 100, kind) @ queries[0], atol=2e-4)


@pytest.mark.parametrize("width", [100, 64])
def test_scores_of_bits_are_by_unlike_signs(made, width):
    vectors, queries = unit(made[0][:, :width]), unit(made[1][:, :width])
    matrix = Matrix([encode(vectors, "binary")], width, "binary")
    assert matrix.values.nbytes == len(vectors) * 8 * -(-width // 64)
    unlike = ((vectors > 0) != (queries[3] > 0)).mean(axis=1)
    assert np.allclose(matrix.scores(queries[3]), np.cos(np.pi * unlike), atol=1e-5)


def test_signs_by_the_querys_values_are_nearer_to_the_order_of_cosines(made):
    vectors, queries = made
    matrix = Matrix([encode(vectors, "binary")], 100, "binary")
    some = np.arange(50, 2000)
    told = matrix.signs(queries[3], some)
    assert np.allclose(told, np.where(vectors[some] > 0, 1, -1) @ queries[3], atol=1e-4)
    right = vectors[some] @ queries[3]
    assert np.corrcoef(told, right)[0, 1] > np.corrcoef(matrix.scores(queries[3])[some], right)[0, 1]


def test_what_has_no_length_is_like_nothing():
    for kind in ("float16", "int8"):
        assert Matrix([encode(np.zeros((2, 8), np.float32), kind)], 8, kind).scores(unit(np.ones(8))).tolist() == [
            0,
            0,
        ]
    assert unit(np.zeros(3)).tolist() == [0, 0, 0]
