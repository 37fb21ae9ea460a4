"""Pooling, activations and sums of the raw backend: the choices, the parts of a call, each kernel on the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import arrays, dispatch
from fastconv.backends.raw import args, device, elementwise, pool
from fastconv.backends.raw.launching import parts
from fastconv.backends.reference import divisors_of
from fastconv.problem import ACTIVATIONS, ActivationProblem, PoolProblem
from fastconv.testing import cases, compare, emulator, selftest

needs_compiler = pytest.mark.skipif(emulator.unavailable() is not None, reason="the emulator needs g++")
H100 = device.Properties("H100", "sm_90a", 132, 227 << 10, 50 << 20)


@pytest.fixture(scope="module")
def gpu():
    """An emulated GPU; what these tests launch is recorded by kernel."""
    emulated = emulator.EmulatedDevice()
    emulated.prepare([*pool.instances(), *elementwise.instances()])
    return emulated


@pytest.fixture
def launched(gpu, monkeypatch):
    """The names of the kernels that run inside a test, on the emulated GPU."""
    names: list[str] = []
    launch = type(gpu).launch

    def record(self, function, *rest):
        names.append(function.name)
        launch(self, function, *rest)

    monkeypatch.setattr(type(gpu), "launch", record)
    with emulator.using(gpu):
        yield names


# ---------------------------------------------------------------- pure functions


def test_divisors_divide():
    """The quotient by multiplication, as the kernels compute it, at the borders of both forms."""
    for value in (1, 2, 3, 7, 641, 2**16 - 1, 2**31 - 1, 2**31, 2**31 + 1, 2**40 + 9):
        multiplier, _, small, shift = args.divisor(value)
        assert multiplier < 2**64
        assert small < 2**32
        for n in {0, 1, value - 1, value, 5 * value - 1, 5 * value, 2**31 - 1, 2**31, 2**62 - 1}:
            if n < 2**31:
                assert (2 * n * small >> 32) >> (shift & 31) == n // value
            if n < 2**62:
                assert (2 * n * multiplier >> 64) >> shift == n // value


def test_parts_cover_all_planes_and_keep_the_limit(monkeypatch):
    monkeypatch.setenv("FASTCONV_WORKSPACE_MB", "1")
    for N, C, plane in ((3, 5, 2**20), (7, 40, 2**15), (9, 3, 2**10), (0, 4, 8), (2, 3, 0)):
        seen = np.zeros((N, C), int)
        for n, c in parts(N, C, plane):
            seen[n, c] += 1
            assert seen[n, c].size * plane <= 2**20
        assert (seen == 1).all()
    with pytest.raises(fastconv.BackendError, match="FASTCONV_WORKSPACE_MB"):
        parts(1, 1, 2**20 + 1)


def test_choices():
    case = PoolProblem.parse("pool2d n=8 c=64 size=112 ksize=3 stride=2 pad=1 dtype=float16 layout=NHWC")
    plane = replace(case, layout="NCHW")
    assert pool.choose("maxpool_fprop", case, H100)[:2] == ("direct", {"lanes": 8})
    assert pool.choose("maxpool_indices", plane, H100)[:2] == ("strips", {"lanes": 1})
    assert pool.choose("maxpool_fprop", plane, H100, "off")[0] == "direct"
    assert pool.choose("maxpool_dgrad", case, H100)[:2] == ("blocks", {"lanes": 8})
    assert pool.choose("maxpool_dgrad", replace(case, dtype="float64"), H100)[:2] == ("direct", {"lanes": 1})
    whole = PoolProblem.parse("pool2d n=8 c=64 size=56 bins=1")
    assert pool.choose("avgpool_fprop", whole, H100)[0] == "wide"
    assert pool.choose("avgpool_fprop", nhwc(whole), H100)[0] == "direct"
    assert pool.choose("maxunpool_fprop", case, H100)[0] == "index"
    assert elementwise.choose("bias_grad", case, H100)[0] == "two_stages"
    assert pool.choose("maxpool_places", plane, H100)[:2] == ("strips", {"lanes": 1})
    assert pool.choose("maxpool_places_dgrad", case, H100)[:2] == ("blocks", {"lanes": 8})
    assert pool.plane_bytes("maxpool_dgrad", case) == 56 * 56  # a byte per window
    assert pool.plane_bytes("maxpool_places_dgrad", case) == 0
    assert pool.plane_bytes("maxpool_fprop", case) == 0
    wide = PoolProblem.parse("pool2d n=1 c=1 size=40 ksize=16 stride=1")
    assert pool.plane_bytes("maxpool_dgrad", wide) == 8 * 25 * 25  # 256 taps are more than a byte numbers


@pytest.mark.parametrize("name", [name for name in cases.POOL if name != "empty_batch"])
@pytest.mark.parametrize("padded", [True, False])
def test_a_common_count_is_that_of_every_window(name, padded):
    """Where an average has one divisor, it is what the reference divides every window by."""
    problem = cases.pool(name, divisor=None, count_include_pad=padded)
    counts = set(divisors_of(problem).reshape(-1).tolist())
    common = args.common_count(problem)
    assert counts == {common} if common else True
    if name in ("halve", "overlap", "stride_skips", "whole", "global", "adaptive_same"):
        assert common


@pytest.mark.parametrize("module", [pool, elementwise])
def test_every_instance_is_made_once(module):
    shipped = list(module.instances())
    assert len(shipped) == len(set(shipped))
    for instance in shipped:
        assert module.claims(instance)["registers"] <= 128


# ---------------------------------------------------------------- kernels


def nhwc(problem: PoolProblem) -> PoolProblem:
    return replace(problem, layout="NHWC")


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_channels_move_in_16_bytes(launched, dtype):
    """In NHWC of 32 channels the wide kernels run, of 35 the others; both are right."""
    lanes = pool.lanes_of(dtype)
    wide = nhwc(PoolProblem.parse(f"pool2d n=2 c=32 size=9x8 ksize=3 stride=2 pad=1 dtype={dtype}"))
    for problem, width in ((wide, lanes), (replace(wide, C=35), 1)):
        launched.clear()
        selftest.check_maxpool("raw", "max_pool", problem)
        selftest.check_avgpool("raw", "avg_pool", problem)
        widths = {name.rpartition(", ")[2] for name in launched if "check" not in name and "int64_t" not in name}
        assert widths == {f"{width}>"}, launched


STEPPED = [
    "pool2d n=2 c=3 size=13x11 ksize=3 stride=2", "pool2d n=2 c=2 size=12x14 ksize=3 stride=2 pad=1",
    "pool2d n=1 c=2 size=9x10 ksize=3 stride=2 pad=2:0x1:2 rounding=ceil", "pool2d n=2 c=3 size=9x7 ksize=2",
    "pool2d n=1 c=2 size=8x9 ksize=2 pad=1:0x0:1", "pool3d n=1 c=2 size=3x9x8 ksize=1x3x3 stride=1x2x2 pad=0x1x1",
    "pool2d n=1 c=1 size=2x1 ksize=3 stride=2 pad=2",
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("case", STEPPED)
def test_strips_and_blocks(launched, case, dtype):
    """Windows that step by 2, in planes and along channels: at every edge, with every padding."""
    problem = replace(PoolProblem.parse(case), dtype=dtype)
    selftest.check_maxpool("raw", "max_pool", problem)
    shape = f"{pool.STORED[dtype]}, {problem.window.ksize[-1]}, 2"
    assert f"maxpool_fprop_strips<{shape}>" in launched
    assert f"maxpool_dgrad_blocks<{shape}, 1>" in launched
    launched.clear()
    selftest.check_maxpool("raw", "max_pool", replace(problem, C=16, layout="NHWC"))
    assert f"maxpool_dgrad_blocks<{shape}, {pool.lanes_of(dtype)}>" in launched
    assert not [name for name in launched if "strips" in name]


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "case", ["size=9x11 bins=1", "size=23x19 bins=2x3", "size=9x10 ksize=8 stride=3 pad=4:3x2:4 dilation=1"]
)
def test_a_warp_for_a_wide_window(launched, case, dtype):
    """Ties and NaNs: the first of them, whichever lanes meet them; at edges and with uneven bins too."""
    problem = PoolProblem.parse(f"pool2d n=2 c=3 {case} dtype={dtype}")
    selftest.check_maxpool("raw", "max_pool", problem)
    selftest.check_avgpool("raw", "avg_pool", problem)
    selftest.check_avgpool("raw", "avg_pool", replace(problem, count_include_pad=False))
    x = cases.pool_integers(problem, "x").reshape(problem.shape("x"))
    x[:, 0] = np.nan
    x[:, 1, 3:5, 2:6] = np.nan
    x[:, 2] = -np.inf
    results = [cases.pool_call("max", problem, x, return_indices=True, backend=name) for name in ("raw", "reference")]
    for actual, expected in zip(*results, strict=True):
        compare.equal(actual, expected, str(problem))
    assert {f"{kind}pool_fprop_wide<{pool.STORED[dtype]}>" for kind in ("max", "avg")} <= set(launched)


@needs_compiler
def test_bytes_move_in_16_bytes(launched):
    problem = nhwc(PoolProblem.parse("pool2d n=1 c=32 size=7x8 ksize=3 stride=2 pad=1 dtype=uint8"))
    x = cases.pool_integers(problem, "x")
    actual, expected = (cases.pool_call("max", problem, x, backend=name) for name in ("raw", "reference"))
    compare.equal(actual, expected, str(problem))
    assert launched == ["maxpool_fprop<uint8_t, 16>"]


@needs_compiler
@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "lp_pool", "max_unpool", "bias_grad"])
@pytest.mark.parametrize("name", ["overlap", "nhwc", "pool3d"])
def test_any_strides(launched, op, name):
    """Transposed, reversed and sliced arrays, in and out."""
    problem = cases.pool(name)
    x = cases.pool_integers(problem, "x")
    spread = np.full([2 * n for n in x.shape], np.nan, x.dtype)[tuple(slice(None, None, -2) for _ in x.shape)]
    spread[...] = x
    call = {
        "max_pool": lambda x, **o: cases.pool_call("max", problem, x, **o),
        "avg_pool": lambda x, **o: cases.pool_call("avg", problem, x, **o),
        "lp_pool": lambda x, **o: cases.pool_call("lp", problem, x, **o),
        "max_unpool": lambda x, **o: unpooled(problem, x, **o),
        "bias_grad": lambda x, **o: fastconv.bias_grad(x, layout=problem.layout, **o),
    }[op]
    expected = call(x, backend="reference")
    wide = np.full([3 * n for n in expected.shape], np.nan, x.dtype)
    out = wide[tuple(slice(1, None, 3) for _ in expected.shape)]
    call(spread, backend="raw", out=out)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert np.isnan(wide).sum() == wide.size - out.size  # nothing else was written


def unpooled(problem: PoolProblem, x: np.ndarray, **options) -> np.ndarray:
    y, indices = cases.pool_call("max", problem, x, return_indices=True, backend="reference")
    function = getattr(fastconv, f"max_unpool{problem.ndim}d")
    window = problem.window
    return function(
        y[...], np.flip(np.flip(indices).copy()), window.ksize, window.stride, output_size=problem.size,
        layout=problem.layout, **options,
    )  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("op", ["max", "lp", "unpool"])
def test_in_parts(launched, op, monkeypatch):
    """A workspace of 1 MiB for gradients that need more: the same result, in several launches."""
    problem = PoolProblem.parse("pool2d n=3 c=33 size=67x65 ksize=2 stride=1")
    x = cases.pool_integers(problem, "x")
    monkeypatch.setenv("FASTCONV_WORKSPACE_MB", "1")
    assert pool.plane_bytes("lppool_dgrad", problem) * 99 > 2**20
    if op == "unpool":
        results = [unpooled(problem, x, backend=name) for name in ("raw", "cpu")]
        assert len([name for name in launched if "claim" in name]) > 1
    else:
        dy = cases.pool_integers(problem, "y", seed=1)
        gradients = [cases.pool_call(op, problem, x, vjp=True, backend=name)[1] for name in ("raw", "cpu")]
        launched.clear()
        results = [pullback(dy) for pullback in gradients]
        assert op == "max" or len(launched) > 2
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


@needs_compiler
def test_windows_of_many_taps_note_offsets(launched):
    """A window of 256 taps and more has no tap number in a byte."""
    for problem in (
        PoolProblem.parse("pool2d n=1 c=3 size=19x18 ksize=16 stride=1"),
        nhwc(PoolProblem.parse("pool2d n=1 c=3 size=18x21 bins=1")),
    ):
        launched.clear()
        selftest.check_maxpool("raw", "max_pool", problem)
        assert "maxpool_dgrad<float, int64_t, 1>" in launched
        assert "maxpool_dgrad_blocks" not in "".join(launched)
        assert "maxpool_dgrad<float, uint8_t, 1>" not in launched


@needs_compiler
@pytest.mark.parametrize("index", [-2, -(2**60), 48, 2**40, 7])
def test_a_wrong_index_is_refused_before_anything_is_written(launched, index):
    """7 is a cell of the extent, and none of the window's: wrong for the gradient only."""
    problem = PoolProblem.parse("pool2d n=2 c=3 size=8x6 ksize=2")
    x = cases.pool_integers(problem, "x")
    y, indices = cases.pool_call("max", problem, x, return_indices=True, backend="reference")
    indices[1, 2, 3, 1] = index
    out = selftest.poisoned(x.shape, x.dtype)
    with pytest.raises(fastconv.ShapeError, match=str(index)):
        selftest.max_dgrad(problem, y, x, "raw", indices=indices, out=out)
    if index != 7:
        with pytest.raises(fastconv.ShapeError, match=str(index)):
            fastconv.max_unpool2d(y, indices, 2, output_size=problem.size, backend="raw", out=out)
    assert np.isnan(out).all()


