import numpy as np
import pytest

from abridged.report.pictures import matrix_picture, token_picture


def test_histogram_counts_weights_in_units_of_their_own_clip():
    weight = np.array([[0.51, -0.51, 2.02, 0.0], [5.1, -5.1, 20.2, 0.0]], np.float32)
    levels = np.array([[0, 0, 1, 0], [0, 0, 1, 0]], np.int8)  # some levels; the picture takes them as they are
    picture = matrix_picture("m", weight, levels, np.array([1.0, 10.0]), (-1, 0, 1))
    assert picture.counts.sum() == pytest.approx(1)
    # the two rows are the same but for their scale: 0, ±0.51 and 2.02
    assert np.count_nonzero(picture.counts) == 4
    assert picture.counts[np.searchsorted(picture.edges, 2.02) - 1] == pytest.approx(0.25)
    assert picture.clipped == pytest.approx(0.25)
    assert picture.zeros == pytest.approx(0.75)
    assert picture.levels == [-1, 0, 1]
    assert picture.alpha[1] == pytest.approx(5.5)
    assert picture.granularity == "one scale a row"


def test_gamma_is_the_clip_over_the_mean_magnitude():
    weight = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    scale = 1.7 * np.abs(weight).mean() / 7
    picture = matrix_picture("m", weight, np.round(weight / scale).clip(-7, 7), np.array([scale]), range(-7, 8))
    assert picture.gamma == pytest.approx(1.7, rel=1e-5)
    assert picture.alpha[1] == pytest.approx(7 * scale)
    assert len(picture.levels) == 15
    assert picture.levels[-1] == pytest.approx(1)


def test_the_mean_is_taken_off_where_the_quantiser_does():
    weight = np.random.default_rng(0).normal(3.0, 1.0, (4, 64)).astype(np.float32)
    mean = weight.mean(1)
    scale = np.abs(weight - mean[:, None]).mean(1)
    picture = matrix_picture("m", weight, np.sign(weight - mean[:, None]), scale, (-1, 1), offset=mean)
    assert picture.gamma == pytest.approx(1, rel=1e-5)
    centre = (picture.edges[:-1] + picture.edges[1:]) / 2
    assert abs(float(centre @ picture.counts)) < 0.05
    assert picture.zeros is None


def test_far_weights_are_counted_in_the_last_bin():
    picture = matrix_picture("m", np.array([[100.0, -100.0]]), np.array([[1, -1]]), np.array([1.0]), (-1, 1))
    assert picture.counts[0] == picture.counts[-1] == 0.5


def test_sampling_a_large_matrix_is_close_to_counting_it_all():
    weight = np.random.default_rng(1).normal(size=(1000, 500)).astype(np.float32)
    scale = np.array([1.0])
    first, second = (matrix_picture("m", weight, np.round(weight.clip(-1, 1)), scale, (-1, 0, 1)) for _ in range(2))
    np.testing.assert_array_equal(first.counts, second.counts)
    assert first.clipped == pytest.approx((np.abs(weight) > 1).mean(), abs=0.005)
    assert first.zeros == pytest.approx((np.abs(weight) < 0.5).mean(), abs=0.005)


def states(tokens=40, width=8):
    return np.random.default_rng(2).normal(size=(tokens, width))


def test_a_copy_of_the_teacher_lies_on_the_teacher():
    teacher = states()
    picture = token_picture([str(i) for i in range(40)], {"teacher": ("teacher", teacher), "s": ("student", teacher)})
    np.testing.assert_allclose(picture.clouds[1].points, picture.clouds[0].points)
    assert picture.clouds[1].found == 1.0
    assert picture.clouds[1].to_teacher == pytest.approx(1)
    assert 0 < picture.explained < 1


def test_the_plane_is_that_of_the_teachers_principal_components():
    teacher = states()
    unit = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(unit.T))
    expected = (unit - unit.mean(0)) @ vectors[:, ::-1][:, :2]
    (cloud,) = token_picture(["t"] * 40, {"teacher": ("teacher", teacher)}).clouds
    np.testing.assert_allclose(np.abs(cloud.points), np.abs(expected), atol=1e-8)


def test_a_model_that_sees_one_token_everywhere_is_a_point():
    teacher = states()
    same = np.ones_like(teacher)
    labels = [str(i) for i in range(40)]
    cloud = token_picture(labels, {"teacher": ("teacher", teacher), "r": ("rounded", same)}).clouds[1]
    assert cloud.points.std(0).max() < 1e-12
    assert cloud.among == pytest.approx(1)
    assert cloud.found == pytest.approx(1 / 40)


def test_states_that_are_not_finite_do_not_end_the_report():
    teacher = states()
    broken = teacher.copy()
    broken[3] = np.nan
    picture = token_picture([str(i) for i in range(40)], {"t": ("teacher", teacher), "r": ("rounded", broken)})
    assert np.isfinite(picture.clouds[1].points).all()


def test_states_of_different_tokens_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        token_picture(["a"] * 40, {"teacher": ("teacher", states()), "s": ("student", states(39))})
