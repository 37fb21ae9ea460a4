"""Shape arithmetic: the course notes' formula and examples, paddings, roundings, networks, problem lines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastconv
from fastconv import ConvProblem, PoolProblem, ShapeError
from fastconv.testing import cases


def conv_shape(size, ksize, channels=1, filters=1, **arguments):
    x = np.zeros((1, channels, *size), np.float32)
    w = np.zeros((filters, channels // arguments.get("groups", 1), *ksize), np.float32)
    return fastconv.explain("conv2d", x, w, **arguments).problem.dims("y")


@pytest.mark.parametrize(
    ("size", "padding", "stride", "ksize", "out"),
    [((4, 4), 1, 1, (3, 3), (4, 4)), ((7, 7), 0, 2, (3, 3), (3, 3)), ((28, 31), 2, 3, (5, 5), (10, 11))],
)
def test_formula_of_the_notes(size, padding, stride, ksize, out):
    """OH = (H + 2P - FH)/S + 1 comes out whole for each of the notes' examples."""
    for rounding in ("floor", "exact"):
        assert conv_shape(size, ksize, padding=padding, stride=stride, rounding=rounding)[2:] == out
    pairs = [(padding, padding)] * 2
    assert conv_shape(size, ksize, padding=pairs, stride=stride)[2:] == out


def test_exact_rounding_shows_the_formula():
    with pytest.raises(ShapeError) as caught:
        conv_shape((28, 31), (5, 5), padding=2, stride=4, rounding="exact")
    assert "OH = (H + 2P - FH)/S + 1 = (28 + 2*2 - 5)/4 + 1 = 7.75" in str(caught.value)
    with pytest.raises(ShapeError, match=r"OW = .*= \(31 \+ \(1 \+ 0\) - 5\)/4 \+ 1 = 7.75"):
        conv_shape((29, 31), (5, 5), padding=[(0, 0), (1, 0)], stride=4, rounding="exact")
    assert conv_shape((28, 31), (5, 5), padding=2, stride=4)[2:] == (7, 8)


def test_signal_of_the_notes(backend):
    """x = [1,3,2,2,0,2,3], w = [-1,0,1]: networks correlate; a convolution flips."""
    x, w = np.array([1, 3, 2, 2, 0, 2, 3]), np.array([-1, 0, 1])
    assert fastconv.correlate(x, w, "valid", backend=backend).tolist() == [1, -1, -2, 0, 3]
    assert fastconv.convolve(x, w, "valid", backend=backend).tolist() == [-1, 1, 2, 0, -3]
    y = fastconv.conv1d(x[None, None].astype(np.float32), w[None, None].astype(np.float32), backend=backend)
    assert y.tolist() == [[[1, -1, -2, 0, 3]]]


# ---------------------------------------------------------------- the networks of the notes


def test_keras_model():
    """Filters 16, 32, 64 of 3x3, 4x4, 4x4: 160, 8,224 and 32,832 parameters; same, same, valid, then max 2."""
    x = np.zeros((2, 28, 28, 1), np.float32)
    counts = []
    for filters, ksize, padding in ((16, 3, "same"), (32, 4, "same"), (64, 4, "valid")):
        w = np.zeros((ksize, ksize, x.shape[-1], filters), np.float32)
        bias = np.zeros(filters, np.float32)
        counts.append(w.size + bias.size)
        x = fastconv.conv2d(x, w, bias, padding=padding, layout="NHWC", activation="relu")
    assert counts == [160, 8224, 32832]
    assert x.shape == (2, 25, 25, 64)
    assert fastconv.max_pool2d(x, 2, layout="NHWC").shape == (2, 12, 12, 64)


def test_alexnet():
    """227 -> 55 -> 27 -> 27 -> 13 -> 13 -> 13 -> 13 -> 6, groups over two GPUs."""
    shape, seen = (1, 3, 227, 227), []
    layers = [
        ("conv", 96, 11, 4, 0, 1), ("pool", 3, 2), ("conv", 256, 5, 1, 2, 2), ("pool", 3, 2), ("conv", 384, 3, 1, 1, 1),
        ("conv", 384, 3, 1, 1, 2), ("conv", 256, 3, 1, 1, 2), ("pool", 3, 2),
    ]  # fmt: skip
    for kind, *numbers in layers:
        if kind == "conv":
            filters, ksize, stride, padding, groups = numbers
            arguments = {"stride": stride, "padding": padding, "groups": groups, "rounding": "exact"}
            shape = conv_shape(shape[2:], (ksize, ksize), shape[1], filters, **arguments)
        else:
            pooled = fastconv.explain("max_pool2d", np.zeros(shape, np.float32), *numbers, rounding="exact")
            shape = pooled.problem.dims("y")
        seen.append(shape[1:])
    assert [s[1] for s in seen] == [55, 27, 27, 13, 13, 13, 13, 6]
    assert seen[-1] == (256, 6, 6)


