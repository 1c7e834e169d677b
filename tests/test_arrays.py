"""Arrays as arguments: many layouts of every public function, and what else can stand for an array.

Each layout gives the result of a plain array of the same numbers, to the bit, or a clear error.
"""

import array
import gc

import ml_dtypes
import numpy as np
import pytest
from compare import assert_same_bits, normals

import headwise as hw

sdpa = hw.scaled_dot_product_attention

# --- the layouts --------------------------------------------------------------------------------------------


def misaligned(x):
    """Return `x` at an address that is no multiple of its item size."""
    memory = np.zeros(x.nbytes + 1, dtype=np.uint8)
    moved = memory[1:].view(np.uint8)[: x.nbytes].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def read_only(x):
    """Return a copy that cannot be written."""
    x = x.copy()
    x.flags.writeable = False
    return x


def spread(x, step):
    """Return `x` as every `step`-th item of a wider last axis."""
    wide = np.zeros((*x.shape[:-1], x.shape[-1] * abs(step)), dtype=x.dtype)
    part = wide[..., ::step]
    part[...] = x
    return part


def in_a_record(x):
    """Return `x` as a field between bytes of other fields: strides that are no multiple of the item."""
    records = np.zeros(x.shape, dtype=[("a", "i1"), ("x", x.dtype), ("b", "i2")])
    records["x"] = x
    return records["x"]


def in_a_subclass(x):
    """Return `x` as an instance of a subclass of ndarray."""

    class Mine(np.ndarray):
        def __array_finalize__(self, other):
            pass

    return x.view(Mine)


def repeated(x):
    """Return `x` with an axis of stride 0 in front, then cut away again."""
    return np.broadcast_to(x, (3, *x.shape))[1]


class OnlyDlpack:
    """An object that speaks DLPack and nothing else."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


class OnlyArray:
    """An object whose only sign of being an array is `__array__`."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


