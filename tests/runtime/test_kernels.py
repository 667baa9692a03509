"""The compiled kernels against the torch reference: every code book, path, granularity, input, type and shape."""

import ctypes
import itertools
import mmap
import os
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from abridged.core.errors import AbridgedError
from abridged.runtime import kernels as module
from abridged.runtime import ops  # noqa: F401  (defines torch.ops.abridged)
from abridged.runtime.activations import INPUT_FUNCTIONS, Rounding
from abridged.runtime.backends import BACKENDS, Cpu, Reference, choose
from abridged.runtime.decoding.cache import in_8_bits
from abridged.runtime.kernels import PATHS, VARIABLE, Held, Kernels
from abridged.runtime.weight import PackedWeight
from abridged.storage.code_books import CODE_BOOKS, has_zero_points
from abridged.storage.matrix import Storage
from abridged.storage.packing import pack, pack_zeros
from products import KINDS, STORAGES, compare, packed_matrix

LIBRARY = module._library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels were not compiled")
RUNNING = [path for i, path in enumerate(PATHS) if LIBRARY is not None and LIBRARY.abridged_runs(i)]


#: (backend, path through the kernels), of all that this machine has.
WAYS = [("reference", None), *(("cpu", path) for path in RUNNING)]


@pytest.fixture(params=WAYS, ids=lambda way: way[1] or way[0])
def backend(request, monkeypatch):
    """A registered backend, with the kernels by one path."""
    name, path = request.param
    if path is not None:
        compiled = Kernels(LIBRARY, path)
        monkeypatch.setattr(module, "kernels", lambda: compiled)
    return next(backend for backend in BACKENDS if backend.name == name)


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_every_input(backend, book, packing):
    for kind, tokens in itertools.product(KINDS, (1, 3, 40)):
        compare(backend, tokens, 37, 200, book, packing, 37, kind)


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_every_granularity(backend, book, packing):
    groups = [] if packing == "base3" else [36 * 2, 36 * 4, 36 * 8]
    for scales, kind, tokens in itertools.product((1, 3, 36, *groups), ("dynamic 8", "asymmetric 8"), (2, 33)):
        compare(backend, tokens, 36, 512, book, packing, scales, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["static 8", "as they are"])
def test_types(backend, dtype, kind):
    for tokens in (1, 20):
        compare(backend, tokens, 50, 128, "ternary", "bits", 50, kind, dtype, bias=False)


@pytest.mark.parametrize("book", CODE_BOOKS)
def test_inputs_that_stay_as_they_are(backend, book):
    for tokens, (rows, columns) in itertools.product((1, 3, 40), ((37, 200), (1, 1), (3, 15), (9, 333))):
        compare(backend, tokens, rows, columns, book, "bits", rows, "as they are")
    for scales, tokens in itertools.product((1, 3, 36, 36 * 2, 36 * 32), (2, 33)):
        compare(backend, tokens, 36, 512, book, "bits", scales, "as they are")


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("book", CODE_BOOKS)
def test_floats_are_exact_where_numbers_are_whole(path, book):
    """Also of codes that begin at an odd place in memory, right up to its end, and of the matrix itself."""
    weight = packed_matrix(29, 320, book, "bits", 58)[0]._replace(scales=torch.ones(58))
    room = torch.cat([torch.zeros(1, dtype=torch.uint8), weight.codes])
    x = torch.randint(-127, 128, (7, 320), generator=torch.Generator().manual_seed(1)).float()
    kernels, held = Kernels(LIBRARY, path), Held.of(weight._replace(codes=room[1:]))
    dense = weight.dequantize()
    assert torch.equal(kernels.linear(held, x, None, None), x @ dense.T)
    for part in (slice(0, 29), slice(28, 29), slice(3, 20)):
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(kernels.dense(held, part, dtype), dense[part].to(dtype))


@pytest.mark.parametrize("path", RUNNING)
def test_what_is_not_a_number_stays_so_without_rounding(path):
    weight, _ = packed_matrix(5, 64, "int4", "bits", 10)
    x = torch.zeros(7, 64)
    x[3, 7] = float("nan")
    ours = Kernels(LIBRARY, path).linear(Held.of(weight), x, None, None)
    assert ours[3].isnan().all()
    assert ours[[0, 1, 2, 4, 5, 6]].eq(0).all()