def test_vgg19():
    """Sixteen 3x3 convolutions keep the size, five poolings halve it: 224 -> 7."""
    shape = (1, 3, 224, 224)
    for repeats, filters in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(repeats):
            shape = conv_shape(shape[2:], (3, 3), shape[1], filters, padding=1, rounding="exact")
        pooled = fastconv.explain("max_pool2d", np.zeros(shape, np.float32), 2, rounding="exact")
        shape = pooled.problem.dims("y")
    assert shape == (1, 512, 7, 7)


def test_receptive_field_of_stacks(backend):
    """Two 3x3 see what one 5x5 sees (18 weights for 25), three see 7x7: one pixel spreads that far."""
    w = np.ones((1, 1, 3, 3), np.float32)
    x = np.zeros((1, 1, 9, 9), np.float32)
    x[0, 0, 4, 4] = 1
    for width in (3, 5, 7):
        x = fastconv.conv2d(x, w, padding=1, backend=backend)
        rows, cols = np.nonzero(x[0, 0])
        assert (np.ptp(rows) + 1, np.ptp(cols) + 1) == (width, width)


@pytest.mark.parametrize("stride", [1, 2])
def test_resnet_bottleneck(backend, stride):
    """256 -> 64 by 1x1, 3x3 on 64, back to 256 by 1x1; H(x) = F(x) + x keeps the shape at stride 1."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 256, 8, 8)).astype(np.float32)
    w1, w2, w3 = (np.full(s, 2.0**-6, np.float32) for s in ((64, 256, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1)))
    h = fastconv.conv2d(x, w1, activation="relu", backend=backend)
    h = fastconv.conv2d(h, w2, stride=stride, padding=1, activation="relu", backend=backend)
    y = fastconv.conv2d(h, w3, backend=backend)
    assert h.shape == (1, 64, 8 // stride, 8 // stride)
    assert y.shape == (1, 256, 8 // stride, 8 // stride)
    if stride == 1:
        assert (y + x).shape == x.shape


# ---------------------------------------------------------------- paddings


@pytest.mark.parametrize("size", [1, 4, 7, 10])
@pytest.mark.parametrize("ksize", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same(size, ksize, stride, dilation):
    """ceil(size/stride) outputs; the two words put the odd pixel on opposite ends."""
    pads = {}
    for word in ("same", "same_lower"):
        arguments = {"padding": word, "stride": stride, "dilation": dilation}
        x, w = np.zeros((1, 1, size)), np.zeros((1, 1, ksize))
        problem = fastconv.explain("conv1d", x, w, **arguments).problem
        assert problem.out == (-(-size // stride),)
        (pads[word],) = problem.window.pad
    low, high = pads["same"]
    assert high - low in (0, 1)
    assert pads["same_lower"] == (high, low)


@pytest.mark.parametrize(
    ("padding", "pads"),
    [
        (0, ((0, 0), (0, 0))), (2, ((2, 2), (2, 2))), ((1, 2), ((1, 1), (2, 2))), ([1, 2], ((1, 1), (2, 2))),
        (((1, 0), (2, 3)), ((1, 0), (2, 3))), ([(1, 0), 2], ((1, 0), (2, 2))), (np.int64(1), ((1, 1), (1, 1))),
        (np.array([1, 2]), ((1, 1), (2, 2))), (np.array([[1, 0], [2, 3]]), ((1, 0), (2, 3))),
        ("valid", ((0, 0), (0, 0))), ("full", ((2, 2), (4, 4))), ("same", ((1, 1), (2, 2))),
    ],
)  # fmt: skip
def test_every_form_of_padding(backend, padding, pads):
    """Each form means the same pairs, and gives what padding by hand gives."""
    rng = np.random.default_rng(1)
    x, w = rng.integers(-4, 5, (2, 2, 6, 8)).astype(np.float64), rng.integers(-4, 5, (3, 2, 3, 5)).astype(np.float64)
    assert fastconv.explain("conv2d", x, w, padding=padding).problem.window.pad == pads
    by_hand = fastconv.conv2d(np.pad(x, ((0, 0), (0, 0), *pads)), w, backend=backend)
    assert np.array_equal(fastconv.conv2d(x, w, padding=padding, backend=backend), by_hand)


def test_same_is_even_sided():
    """Even filters have an odd amount to pad: TensorFlow puts the odd pixel high, "same_lower" low."""
    x, w = np.zeros((1, 1, 5)), np.zeros((1, 1, 4))
    assert fastconv.explain("conv1d", x, w, padding="same").problem.window.pad == ((1, 2),)
    assert fastconv.explain("conv1d", x, w, padding="same_lower").problem.window.pad == ((2, 1),)


def test_full_meets_every_tap_equally(backend):
    """Under "full" every input element takes part as often as every other."""
    w = np.ones((1, 1, 3, 2))
    dy = np.ones(fastconv.conv2d(np.ones((1, 1, 4, 5)), w, padding="full", backend=backend).shape)
    dx = fastconv.conv2d_dgrad(dy, w, (1, 1, 4, 5), padding="full", backend=backend)
    assert (dx == 6).all()


def test_pool_padding_limits():
    """An int is at most half of the window, PyTorch's rule; a pair or a word up to the extent minus one."""
    x = np.zeros((1, 1, 6, 6))
    assert fastconv.max_pool2d(x, 3, padding=1).shape == (1, 1, 2, 2)
    assert fastconv.max_pool2d(x, 3, 1, padding=((2, 2), (2, 2))).shape == (1, 1, 8, 8)
    assert fastconv.max_pool2d(x, 3, 1, padding="full").shape == (1, 1, 8, 8)
    for padding in (2, (1, 2), ((3, 0), (0, 0))):
        with pytest.raises(ShapeError, match="at most"):
            fastconv.max_pool2d(x, 3, padding=padding)


