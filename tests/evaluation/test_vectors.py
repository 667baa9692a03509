"""What is stored of vectors, and how near its scores are to those of FP32."""

import numpy as np
import pytest

from abridged.core.errors import AbridgedError
from abridged.evaluation.vectors import Matrix, decode, encode, quantized, recall, shortened, top, unit


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


def test_vectors_are_cut_and_given_their_length_again(made):
    vectors = made[0][:50]
    found = shortened(vectors, 40)
    assert np.allclose(found, vectors[:, :40] / np.linalg.norm(vectors[:, :40], axis=1, keepdims=True))
    assert shortened(vectors, None) is shortened(vectors, 100) is vectors
    for width in (0, 101):
        with pytest.raises(AbridgedError, match="vectors of 100 numbers cannot be cut to"):
            shortened(vectors, width)


def test_recall_is_what_a_loop_finds(made):
    vectors = made[0][::20].copy()  # one window of each scene
    near = vectors @ vectors.T - 9 * np.eye(len(vectors))
    right = [set(np.argsort(-row)[:10].tolist()) for row in near]
    bits = 2.0 * (vectors > 0) - 1
    unlike = bits @ bits.T - 999 * np.eye(len(vectors))  # 100 less twice the unlike signs
    asked = np.unique(np.linspace(0, len(vectors) - 1, 500).astype(int))
    again = []
    for i in asked:
        some = top(unlike[i].astype(np.float32), 40)
        again.append(len(right[i] & set(some[np.argsort(-(bits[some] @ vectors[i]))[:10]].tolist())) / 10)
    found = recall(vectors, "binary")
    assert found["rescored"] == pytest.approx(np.mean(again), abs=0.02)  # of signs equally many are often unlike
    assert found["recall"] < found["rescored"] < recall(vectors, "int8")["recall"] < 1
    assert recall(vectors, "float16")["recall"] > 0.99
    assert recall(vectors[:1], "int8") == {"recall": 1.0}
    cut = shortened(vectors, 40)
    near = cut @ cut.T - 9 * np.eye(len(cut))
    shares = [len(right[i] & set(np.argsort(-near[i])[:10].tolist())) / 10 for i in asked]
    assert recall(vectors, "float32", 40)["recall"] == pytest.approx(np.mean(shares), abs=1e-3)


def test_bits_are_those_of_sentence_transformers(made):
    library = pytest.importorskip("sentence_transformers.util.quantization")
    vectors = made[0][:9]
    assert np.array_equal(quantized(vectors, "binary"), library.quantize_embeddings(vectors, "ubinary"))


@pytest.mark.parametrize(("kind", "dtype", "metric"), [("int8", "i8", "cos"), ("binary", "b1", "hamming")])
def test_usearch_finds_the_same_in_what_is_stored(made, kind, dtype, metric):
    library = pytest.importorskip("usearch.index")
    vectors = unit(made[0][::20, :96])
    stored = quantized(vectors, kind)
    index = library.Index(ndim=96, metric=metric, dtype=dtype)
    index.add(np.arange(len(stored)), stored)
    for i in range(0, 500, 50):
        found = index.search(stored[i], 10, exact=True)
        scores = Matrix([stored.tobytes()], 96, kind).scores(decode(stored[i].tobytes(), 96, kind)[0] if kind == "int8"
                                                             else vectors[i])  # fmt: skip
        assert found.keys[0] == i
        assert np.allclose(sorted(scores[found.keys.astype(int)]), sorted(scores[top(scores, 10)]), atol=2e-3)