def test_the_choice_among_backends(monkeypatch):
    weight, _ = packed_matrix(5, 64, "ternary", "bits", 5)
    x, ids, rounding = torch.zeros(1, 64), torch.tensor([1]), Rounding(8)
    compiled = Kernels(LIBRARY)
    monkeypatch.setattr(module, "kernels", lambda: compiled)
    assert isinstance(choose(weight, x, rounding), Cpu)
    assert isinstance(choose(weight, ids), Cpu)
    assert isinstance(choose(weight, x), Cpu)  # inputs that stay as they are
    assert isinstance(choose(packed_matrix(5, 65, "ternary", "base3", 5)[0], torch.zeros(1, 65)), Reference)
    assert isinstance(choose(packed_matrix(5, 64, "ternary", "bits", 5 * 8)[0], x), Reference)  # scales of 8 columns
    assert isinstance(choose(weight, x.double(), rounding), Reference)
    assert isinstance(choose(weight, x.to("meta"), rounding), Reference)
    monkeypatch.setattr(module, "kernels", lambda: None)
    assert isinstance(choose(weight, x, rounding), Reference)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", ["gelu_tanh", "gelu"])
def test_a_function_on_the_way(path, dtype, function):
    codes, one = pack(torch.eye(128, dtype=torch.int8), "int8", "bits"), torch.ones(1)
    identity = PackedWeight(codes, one, Storage(128, 128, "int8", "bits", 1))
    kernels, reference, held = Kernels(LIBRARY, path), Reference(), Held.of(identity)
    for low, high, step in ((-12, 0, 0.18 / 127), (-1, 1, 1 / 127), (-50, 100, 100 / 127)):
        x = torch.linspace(low, high, 40 * 128).view(40, 128).to(dtype)
        for tokens in (1, 40):
            given = (x[:tokens].contiguous(), None, Rounding(8, torch.tensor([step])), function)
            ours, expected = kernels.linear(held, *given).float(), reference.linear(identity, *given).float()
            wrong = (ours - expected).abs() > (1e-5 if dtype == torch.float32 else 2**-8) * expected.abs()
            assert wrong.float().mean() < 0.002  # values in the middle of two codes may go to either
            assert ((ours - expected).abs() < 1.02 * step + 2**-7 * expected.abs()).all()


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    ("heads", "key_heads", "length", "width"),
    [(12, 12, 300, 64), (8, 2, 17, 40), (3, 1, 1, 7), *((4, 2, 33, width) for width in (32, 80, 96, 128, 256))],
)
def test_attention_of_one_query(path, dtype, heads, key_heads, length, width):
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(2, heads, 1, width, generator=generator)
    room = torch.randn(2, 2, key_heads, length + 5, width, generator=generator)
    room = torch.stack([in_8_bits(one) for one in room]) if dtype == torch.int8 else room.to(dtype)
    keys, values = room[0][:, :, :length], room[1][:, :, :length]  # with room behind them, as in a cache
    ours = Kernels(LIBRARY, path).attend(query, keys, values, 0.3)
    groups = heads // key_heads
    k, v = (numbers_of(t).double().repeat_interleave(groups, dim=1) for t in (keys, values))
    exact = torch.softmax(query.double() @ k.transpose(-1, -2) * 0.3, dim=-1) @ v
    assert torch.allclose(ours.double(), exact[:, :, 0], atol=1e-5)


def numbers_of(cached):
    """What rows of a cache stand for: (…, d) of (…, 4 + d) where they are int8."""
    if cached.dtype != torch.int8:
        return cached
    return cached[..., :4].contiguous().view(torch.float32) * cached[..., 4:]