# ---------------------------------------------------------------- windows, by counting them


def starts_by_hand(n, k, s, d, low, high, ceil):
    """The window starts in the padded input, one by one."""
    extent, padded = d * (k - 1) + 1, n + low + high
    starts = [start for start in range(0, padded, s) if start + extent <= padded]
    if ceil and starts[-1] + extent < padded and starts[-1] + s < n + low:
        starts.append(starts[-1] + s)
    return starts


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_outputs_are_the_windows_that_fit(rounding):
    for n, k, s, d in itertools.product((1, 2, 5, 8), (1, 2, 3), (1, 2, 3, 4), (1, 2)):
        for low, high in itertools.product(range(d * (k - 1) + 1), repeat=2):
            if n + low + high < d * (k - 1) + 1:
                continue
            text = f"pool1d n=1 c=1 size={n} ksize={k} stride={s} dilation={d} pad={low}:{high} rounding={rounding}"
            starts = starts_by_hand(n, k, s, d, low, high, rounding == "ceil")
            problem = PoolProblem.parse(text)
            assert problem.out == (len(starts),), text
            for start, (first, count) in zip(starts, problem.cells(0), strict=True):
                met = [start - low + t * d for t in range(k) if 0 <= start - low + t * d < n]
                assert [first + i * d for i in range(count)] == met, text


def test_ceil_drops_a_window_that_starts_in_the_high_padding():
    assert PoolProblem.parse("pool1d n=1 c=1 size=3 ksize=2 stride=2 pad=1 rounding=ceil").out == (2,)
    assert PoolProblem.parse("pool1d n=1 c=1 size=4 ksize=2 stride=2 pad=1:0 rounding=ceil").out == (3,)


@pytest.mark.parametrize(("n", "m"), list(itertools.product((1, 4, 7, 10), (1, 2, 3, 7, 12))))
def test_adaptive_bins(n, m):
    """Bin i of m covers floor(i*n/m) to ceil((i+1)*n/m)."""
    problem = PoolProblem.parse(f"pool1d n=1 c=1 size={n} bins={m}")
    expected = [(int(np.floor(i * n / m)), int(np.ceil((i + 1) * n / m))) for i in range(m)]
    assert [(first, first + count) for first, count in problem.cells(0)] == expected


# ---------------------------------------------------------------- problem lines


@pytest.mark.parametrize("text", [*cases.CONV.values(), *cases.CONV_MID.values()])
def test_conv_lines_parse_back(text):
    problem = ConvProblem.parse(text)
    assert ConvProblem.parse(str(problem)) == problem
    assert hash(ConvProblem.parse(str(problem))) == hash(problem)


@pytest.mark.parametrize("text", [*cases.POOL.values(), *cases.POOL_MID.values()])
def test_pool_lines_parse_back(text):
    problem = PoolProblem.parse(text)
    assert PoolProblem.parse(str(problem)) == problem


@pytest.mark.parametrize(
    "text",
    [
        "", "conv2d", "conv4d n=1 c=1 size=3 k=1 ksize=1", "conv2d n=x c=1 size=3 k=1 ksize=1",
        "conv2d n=1 c=1 size=3 k=1 ksize=", "conv2d n=1 c=1 size=3xx3 k=1 ksize=1", "conv2d n=1 c=1 size=3 k=1 ksize=9",
        "conv2d n=1 c=1 size=3 k=1 ksize=1 colour=red", "conv2d n=1 c=1 size=3 k=1 ksize=1 dtype=float31",
        "conv2d n=1 c=1 size=3 k=1 ksize=1 layout=CHWN", "conv2d n=1 c=1 size=3 k=1 ksize=1 groups=0",
        "conv2d n=1 c=1 size=3 k=1 ksize=1 batched=maybe", "conv2d n=-1 c=1 size=3 k=1 ksize=1",
        "conv2d n=1 c=1 size=3 k=1 ksize=1 weight_layout=IHWO", "conv2d n=1 c=1 size=3 k=1 ksize=1 bias=a",
    ],
)  # fmt: skip
def test_bad_lines(text):
    with pytest.raises(ShapeError):
        ConvProblem.parse(text)
    with pytest.raises(ShapeError):
        PoolProblem.parse(text.replace("conv", "pool").replace(" k=1", ""))