LAYOUTS = {
    "fortran order": np.asfortranarray,
    "axes swapped": lambda x: np.ascontiguousarray(np.swapaxes(x, 0, -1)).swapaxes(0, -1),
    "last axis spread": lambda x: spread(x, 2),
    "last axis reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "first axis reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "last axis spread and reversed": lambda x: spread(x, -3),
    "rows apart": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "within a larger array": lambda x: np.pad(x, 1)[tuple(slice(1, -1) for _ in x.shape)],
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
    "in a record": in_a_record,
    "read-only": read_only,
    "broadcast": repeated,
    "subclass": in_a_subclass,
    "list": lambda x: x.tolist(),
    "DLPack": OnlyDlpack,
    "__array__": OnlyArray,
    "buffer": lambda x: memoryview(np.ascontiguousarray(x)),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Return a function that lays an array out in one of the ways."""
    return LAYOUTS[request.param]


# --- the functions ------------------------------------------------------------------------------------------

# (function of arrays only, shapes of the arrays); the last axes differ so that a mixed-up axis cannot pass
FUNCTIONS = {
    "attention": (sdpa, [(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)]),
    "attention with weights": (
        lambda q, k, v: sdpa(q, k, v, return_weights=True, return_lse=True),
        [(3, 5, 8), (3, 7, 8), (3, 7, 6)],
    ),
    "attention mask": (lambda m: sdpa(*QKV, m), [(2, 5, 7)]),
    "packed attention": (
        lambda q, k, v: hw.attention_varlen(q, k, v, [0, 2, 5], [0, 4, 7]),
        [(5, 4, 8), (7, 2, 8), (7, 2, 6)],
    ),
    "allowed_mask": (lambda m: hw.allowed_mask(5, 7, attn_mask=m), [(2, 5, 7)]),
    "linear": (hw.linear, [(3, 5, 8), (6, 8), (6,)]),
    "softmax": (hw.softmax, [(3, 5, 8)]),
    "softmax of an axis": (lambda x: hw.softmax(x, 1), [(3, 5, 8)]),
    "layer_norm": (hw.layer_norm, [(3, 5, 8), (8,), (8,)]),
    "rms_norm": (hw.rms_norm, [(3, 5, 8), (8,)]),
    "relu": (hw.relu, [(3, 5, 8)]),
    "gelu": (hw.gelu, [(3, 5, 8)]),
    "gelu tanh": (lambda x: hw.gelu(x, approximate="tanh"), [(3, 5, 8)]),
    "silu": (hw.silu, [(3, 5, 8)]),
    "rotary_embedding": (hw.rotary_embedding, [(3, 5, 8)]),
    "rotary_embedding with positions": (hw.rotary_embedding, [(3, 5, 8), (5,)]),
}
QKV = [np.random.default_rng(n).standard_normal(s).astype(np.float32) for n, s in
       enumerate([(2, 5, 8), (2, 7, 8), (2, 7, 6)])]  # fmt: skip


def as_tuple(answer):
    """Return results as a tuple, whether one or several."""
    return answer if isinstance(answer, tuple) else (answer,)


def assert_same_results(got, want):
    """Fail unless all results are the same to the bit, and plain fresh arrays."""
    for one, other in zip(as_tuple(got), as_tuple(want), strict=True):
        assert type(one) is np.ndarray
        assert one.flags.c_contiguous
        assert one.flags.aligned
        assert one.flags.writeable
        assert one.dtype.isnative
        if one.dtype == bool:
            np.testing.assert_array_equal(one, other)
        else:
            assert_same_bits(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts(rng, name, dtype, layout):
    function, shapes = FUNCTIONS[name]
    plain = [normals(rng, *s, dtype=dtype) for s in shapes]
    if (
        layout in (LAYOUTS["DLPack"], LAYOUTS["buffer"], LAYOUTS["byte-swapped"])
        and dtype is ml_dtypes.bfloat16
    ):
        pytest.skip("NumPy itself has no bfloat16 in this form")
    for place in range(len(plain)):
        arrays = list(plain)
        arrays[place] = layout(plain[place])
        # a list of numbers is float64
        wide = isinstance(arrays[place], list)
        same = [p.astype(np.float64) if wide and i == place else p for i, p in enumerate(plain)]
        before = np.array(arrays[place], copy=True) if not isinstance(arrays[place], OnlyDlpack) else None
        assert_same_results(function(*arrays), function(*same))
        if before is not None:
            np.testing.assert_array_equal(np.asarray(arrays[place]), before)  # never changed


@pytest.mark.parametrize("name", ["attention mask", "allowed_mask"])
def test_layouts_of_boolean_masks(rng, name, layout):
    function, shapes = FUNCTIONS[name]
    mask = rng.random(shapes[0]) < 0.7
    if layout is LAYOUTS["byte-swapped"]:
        pytest.skip("a byte has no order")
    assert_same_results(function(layout(mask)), function(mask))


@pytest.mark.parametrize("dtype", [bool, "int8", "int64", "uint16"])
def test_layouts_of_key_masks(rng, dtype, layout):
    mask = (rng.random((3, 9)) < 0.7).astype(dtype)
    given = layout(mask)
    want = hw.allowed_mask(2, 9, key_mask=mask.astype(bool))
    np.testing.assert_array_equal(hw.allowed_mask(2, 9, key_mask=given), want)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint64"])
def test_layouts_of_lengths(dtype, layout):
    lengths = np.array([9, 0, 4], dtype=dtype)
    want = hw.allowed_mask(2, 9, key_lengths=[9, 0, 4], is_causal=True, causal_offset=[9, 0, 4])
    got = hw.allowed_mask(2, 9, key_lengths=layout(lengths), is_causal=True, causal_offset=layout(lengths))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [bool, "int8", "uint8", "int32", "uint64"])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "mask" not in n])
def test_integers_count_as_float64(rng, name, dtype):
    function, shapes = FUNCTIONS[name]
    arrays = [np.abs(rng.integers(0, 9, s)).astype(dtype) for s in shapes]
    assert_same_results(function(*arrays), function(*(a.astype(np.float64) for a in arrays)))


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "object", "U3", "datetime64[s]", "V4",
                                   ml_dtypes.float8_e4m3fn, ml_dtypes.int4])  # fmt: skip
@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_dtypes_are_refused(name, dtype):
    function, shapes = FUNCTIONS[name]
    for place in range(len(shapes)):
        arrays = [np.ones(s, dtype=np.float32) for s in shapes]
        arrays[place] = np.zeros(shapes[place], dtype=dtype)
        with pytest.raises(hw.DTypeError, match=r"expected .* got dtype"):
            function(*arrays)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_arrays(name):
    function, shapes = FUNCTIONS[name]
    if name in ("attention mask", "packed attention", "allowed_mask"):
        pytest.skip("shapes that are given by the other arguments")
    arrays = [np.ones(s, dtype=np.float32) for s in shapes]
    arrays[0] = arrays[0][:, :, :0] if arrays[0].ndim == 4 else arrays[0][:, :0]
    if "positions" in name:
        arrays[1] = arrays[1][:0]
    for answer in as_tuple(function(*arrays)):
        assert answer.size == 0


@pytest.mark.parametrize("nothing", [None, object(), {}, {"a": 1}, "text", b"text"])
def test_what_is_no_array(nothing):
    with pytest.raises(TypeError, match="x: "):
        hw.relu(nothing)


def test_numbers_and_sequences():
    assert_same_bits(hw.relu(-2.5), np.float64(0.0))
    assert hw.relu(np.float32(3)).dtype == np.float32
    assert_same_bits(hw.relu(array.array("f", [-1.0, 2.0])), np.float32([0, 2]))
    assert_same_bits(hw.relu(range(-1, 2)), np.array([0.0, 0.0, 1.0]))
    masked = np.ma.masked_array([1.0, -1.0], mask=[True, False])  # np.asarray drops the mask
    assert_same_bits(hw.relu(masked), np.array([1.0, 0.0]))


def test_bytes_that_are_not_zero_are_true():
    odd = np.frombuffer(bytes([0, 2, 1, 255, 0]), dtype=bool)
    want = np.array([[False, True, True, True, False]])
    for key in ("attn_mask", "key_mask"):
        np.testing.assert_array_equal(hw.allowed_mask(1, 5, **{key: odd}), want)


def test_masks_below_the_range_of_float32_block_in_every_type():
    mask = np.array([0.0, -1e39, -3e38, -np.inf, 1e300, np.nan])
    np.testing.assert_array_equal(hw.allowed_mask(1, 6, attn_mask=mask)[0], [1, 0, 1, 0, 1, 1])
    for dtype in ("float32", "float64"):
        q, k, v = (np.zeros(s, dtype=dtype) for s in ((1, 4), (3, 4), (3, 4)))
        _, weights = sdpa(q, k, v, mask[:3], return_weights=True)
        np.testing.assert_array_equal(weights, [[1.0, 0.0, 0.0]])
        _, lows = sdpa(q, k, v, np.array([-1e39, -1e39, -1e39]), return_weights=True)
        assert not lows.any()


def test_results_outlive_their_inputs(rng):
    x = normals(rng, 1000, 64)
    out = hw.relu(x)
    want = np.maximum(x, 0)
    del x
    gc.collect()
    np.testing.assert_array_equal(out, want)
    out += 1  # the result is the caller's own
    other = hw.relu(want)
    out[:] = 5
    np.testing.assert_array_equal(other, want)


def test_one_array_for_all_arguments(rng):
    x = normals(rng, 3, 9, 8)
    x.flags.writeable = False
    assert_same_bits(sdpa(x, x, x), sdpa(x.copy(), x.copy(), x.copy()))


# --- out= ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_out(rng, dtype):
    q, k, v = (normals(rng, 2, 9, 8, dtype=dtype) for _ in range(3))
    out = np.full((2, 9, 8), 7, dtype=dtype)
    assert sdpa(q, k, v, out=out) is out
    assert_same_bits(out, sdpa(q, k, v))


def test_out_between_the_rows_of_an_input(rng):
    memory = normals(rng, 9, 8)
    keys, out = memory[::2], memory[1:2]  # their bounds overlap, their bytes do not
    q = normals(rng, 1, 8)
    want = sdpa(q, keys.copy(), keys.copy())
    assert sdpa(q, keys, keys, out=out) is out
    assert_same_bits(memory[1:2], want)


def test_out_that_overlaps_in_part(rng):
    memory = normals(rng, 20, 8)
    with pytest.raises(ValueError, match="out: shares memory"):
        sdpa(memory[:9], memory[:9].copy(), memory[:9].copy(), out=memory[8:17])
    bias = np.zeros((9, 9), dtype=np.float32)
    with pytest.raises(ValueError, match="out: shares memory"):
        sdpa(memory[:9], memory[:9], np.ones((9, 9), dtype=np.float32), bias, out=bias)


def test_out_is_checked_before_anything_is_written(rng):
    q = normals(rng, 5, 8)
    out = np.full((5, 8), 7, dtype=np.float32)
    with pytest.raises(ValueError, match="softcap"):
        sdpa(q, q, q, softcap=-1.0, out=out)
    assert (out == 7).all()