def test_keys_and_values_in_8_bits():
    x = torch.randn(2, 3, 5, 16) * 10.0 ** torch.arange(-3, 2)[:, None]
    x[0, 0, 0] = 0
    found = in_8_bits(x.bfloat16())
    assert found.dtype == torch.int8
    assert found.shape == (2, 3, 5, 20)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert bool(((numbers_of(found) - x.bfloat16().float()).abs() <= 0.51 * step).all())
    assert not numbers_of(found)[0, 0, 0].any()


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


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["query", "key", "all keys"])
@pytest.mark.parametrize("mask", ["none", "causal", "all but the first"])
def test_attention_to_what_is_not_finite_is_what_torch_makes_of_it(path, number, where, mask):
    """NaN stays NaN; an infinite score leaves nothing finite, one of minus infinity the others."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(1, 2, 40, 24, generator=generator) for _ in range(3))  # above 0: an infinity keeps its sign
    (q if where == "query" else k)[:, :, slice(None) if where == "all keys" else 20, 3] = number
    seen = torch.ones(1, 1, 40, 40).bool()
    if mask == "causal":
        seen = seen.tril()
    if mask == "all but the first":
        seen[..., 1:, 0] = False
    scores = (q.double() @ k.double().transpose(-1, -2) * 0.3).masked_fill(~seen, -torch.inf)
    exact = torch.softmax(scores, dim=-1) @ v.double()
    kernels = Kernels(LIBRARY, path)
    if mask == "causal":
        one = kernels.attend(q[:, :, 20:21], k[:, :, :21], v[:, :, :21], 0.3)
        assert torch.allclose(one.double(), exact[:, :, 20], atol=1e-5, equal_nan=True)
    many = kernels.attend_all(q, k, v, None if mask == "causal" else seen, mask == "causal", 0.3)
    if path != "portable":
        assert torch.allclose(many.double(), exact.transpose(1, 2), atol=1e-5, equal_nan=True)


def test_attention_that_the_kernels_do_not_know_is_not_served():
    attend, x = Kernels(LIBRARY).attend_all, torch.randn(2, 4, 9, 8)
    assert attend(x.bfloat16(), x.bfloat16(), x.bfloat16(), None, False, 1.0) is None
    assert attend(x, x.transpose(2, 3), x.transpose(2, 3), None, False, 1.0) is None
    assert attend(x, x, x[..., :4], None, False, 1.0) is None
    for mask in (torch.zeros(2, 1, 9, 9), torch.ones(2, 4, 9, 9).bool(), torch.ones(2, 1, 9, 12).bool()):
        assert attend(x, x, x, mask, False, 1.0) is None


def test_an_unknown_function_is_refused(backend):
    weight, bias = packed_matrix(5, 64, "ternary", "bits", 5)
    with pytest.raises(AbridgedError, match="no input function 'gelo'"):
        backend.linear(backend.prepare(weight), torch.zeros(1, 64), bias, Rounding(8), "gelo")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RUNNING), st.integers(1, 70), st.integers(1, 90), st.integers(1, 700), st.sampled_from(STORAGES),
    st.sampled_from([*KINDS, "as they are"]), st.booleans(), st.integers(0, 100),
)  # fmt: skip
def test_any_shape(path, tokens, rows, columns, storage, kind, per_row, seed):
    storage = ("ternary", "bits") if kind == "as they are" and storage[1] == "base3" else storage
    with pytest.MonkeyPatch.context() as patch:
        compiled = Kernels(LIBRARY, path)
        patch.setattr(module, "kernels", lambda: compiled)
        compare(Cpu(), tokens, rows, columns, *storage, rows if per_row else 1, kind, seed=seed)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_integers_are_exact(path, book, packing):
    """With scales of 1 and whole inputs nothing is rounded, so that sums must agree to the last unit."""
    for tokens in (1, 17):
        weight = packed_matrix(29, 333, book, packing, 29)[0]._replace(scales=torch.ones(29))
        x = torch.randint(-127, 128, (tokens, 333), generator=torch.Generator().manual_seed(1)).float()
        ours = Kernels(LIBRARY, path).linear(Held.of(weight), x, None, Rounding(8, torch.ones(1)))
        assert torch.equal(ours, x @ weight.dequantize().T)


@pytest.mark.parametrize("path", RUNNING)
@pytest.mark.parametrize(("book", "packing"), STORAGES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_fit(path, book, packing, sign):
    """Everywhere the largest level, and tokens at an end of their range: 16 bits hold few such products."""
    rows, columns = 33, 3_000
    largest = max(CODE_BOOKS[book])
    codes = pack(torch.full((rows, columns), largest), book, packing)
    zeros = pack_zeros(torch.zeros(1), book, packing) if has_zero_points(book) else None
    weight = PackedWeight(codes, torch.ones(1), Storage(rows, columns, book, packing, 1), zeros)
    # down to -128 in signed bytes
    asymmetric = Rounding(8, torch.tensor([1 / 128]), torch.tensor([128], dtype=torch.int32))
    for rounding, tokens in itertools.product((Rounding(8), asymmetric), (1, 40)):
        x = torch.full((tokens, columns), sign)
        y = Kernels(LIBRARY, path).linear(Held.of(weight), x, None, rounding)
        level = sign if rounding.scale is None else max(-128, min(127, sign * 128)) / 128
        torch.testing.assert_close(y, torch.full((tokens, rows), largest * columns * level))


@pytest.mark.skipif(sys.platform == "win32", reason="pages are guarded by mprotect")
@pytest.mark.parametrize("path", RUNNING)
def test_nothing_behind_the_last_row_is_read(path):
    """Rows end within a vector, and the codes of the last one where the memory does that a process may read."""
    weight, _ = packed_matrix(37, 90, "ternary", "bits", 37)
    size = weight.codes.numel()
    room = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    bytes_ = torch.frombuffer(room, dtype=torch.uint8)
    codes = bytes_[mmap.PAGESIZE - size : mmap.PAGESIZE].copy_(weight.codes)
    behind = ctypes.c_void_p(bytes_.data_ptr() + mmap.PAGESIZE)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(behind, mmap.PAGESIZE, 0) == 0
    try:
        for tokens in (1, 3, 40):
            x = torch.randn(tokens, 90, generator=torch.Generator().manual_seed(0))
            kernels = Kernels(LIBRARY, path)
            there = kernels.linear(Held.of(weight._replace(codes=codes)), x, None, Rounding(8))
            assert torch.equal(there, kernels.linear(Held.of(weight), x, None, Rounding(8)))
    finally:
        protect(behind, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads):
    weight, bias = packed_matrix(1000, 768, "ternary", "bits", 1000)
    kernels, held = Kernels(LIBRARY), Held.of(weight)
    before = torch.get_num_threads()
    try:
        for tokens in (1, 64):
            x = torch.randn(tokens, 768, generator=torch.Generator().manual_seed(0))
            torch.set_num_threads(1)
            alone = kernels.linear(held, x, bias, Rounding(8))
            torch.set_num_threads(threads)
            assert torch.equal(kernels.linear(held, x, bias, Rounding(8)), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("path", RUNNING)
def test_what_is_not_a_number_stays_so(path):
    weight, _ = packed_matrix(5, 64, "ternary", "bits", 5)
    x = torch.zeros(14, 64)
    x[3, 7] = float("nan")
    ours = Kernels(LIBRARY, path).linear(Held.of(weight), x, None, Rounding(8, torch.ones(1)))
    assert ours[3].isnan().all()
    assert ours[:3].eq(0).all()
    assert ours[4:].eq(0).all()


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_embedding(backend, book, packing):
    for scales in (1, 40, 40 if packing == "base3" else 80):
        weight, _ = packed_matrix(40, 66, book, packing, scales)
        ids = torch.tensor([[0, 39, 7], [7, 1, 20]])
        assert backend.supports(weight, ids)
        handle = backend.prepare(weight)
        assert torch.equal(backend.embedding(handle, ids), weight.dequantize()[ids])
        assert torch.equal(backend.embedding(handle, ids.int()), weight.dequantize()[ids])
    for wrong in (40, -1):
        with pytest.raises((IndexError, RuntimeError)):
            backend.embedding(handle, torch.tensor([wrong]))


def test_no_tokens(backend):
    weight, bias = packed_matrix(5, 64, "ternary", "bits", 5)
    assert backend.linear(backend.prepare(weight), torch.zeros(0, 64), bias, Rounding(8)).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 63)}, "63 columns"),
        ({"x": torch.tensor(1.0)}, "0 columns"),
        ({"scales": torch.ones(3)}, "3 scales"),
        ({"scales": torch.ones(0)}, "0 scales"),
        ({"zeros": torch.zeros(2, dtype=torch.uint8)}, "no zero points"),
        ({"bias": torch.ones(4)}, "bias"),
        ({"codes": torch.zeros(79, dtype=torch.uint8)}, "80 bytes"),
        ({"codes": torch.zeros(80, dtype=torch.int8)}, "80 bytes"),
        ({"codes": torch.zeros(160, dtype=torch.uint8)[::2]}, "not contiguous"),
        ({"input_scale": torch.ones(2)}, "input's scale"),
        ({"input_scale": torch.ones(1).double()}, "input's scale"),
        ({"input_zero_point": torch.ones(1)}, "zero point"),
        ({"input_zero_point": torch.tensor([-(2**31)], dtype=torch.int32)}, "zero point is outside of its levels"),
        ({"input_zero_point": torch.tensor([256], dtype=torch.int32)}, "zero point is outside of its levels"),
        ({"input_bits": 16}, "16 bits"),
    ],
)
def test_sizes_are_checked_before_a_kernel_sees_them(change, words, monkeypatch):
    (codes, scales, storage, zeros), bias = packed_matrix(5, 64, "ternary", "bits", 5)
    arguments = {"x": torch.zeros(2, 64), "codes": codes, "scales": scales, "zeros": zeros, "bias": bias,
                 "input_bits": 8, "input_scale": torch.ones(1),
                 "input_zero_point": torch.zeros(1, dtype=torch.int32)}  # fmt: skip
    compiled = Kernels(LIBRARY)
    monkeypatch.setattr(module, "kernels", lambda: compiled)
    given = {**arguments, **change}
    with pytest.raises(AbridgedError, match=words):
        torch.ops.abridged.quantized_linear(*given.values(), "identity", storage.text)


def test_a_path_that_is_not_there(monkeypatch):
    with pytest.raises(AbridgedError, match="known are auto, reference, triton, portable"):
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
    (codes, scales, storage, zeros), bias = packed_matrix(5, 64, "ternary", "bits", 5)
    x, op = torch.randn(2, 64), torch.ops.abridged.quantized_linear.default
    for operands in (
        (bias, *Rounding(8)),
        (None, *Rounding(8, torch.ones(1), torch.zeros(1, dtype=torch.int32))),
    ):
        for function in INPUT_FUNCTIONS:
            torch.library.opcheck(op, (x, codes, scales, zeros, *operands, function, storage.text))


assert os.environ.get(VARIABLE, "auto")  # an empty value would be no path