@needs_compiler
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_indices_of_any_integer_dtype(launched, dtype):
    problem = PoolProblem.parse("pool2d n=2 c=3 size=8x6 ksize=2")
    x = cases.pool_integers(problem, "x")
    y, indices = cases.pool_call("max", problem, x, return_indices=True, backend="reference")
    expected = selftest.max_dgrad(problem, y, x, "reference")
    actual = selftest.max_dgrad(problem, y, x, "raw", indices=indices.astype(dtype))
    compare.equal(actual, expected, dtype)


@needs_compiler
def test_the_last_of_several_stays(launched):
    """All indices are one cell: of all outputs of a plane, unpooling keeps the last, and only that has a gradient."""
    y = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    indices = np.full(y.shape, 5)
    x, pullback = fastconv.max_unpool2d_vjp(y, indices, 2, backend="raw")
    expected = np.zeros((2, 3, 16), np.float32)
    expected[..., 5] = y[:, :, 1, 1]
    assert np.array_equal(x, expected.reshape(2, 3, 4, 4))
    gradient = pullback(np.full(x.shape, 2.0, np.float32))
    assert np.array_equal(gradient, np.broadcast_to([[0, 0], [0, 2]], y.shape))


@needs_compiler
@pytest.mark.parametrize("kind", ["max", "avg", "lp"])
def test_any_order_of_threads(kind, monkeypatch):
    """Shuffled schedules give the same bits."""
    problem = cases.pool("padded", dtype="float16")
    x, dy = cases.pool_floats(problem, "x"), cases.pool_floats(problem, "y", seed=1)
    results = []
    for seed in (None, 1, 2):
        with emulator.emulated_gpu(seed=seed):
            y, pullback = cases.pool_call(kind, problem, x, vjp=True, backend="raw")
            results.append((y, pullback(dy), fastconv.bias_grad(x, backend="raw")))
    for later in results[1:]:
        for first, second in zip(results[0], later, strict=True):
            compare.same_bits(first, second, kind)


