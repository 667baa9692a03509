"""The compiled kernels against the torch reference: every code book, path, granularity, input, type and shape."""

import itertools
import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from abridged.checkpoint.code_books import CODE_BOOKS
from abridged.checkpoint.packing import pack
from abridged.errors import AbridgedError
from abridged.runtime import kernels as module
from abridged.runtime import ops
from abridged.runtime.kernels import PATHS, VARIABLE, Kernels

LIBRARY = module._library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels were not compiled")
STORAGES = [(book, "bits") for book in CODE_BOOKS] + [("ternary", "base3")]
RUNNING = [path for i, path in enumerate(PATHS) if LIBRARY is not None and LIBRARY.abridged_runs(i)]


def packed_matrix(rows, columns, book, packing, scales, seed=0):
    """(codes, scales, bias) of a random matrix."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor(CODE_BOOKS[book])
    drawn = levels[torch.randint(len(levels), (rows, columns), generator=generator)]
    scale = torch.rand(scales, generator=generator) + 0.1
    return pack(drawn, book, packing), scale, torch.randn(rows, generator=generator)


def inputs(kind):
    """(input scale, zero point, bits) of a kind of activation quantiser."""
    scale = torch.tensor([0.021])
    return {
        "dynamic 8": (None, None, 8),
        "dynamic 4": (None, None, 4),
        "static 8": (scale, None, 8),
        "static 4": (scale * 16, None, 4),
        "asymmetric 8": (scale, torch.tensor([9], dtype=torch.int32), 8),
        "asymmetric 4": (scale * 16, torch.tensor([3], dtype=torch.int32), 4),
    }[kind]


KINDS = ["dynamic 8", "dynamic 4", "static 8", "static 4", "asymmetric 8", "asymmetric 4"]


def compare(path, tokens, rows, columns, book, packing, scales, kind, dtype=torch.float32, bias=True, seed=0):
    """A kernel's answer must be the reference's in double precision, but for rounding."""
    storage = (rows, columns, book, packing)
    codes, scale, offset = packed_matrix(*storage, scales, seed)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    kernels = Kernels(LIBRARY, path)
    assert kernels.serves_linear(x, scales, *storage)
    offset = offset if bias else None
    ours = kernels.linear(x, codes, scale, offset, *inputs(kind), *storage)
    assert ours.dtype == dtype
    assert ours.shape == (tokens, rows)
    rounded = ops._quantized_linear(x.float(), codes, scale, None, *inputs(kind), *storage)  # for its error handling
    assert rounded.shape == ours.shape
    weight = ops.dequantize(codes, scale, *storage).double()
    input_scale, zero, bits = inputs(kind)
    levels = ops.level_range(bits, zero is None)
    q = ops.quantize_per_token(x.float(), levels[1]) if input_scale is None else ops.quantize_static(
        x.float(), input_scale, zero, *levels
    )  # fmt: skip
    exact = q.double() @ weight.T
    size = q.double().abs() @ weight.abs().T
    if bias:
        exact, size = exact + offset.double(), size + offset.double().abs()
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    error = (ours.double() - exact).abs()
    limit = tolerance * (size if dtype == torch.float32 else exact.abs()) + 1e-6 * size
    assert bool((error <= limit).all()), f"{(error / size).max():.2e}"


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_every_input(path, book, packing):
    for kind, tokens in itertools.product(KINDS, (1, 3, 40)):
        compare(path, tokens, 37, 200, book, packing, 37, kind)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_every_granularity(path, book, packing):
    groups = [] if packing == "base3" else [36 * 2, 36 * 4, 36 * 8]
    for scales, kind, tokens in itertools.product((1, 3, 36, *groups), ("dynamic 8", "asymmetric 8"), (2, 33)):
        compare(path, tokens, 36, 512, book, packing, scales, kind)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(path, dtype):
    for tokens in (1, 20):
        compare(path, tokens, 50, 128, "ternary", "bits", 50, "static 8", dtype, bias=False)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", ["gelu_tanh", "gelu"])
def test_a_function_on_the_way(path, dtype, function):
    storage = (128, 128, "int8", "bits")
    identity, one = pack(torch.eye(128, dtype=torch.int8), "int8", "bits"), torch.ones(1)
    kernels = Kernels(LIBRARY, path)
    for low, high, step in ((-12, 0, 0.18 / 127), (-1, 1, 1 / 127), (-50, 100, 100 / 127)):
        x = torch.linspace(low, high, 40 * 128).view(40, 128).to(dtype)
        for tokens in (1, 40):
            given = (x[:tokens].contiguous(), identity, one, None, torch.tensor([step]), None, 8, *storage, function)
            ours, expected = kernels.linear(*given).float(), ops._quantized_linear(*given).float()
            wrong = (ours - expected).abs() > (1e-5 if dtype == torch.float32 else 2**-8) * expected.abs()
            assert wrong.float().mean() < 0.002  # values in the middle of two codes may go to either
            assert ((ours - expected).abs() < 1.02 * step + 2**-7 * expected.abs()).all()


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads", "length", "width"), [(12, 12, 300, 64), (8, 2, 17, 40), (3, 1, 1, 7)])
def test_attention_of_one_query(path, dtype, heads, key_heads, length, width):
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(2, heads, 1, width, generator=generator)
    room = torch.randn(2, 2, key_heads, length + 5, width, generator=generator).to(dtype)
    keys, values = room[0][:, :, :length], room[1][:, :, :length]  # with room behind them, as in a cache
    ours = Kernels(LIBRARY, path).attend(query, keys, values, 0.3)
    groups = heads // key_heads
    k, v = (t.double().repeat_interleave(groups, dim=1) for t in (keys, values))
    exact = torch.softmax(query.double() @ k.transpose(-1, -2) * 0.3, dim=-1) @ v
    assert torch.allclose(ours.double(), exact[:, :, 0], atol=1e-5)


def test_attention_to_keys_in_another_order_is_not_served():
    keys = torch.randn(1, 2, 4, 8)
    assert Kernels(LIBRARY).attend(torch.randn(1, 2, 1, 8), keys.transpose(1, 2)[:, :2], keys, 1.0) is None
    assert Kernels(LIBRARY).attend(torch.randn(1, 2, 1, 8), keys.double(), keys.double(), 1.0) is None


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RUNNING), st.integers(1, 3), st.sampled_from([(1, 1), (4, 4), (6, 2)]), st.integers(1, 50),
    st.integers(1, 70), st.integers(1, 70), st.sampled_from(["none", "causal", "keys", "all"]), st.integers(0, 100),
)  # fmt: skip
def test_attention_of_many_queries(path, batch, heads, queries, length, width, mask, seed):
    generator = torch.Generator().manual_seed(seed)
    length = queries if mask == "causal" else length
    # (batch, T, heads, width) seen as (batch, heads, T, width), as models have them
    q, k, v = (
        torch.randn(batch, rows, number, width, generator=generator).transpose(1, 2)
        for rows, number in ((queries, heads[0]), (length, heads[1]), (length, heads[1]))
    )
    seen = {
        "none": None,
        "causal": torch.ones(queries, length).tril().bool().view(1, 1, queries, length),
        "keys": torch.rand(batch, 1, 1, length, generator=generator) < 0.7,
        "all": torch.rand(batch, 1, queries, length, generator=generator) < 0.7,
    }[mask]
    ours = Kernels(LIBRARY, path).attend_all(q, k, v, None if mask == "causal" else seen, mask == "causal", 0.3)
    if path == "portable":
        assert ours is None
        return
    k, v = (t.double().repeat_interleave(heads[0] // heads[1], dim=1) for t in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * 0.3
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    exact = torch.softmax(scores, dim=-1).nan_to_num() @ v  # a query that sees nothing gets 0
    assert ours.shape == (batch, queries, heads[0], width)
    assert torch.allclose(ours.double(), exact.transpose(1, 2), atol=1e-5)


def test_attention_that_the_kernels_do_not_know_is_not_served():
    attend, x = Kernels(LIBRARY).attend_all, torch.randn(2, 4, 9, 8)
    assert attend(x.bfloat16(), x.bfloat16(), x.bfloat16(), None, False, 1.0) is None
    assert attend(x, x.transpose(2, 3), x.transpose(2, 3), None, False, 1.0) is None
    assert attend(x, x, x[..., :4], None, False, 1.0) is None
    for mask in (torch.zeros(2, 1, 9, 9), torch.ones(2, 4, 9, 9).bool(), torch.ones(2, 1, 9, 12).bool()):
        assert attend(x, x, x, mask, False, 1.0) is None


def test_an_unknown_function_is_refused():
    codes, scale, bias = packed_matrix(5, 64, "ternary", "bits", 5)
    with pytest.raises(AbridgedError, match="no input function 'gelo'"):
        ops.quantized_linear(torch.zeros(1, 64), codes, scale, bias, None, None, 8, 5, 64, "ternary", "bits", "gelo")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RUNNING), st.integers(1, 70), st.integers(1, 90), st.integers(1, 700), st.sampled_from(STORAGES),
    st.sampled_from(KINDS), st.booleans(), st.integers(0, 100),
)  # fmt: skip
def test_any_shape(path, tokens, rows, columns, storage, kind, per_row, seed):
    compare(path, tokens, rows, columns, *storage, rows if per_row else 1, kind, seed=seed)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_integers_are_exact(path, book, packing):
    """With scales of 1 and whole inputs nothing is rounded, so that sums must agree to the last unit."""
    for tokens in (1, 17):
        storage = (29, 333, book, packing)
        codes, _, _ = packed_matrix(*storage, 29)
        x = torch.randint(-127, 128, (tokens, 333), generator=torch.Generator().manual_seed(1)).float()
        one = torch.ones(1)
        ours = Kernels(LIBRARY, path).linear(x, codes, torch.ones(29), None, one, None, 8, *storage)
        assert torch.equal(ours, x @ ops.dequantize(codes, torch.ones(29), *storage).T)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize(("book", "packing"), STORAGES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_fit(path, book, packing, sign):
    """Everywhere the largest level, and tokens at an end of their range: 16 bits hold few such products."""
    tokens, rows, columns = 40, 33, 3_000
    largest = max(CODE_BOOKS[book])
    codes = pack(torch.full((rows, columns), largest), book, packing)
    x = torch.full((tokens, columns), sign)
    asymmetric = torch.tensor([1 / 128]), torch.tensor([128], dtype=torch.int32), 8  # down to -128 in signed bytes
    for kind in ((None, None, 8), asymmetric):
        y = Kernels(LIBRARY, path).linear(x, codes, torch.ones(1), None, *kind, rows, columns, book, packing)
        level = sign if kind[0] is None else max(-128, min(127, sign * 128)) / 128
        torch.testing.assert_close(y, torch.full((tokens, rows), largest * columns * level))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads):
    storage = (1000, 768, "ternary", "bits")
    codes, scale, bias = packed_matrix(*storage, 1000)
    kernels = Kernels(LIBRARY)
    before = torch.get_num_threads()
    try:
        for tokens in (1, 64):
            x = torch.randn(tokens, 768, generator=torch.Generator().manual_seed(0))
            torch.set_num_threads(1)
            alone = kernels.linear(x, codes, scale, bias, None, None, 8, *storage)
            torch.set_num_threads(threads)
            assert torch.equal(kernels.linear(x, codes, scale, bias, None, None, 8, *storage), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("path", RUNNING)
def test_what_is_not_a_number_stays_so(path):
    storage = (5, 64, "ternary", "bits")
    codes, scale, _ = packed_matrix(*storage, 5)
    x = torch.zeros(14, 64)
    x[3, 7] = float("nan")
    ours = Kernels(LIBRARY, path).linear(x, codes, scale, None, torch.ones(1), None, 8, *storage)
    assert ours[3].isnan().all()
    assert ours[:3].eq(0).all()
    assert ours[4:].eq(0).all()


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_embedding(book, packing):
    for scales in (1, 40, 40 if packing == "base3" else 80):
        storage = (40, 66, book, packing)
        codes, scale, _ = packed_matrix(*storage, scales)
        ids = torch.tensor([[0, 39, 7], [7, 1, 20]])
        ours = Kernels(LIBRARY).embedding(ids, codes, scale, *storage)
        assert torch.equal(ours, ops._packed_embedding(ids, codes, scale, *storage))
    with pytest.raises(IndexError):
        Kernels(LIBRARY).embedding(torch.tensor([40]), codes, scale, *storage)
    with pytest.raises(IndexError):
        Kernels(LIBRARY).embedding(torch.tensor([-1]), codes, scale, *storage)


def test_no_tokens():
    storage = (5, 64, "ternary", "bits")
    codes, scale, bias = packed_matrix(*storage, 5)
    assert ops.quantized_linear(torch.zeros(0, 64), codes, scale, bias, None, None, 8, *storage).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 63)}, "63 columns"),
        ({"x": torch.tensor(1.0)}, "0 columns"),
        ({"scale": torch.ones(3)}, "3 scales"),
        ({"scale": torch.ones(0)}, "0 scales"),
        ({"bias": torch.ones(4)}, "bias"),
        ({"packed": torch.zeros(79, dtype=torch.uint8)}, "80 bytes"),
        ({"packed": torch.zeros(80, dtype=torch.int8)}, "80 bytes"),
        ({"input_scale": torch.ones(2)}, "input's scale"),
        ({"input_scale": torch.ones(1).double()}, "input's scale"),
        ({"input_zero_point": torch.ones(1)}, "zero point"),
        ({"input_bits": 16}, "16 bits"),
    ],
)
def test_sizes_are_checked_before_a_kernel_sees_them(change, words, monkeypatch):
    codes, scale, bias = packed_matrix(5, 64, "ternary", "bits", 5)
    arguments = {"x": torch.zeros(2, 64), "packed": codes, "scale": scale, "bias": bias, "input_scale": torch.ones(1),
                 "input_zero_point": torch.zeros(1, dtype=torch.int32), "input_bits": 8}  # fmt: skip
    monkeypatch.setattr(ops, "kernels", lambda: Kernels(LIBRARY))
    with pytest.raises(AbridgedError, match=words):
        ops.quantized_linear(*{**arguments, **change}.values(), 5, 64, "ternary", "bits")


def test_a_path_that_is_not_there(monkeypatch):
    with pytest.raises(AbridgedError, match="known are auto, reference, portable"):
        Kernels(LIBRARY, "sse9")
    monkeypatch.setattr(LIBRARY, "abridged_runs", lambda number: number == 0)
    with pytest.raises(AbridgedError, match="this processor has only portable"):
        Kernels(LIBRARY, "avx2")


def test_the_variable_chooses(monkeypatch):
    for path in RUNNING:
        monkeypatch.setenv(VARIABLE, path)
        module.kernels.cache_clear()
        assert module.kernels().path == path
    monkeypatch.setenv(VARIABLE, "reference")
    module.kernels.cache_clear()
    assert module.kernels() is None
    module.kernels.cache_clear()


def test_without_the_library_it_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(module, "_library", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    module.kernels.cache_clear()
    assert module.kernels() is None
    assert module.kernels() is None
    assert capsys.readouterr().err.count("slower reference") == 1
    monkeypatch.setenv(VARIABLE, "avx2")
    module.kernels.cache_clear()
    with pytest.raises(AbridgedError, match="without its compiled kernels"):
        module.kernels()
    module.kernels.cache_clear()


def test_fake_implementations():
    codes, scale, bias = packed_matrix(5, 64, "ternary", "bits", 5)
    for arguments in (
        (torch.randn(2, 64), codes, scale, bias, None, None, 8),
        (torch.randn(2, 64), codes, scale, None, torch.ones(1), torch.zeros(1, dtype=torch.int32), 8),
    ):
        for function in ops.INPUT_FUNCTIONS:
            torch.library.opcheck(ops.quantized_linear.default, (*arguments, 5, 64, "ternary", "bits", function))


assert os.environ.get(VARIABLE, "auto")  # an empty value would be no path