# ---------------------------------------------------------------- elementwise


def elementwise_call(op: str, activation: str, views: list[np.ndarray], out: np.ndarray, backend: str) -> np.ndarray:
    problem = ActivationProblem(activation, out.shape, arrays.name_of(out.dtype))
    return dispatch.run(op, problem, arrays.Operands(tuple(views), "numpy", None), out, backend)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", ["activation_fprop", "activation_dgrad"])
def test_activations(launched, op, activation, dtype):
    """One run of memory with a rest behind its 16-byte pieces, views with strides, and limits at the infinities."""
    kind, rng = cases.dtype_of(dtype), np.random.default_rng(3)
    values = np.concatenate([rng.standard_normal(1000) * 4, [np.inf, -np.inf, np.nan, 0.0, -0.0, 6.0, -88.0]])
    saved, dy = values.astype(kind), rng.standard_normal(values.size).astype(kind)
    if op == "activation_dgrad" and activation in ("sigmoid", "tanh"):
        saved = np.tanh(values).astype(kind)  # an output
    flat = [saved] if op == "activation_fprop" else [dy, saved]
    strided = [np.repeat(view, 3)[::-3].reshape(19, 53).T for view in flat]
    for views in (flat, strided):
        poison = [np.full(views[0].shape, 77, kind) for _ in range(2)]
        actual = elementwise_call(op, activation, views, poison[0], "raw")
        wide = [view.astype(np.float64) for view in views]
        expected = elementwise_call(op, activation, wide, poison[1].astype(np.float64), "reference")
        actual, finite = actual.astype(np.float64), np.isfinite(expected)
        assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True)
        bound = 24 * (compare.ROUNDOFF[compare.ACCUMULATOR[dtype]]) + 1.01 * compare.ROUNDOFF[dtype]
        scale = 1 + np.abs(np.nan_to_num(views[-1].astype(np.float64)[finite], nan=0.0, posinf=0.0, neginf=0.0))
        assert (np.abs(actual[finite] - expected[finite]) <= bound * scale * (1 + np.abs(dy).max())).all()
    lanes = elementwise.lanes_of(dtype)
    assert {name.rpartition(", ")[2] for name in launched} == {f"{lanes}>", "1>"}


@needs_compiler
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bias_grad(launched, layout, dtype):
    """Whole and broken 16-byte pieces, along channels or pixels; exact on small integers."""
    for shape in ("n=5 c=40 size=9x16", "n=3 c=7 size=5x3", "n=1 c=1 size=3000x1"):
        problem = PoolProblem.parse(f"pool2d {shape} ksize=1 layout={layout}")
        selftest.check_bias_grad("raw", "bias_grad", str(replace(problem, dtype=dtype)))
    lanes = elementwise.lanes_of(dtype)
    assert {name.rpartition(", ")[2] for name in launched if "partial" in name} == {f"{lanes}>", "1>"}


@needs_compiler
def test_long_sums_keep_their_accuracy(launched):
    """Ones beyond 2**11 in float16, each part adding in float32."""
    dy = np.ones((1, 1, 300, 700), np.float16) / 64
    assert fastconv.bias_grad(dy, backend="raw") == np.float16(300 * 700 / 64)
