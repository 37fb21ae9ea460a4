"""Malformed calls: the documented class, the numbers in the message, at once, and alike on every backend."""

from __future__ import annotations

import time

import numpy as np
import pytest

import fastconv
from fastconv import BackendError, DTypeError, FastconvError, ShapeError

X = np.ones((2, 8, 14, 14), np.float32)
W = np.ones((16, 8, 3, 3), np.float32)
DY = np.ones((2, 16, 12, 12), np.float32)
IDX = np.zeros((2, 8, 7, 7), np.int64)
SEQ = np.ones(5)

#: What is wrong: (function, arguments, keyword arguments, error, words that the message must hold).
BAD = {
    # groups
    "groups_c": ("conv2d", (X, W), {"groups": 3}, ShapeError, ["groups=3", "C=8", "[2, 8, 14, 14]", "[16, 8, 3, 3]"]),
    "groups_k": ("conv2d", (X, np.ones((15, 4, 3, 3), np.float32)), {"groups": 2}, ShapeError, ["groups=2", "K=15"]),
    "groups_0": ("conv2d", (X, W), {"groups": 0}, ShapeError, ["groups", "0"]),
    "groups_negative": ("conv2d", (X, W), {"groups": -8}, ShapeError, ["groups", "-8"]),
    "groups_float": ("conv2d", (X, W), {"groups": 2.0}, DTypeError, ["groups", "2.0"]),
    "groups_string": ("conv2d", (X, W), {"groups": "2"}, DTypeError, ["groups", "'2'"]),
    "groups_transposed": ("conv_transpose2d", (DY, W), {"groups": 5}, ShapeError, ["groups=5", "16"]),
    # shapes
    "channels": ("conv2d", (X, np.ones((16, 7, 3, 3), np.float32)), {}, ShapeError, ["8", "7", "[16, 7, 3, 3]"]),
    "x_axes": ("conv2d", (X[0, 0], W), {}, ShapeError, ["4 axes", "[14, 14]"]),
    "x_axes_5": ("conv2d", (X[None], W), {}, ShapeError, ["4 axes", "[1, 2, 8, 14, 14]"]),
    "w_axes": ("conv2d", (X, W[0]), {}, ShapeError, ["4 axes", "[8, 3, 3]"]),
    "conv1d_of_2d": ("conv1d", (X, W), {}, ShapeError, ["[2, 8, 14, 14]"]),
    "no_channels": ("conv2d", (X[:, :0], W[:, :0]), {}, ShapeError, ["[2, 0, 14, 14]"]),
    "no_filters": ("conv2d", (X, W[:0]), {}, ShapeError, ["K=0", "[0, 8, 3, 3]"]),
    "no_pixels": ("conv2d", (X[..., :0], W), {}, ShapeError, ["[2, 8, 14, 0]"]),
    "no_taps": ("conv2d", (X, W[..., :0]), {}, ShapeError, ["ksize", "0"]),
    "window_too_large": ("conv2d", (X[..., :2, :], W), {}, ShapeError, ["3", "2 + 0 + 0", "H"]),
    "dilated_too_large": ("conv2d", (X, W), {"dilation": 7}, ShapeError, ["15", "14", "dilation=7"]),
    "bias_length": ("conv2d", (X, W, np.ones(8, np.float32)), {}, ShapeError, ["[16]", "[8]"]),
    "bias_axes": ("conv2d", (X, W, np.ones((1, 16), np.float32)), {}, ShapeError, ["[16]", "[1, 16]"]),
    "bias_transposed": ("conv_transpose2d", (DY, W, np.ones(16, np.float32)), {}, ShapeError, ["[8]", "[16]"]),
    "x_transposed": ("conv_transpose2d", (X, W), {}, ShapeError, ["8", "16", "[16, 8, 3, 3]"]),
    "layout_swapped": ("conv2d", (X, W), {"layout": "NHWC"}, ShapeError, ["[2, 8, 14, 14]"]),
    "dy_shape": ("conv2d_dgrad", (DY, W, (2, 8, 15, 14)), {}, ShapeError, ["[2, 16, 13, 12]", "[2, 16, 12, 12]"]),
    "dy_shape_w": ("conv2d_wgrad", (DY, X, (16, 8, 5, 5)), {}, ShapeError, ["[2, 16, 10, 10]", "[2, 16, 12, 12]"]),
    "x_shape_axes": ("conv2d_dgrad", (DY, W, (8,)), {}, ShapeError, ["[8]"]),
    "x_shape_int": ("conv2d_dgrad", (DY, W, 8), {}, ShapeError, ["x_shape", "8"]),
    "x_shape_float": ("conv2d_dgrad", (DY, W, (2, 8, 14.0, 14)), {}, DTypeError, ["x_shape", "14.0"]),
    "x_shape_negative": ("conv2d_dgrad", (DY, W, (2, 8, -14, 14)), {}, ShapeError, ["-14"]),
    "w_shape_string": ("conv2d_wgrad", (DY, X, "16"), {}, DTypeError, ["w_shape", "'16'"]),
    "bias_grad_axes": ("bias_grad", (X[0, 0],), {}, ShapeError, ["[14, 14]"]),
    # stride, padding, dilation
    "stride_0": ("conv2d", (X, W), {"stride": 0}, ShapeError, ["stride", "0"]),
    "stride_negative": ("conv2d", (X, W), {"stride": (1, -2)}, ShapeError, ["stride", "-2"]),
    "stride_float": ("conv2d", (X, W), {"stride": 1.5}, DTypeError, ["1.5"]),
    "stride_bool": ("conv2d", (X, W), {"stride": True}, DTypeError, ["True"]),
    "stride_bools": ("conv2d", (X, W), {"stride": (1, True)}, DTypeError, ["True"]),
    "stride_nan": ("conv2d", (X, W), {"stride": float("nan")}, ShapeError, ["nan"]),
    "stride_string": ("conv2d", (X, W), {"stride": "2"}, ShapeError, ["stride", "'2'"]),
    "stride_none": ("conv2d", (X, W), {"stride": None}, DTypeError, ["stride", "None"]),
    "stride_count": ("conv2d", (X, W), {"stride": (1, 2, 3)}, ShapeError, ["stride", "(1, 2, 3)"]),
    "dilation_0": ("conv2d", (X, W), {"dilation": 0}, ShapeError, ["dilation", "0"]),
    "dilation_count": ("conv2d", (X, W), {"dilation": (1,)}, ShapeError, ["dilation", "(1,)"]),
    "padding_negative": ("conv2d", (X, W), {"padding": -1}, ShapeError, ["padding", "-1"]),
    "padding_word": ("conv2d", (X, W), {"padding": "wide"}, ShapeError, ["padding", "'wide'", "'same'"]),
    "padding_none": ("conv2d", (X, W), {"padding": None}, DTypeError, ["padding", "None"]),
    "padding_float": ("conv2d", (X, W), {"padding": 0.5}, DTypeError, ["0.5"]),
    "padding_count": ("conv2d", (X, W), {"padding": (1, 2, 3)}, ShapeError, ["padding", "(1, 2, 3)"]),
    "padding_triple": ("conv2d", (X, W), {"padding": ((1, 2, 3), 1)}, ShapeError, ["padding", "(1, 2, 3)"]),
    "padding_words": ("conv2d", (X, W), {"padding": ("same", "same")}, DTypeError, ["padding", "'same'"]),
    "output_padding": ("conv_transpose2d", (DY, W), {"stride": 2, "output_padding": 2}, ShapeError, ["2", "stride=2"]),
    "all_cut_away": ("conv_transpose2d", (DY[..., :1, :1], W), {"padding": 2}, ShapeError, ["-1", "padding"]),
    "dict": ("conv2d", (X, W), {"stride": {}}, ShapeError, ["stride"]),
    "object": ("conv2d", (X, W), {"stride": object()}, DTypeError, ["object"]),
    # words
    "layout": ("conv2d", (X, W), {"layout": "CHWN"}, ShapeError, ["'CHWN'", "'NCHW'", "'NHWC'"]),
    "layout_none": ("conv2d", (X, W), {"layout": None}, ShapeError, ["layout", "None"]),
    "layout_int": ("conv2d", (X, W), {"layout": 3}, DTypeError, ["layout", "3"]),
    "layout_list": ("conv2d", (X, W), {"layout": ["NCHW"]}, DTypeError, ["layout"]),
    "weight_layout": ("conv2d", (X, W), {"weight_layout": "IOHW"}, ShapeError, ["'IOHW'", "'OIHW'"]),
    "activation": ("conv2d", (X, W), {"activation": "swish"}, ShapeError, ["'swish'", "'silu'"]),
    "activation_function": ("conv2d", (X, W), {"activation": np.tanh}, DTypeError, ["activation", "tanh"]),
    "rounding": ("conv2d", (X, W), {"rounding": "round"}, ShapeError, ["'round'", "'floor'"]),
    "rounding_ceil": ("conv2d", (X, W), {"rounding": "ceil"}, ShapeError, ["'ceil'"]),
    "rounding_exact": ("conv2d", (X, W), {"rounding": "exact", "stride": 2}, ShapeError, ["OH", "14", "6.5"]),
    "precision": ("conv2d", (X, W), {"precision": "fp8"}, ShapeError, ["'fp8'", "'ieee'"]),
    # dtypes and kinds
    "int_x": ("conv2d", (X.astype(np.int32), W), {}, DTypeError, ["int32", "float32"]),
    "mixed_int": ("conv2d", (X.astype(np.int8), W), {}, DTypeError, ["int8", "float32"]),
    "complex": ("conv2d", (X.astype(np.complex64), W), {}, DTypeError, ["complex64"]),
    "bool": ("conv2d", (X > 0, W), {}, DTypeError, ["bool"]),
    "object_dtype": ("conv2d", (X.astype(object), W), {}, DTypeError, ["object"]),
    "strings": ("conv2d", (np.full(X.shape, "a"), W), {}, DTypeError, ["U1"]),
    "dates": ("conv2d", (np.zeros(X.shape, "M8[s]"), W), {}, DTypeError, ["datetime64"]),
    "records": ("conv2d", (np.zeros(X.shape, "f4,f4"), W), {}, DTypeError, ["f4"]),
    "longdouble": ("conv2d", (X.astype(np.longdouble), W), {}, DTypeError, ["float128"]),
    "int8_gelu": ("conv2d", (X.astype("i1"), W.astype("i1")), {"activation": "gelu"}, DTypeError, ["'gelu'", "int8"]),
    "int8_bias": ("conv2d", (X.astype("i1"), W.astype("i1"), np.ones(16)), {}, DTypeError, ["float64", "int32"]),
    "int8_vjp": ("conv2d_vjp", (X.astype("i1"), W.astype("i1")), {}, DTypeError, ["int8"]),
    "list": ("conv2d", (X.tolist(), W), {}, DTypeError, ["list"]),
    "none": ("conv2d", (None, W), {}, DTypeError, ["None"]),
    "scalar": ("conv2d", (X, 1.0), {}, DTypeError, ["float"]),
    "masked": ("conv2d", (np.ma.masked_array(X), W), {}, DTypeError, ["masked"]),
    "pool_complex": ("max_pool2d", (X.astype(np.complex64), 2), {}, DTypeError, ["complex64"]),
    "pool_int_average": ("avg_pool2d", (X.astype(np.int32), 2), {}, DTypeError, ["int32"]),
    "pool_bool": ("max_pool2d", (X > 0, 2), {}, DTypeError, ["bool"]),
    # pooling
    "pool_axes": ("max_pool2d", (X[0, 0], 2), {}, ShapeError, ["[14, 14]"]),
    "pool_ksize_0": ("max_pool2d", (X, 0), {}, ShapeError, ["ksize", "0"]),
    "pool_ksize_none": ("max_pool2d", (X, None), {}, DTypeError, ["ksize", "None"]),
    "pool_too_large": ("max_pool2d", (X, 15), {}, ShapeError, ["15", "14"]),
    "pool_padding": ("max_pool2d", (X, 3, 2, 2), {}, ShapeError, ["padding", "2", "1", "ksize=3"]),
    "pool_divisor": ("avg_pool2d", (X, 2), {"divisor": 0}, ShapeError, ["divisor", "0"]),
    "pool_divisor_float": ("avg_pool2d", (X, 2), {"divisor": 2.5}, DTypeError, ["divisor", "2.5"]),
    "pool_count": ("avg_pool2d", (X, 2), {"count_include_pad": 1}, DTypeError, ["count_include_pad", "1"]),
    "pool_p_0": ("lp_pool2d", (X, 0, 2), {}, ShapeError, ["p", "0"]),
    "pool_p_nan": ("lp_pool2d", (X, float("nan"), 2), {}, ShapeError, ["nan"]),
    "pool_p_inf": ("lp_pool2d", (X, float("inf"), 2), {}, ShapeError, ["inf"]),
    "pool_p_string": ("lp_pool2d", (X, "2", 2), {}, DTypeError, ["'2'"]),
    "pool_rounding": ("max_pool2d", (X, 3), {"rounding": "up"}, ShapeError, ["'up'", "'ceil'"]),
    "pool_exact": ("max_pool2d", (X, 3), {"rounding": "exact"}, ShapeError, ["14", "3"]),
    "pool_dy": ("max_pool2d_dgrad", (X, X, 2), {}, ShapeError, ["[2, 8, 7, 7]", "[2, 8, 14, 14]"]),
    "pool_avg_dy": ("avg_pool2d_dgrad", (X, (2, 8, 14, 14), 2), {}, ShapeError, ["[2, 8, 7, 7]"]),
    "pool_indices_dtype": ("max_pool2d_dgrad", (X[..., :7, :7], X, 2), {"indices": IDX * 1.0}, DTypeError, ["float64"]),
    "pool_indices_shape": ("max_pool2d_dgrad", (X[..., :7, :7], X, 2), {"indices": IDX[0]}, ShapeError, ["[8, 7, 7]"]),
    "pool_indices_range": ("max_pool2d_dgrad", (X[..., :7, :7], X, 2), {"indices": IDX + 196}, ShapeError, ["196"]),
    "unpool_range": ("max_unpool2d", (X[..., :7, :7], IDX + 196, 2), {}, ShapeError, ["196"]),
    "unpool_negative": ("max_unpool2d", (X[..., :7, :7], IDX - 1, 2), {}, ShapeError, ["-1"]),
    "unpool_shape": ("max_unpool2d", (X, IDX, 2), {}, ShapeError, ["[2, 8, 14, 14]", "[2, 8, 7, 7]"]),
    "unpool_size": ("max_unpool2d", (X[..., :7, :7], IDX, 2), {"output_size": (14,)}, ShapeError, ["output_size"]),
    "unpool_channels": ("max_unpool2d", (X[..., :7, :7], IDX, 2), {"output_size": (2, 9, 14, 14)}, ShapeError, ["9"]),
    "adaptive_0": ("adaptive_avg_pool2d", (X, 0), {}, ShapeError, ["output_size", "0"]),
    "adaptive_count": ("adaptive_avg_pool2d", (X, (1, 2, 3)), {}, ShapeError, ["output_size", "(1, 2, 3)"]),
    "adaptive_float": ("adaptive_max_pool2d", (X, 2.5), {}, DTypeError, ["2.5"]),
    "global_axes": ("global_avg_pool", (X[0, 0],), {}, ShapeError, ["[14, 14]"]),
    # signals
    "mode": ("correlate", (SEQ, SEQ, "half"), {}, ShapeError, ["'half'", "'full'"]),
    "mode_int": ("correlate", (SEQ, SEQ, 1), {}, DTypeError, ["mode", "1"]),
    "method": ("convolve", (SEQ, SEQ, "full", "fast"), {}, ShapeError, ["'fast'", "'fft'"]),
    "boundary": ("correlate2d", (X[0, 0], X[0, 0], "full", "reflect"), {}, ShapeError, ["'reflect'", "'symm'"]),
    "fillvalue": ("convolve2d", (X[0, 0], X[0, 0], "full", "fill", "0"), {}, DTypeError, ["fillvalue", "'0'"]),
    "fillvalue_complex": ("convolve2d", (X[0, 0], X[0, 0], "full", "fill", 1j), {}, DTypeError, ["fillvalue", "1j"]),
    "signal_axes": ("correlate", (SEQ, X[0, 0]), {}, ShapeError, ["[5]", "[14, 14]"]),
    "signal_empty": ("correlate", (SEQ, SEQ[:0]), {}, ShapeError, ["[0]"]),
    "signal_valid": ("correlate", (np.ones((3, 9)), np.ones((5, 5)), "valid"), {}, ShapeError, ["[3, 9]", "[5, 5]"]),
    "signal_2d_axes": ("correlate2d", (SEQ, SEQ), {}, ShapeError, ["2 axes", "[5]"]),
    "signal_strings": ("correlate", (["a"], ["b"]), {}, DTypeError, ["U1"]),
    "signal_ragged": ("correlate", ([[1], [1, 2]], [1]), {}, ShapeError, ["in1"]),
    "signal_objects": ("correlate", (SEQ.astype(object), SEQ), {}, DTypeError, ["object"]),
    "signal_none": ("correlate", (SEQ, None), {}, DTypeError, ["None"]),
    "signal_vjp_ints": ("correlate_vjp", (SEQ.astype(int), SEQ.astype(int)), {}, DTypeError, ["int64"]),
    # sizes that no memory holds
    "huge_padding": ("conv2d", (X, W), {"padding": 2**30}, ShapeError, ["GiB"]),
    "overflowing_padding": ("conv2d", (X, W), {"padding": 2**62}, ShapeError, ["2**48"]),
    "overflowing_stride": ("conv2d", (X, W), {"stride": 2**64}, ShapeError, ["2**48"]),
    "huge_x_shape": ("avg_pool2d_dgrad", (X, (2, 8, 2**40, 2**40), 2), {}, ShapeError, ["GiB"]),
    "huge_dgrad": ("conv2d_dgrad", (DY, W, (2, 8, 2**30, 2**30)), {"stride": 2**30}, ShapeError, ["GiB"]),
    "huge_adaptive": ("adaptive_avg_pool2d", (X, 2**40), {}, ShapeError, ["GiB"]),
    "huge_unpool": ("max_unpool2d", (X[..., :7, :7], IDX, 2), {"output_size": (2**40, 2**40)}, ShapeError, ["GiB"]),
    "huge_transposed": ("conv_transpose2d", (DY, W), {"stride": 2**24}, ShapeError, ["GiB"]),
    "huge_full": ("correlate", (np.broadcast_to(1.0, 2**40), np.broadcast_to(1.0, 2**40)), {}, ShapeError, ["GiB"]),
    "unpool_none": ("max_unpool2d", (X, None, 2), {}, DTypeError, ["indices", "None"]),
}  # fmt: skip


def snapshot(value):
    return value.copy() if isinstance(value, np.ndarray) and value.nbytes < 2**20 and value.dtype != object else None


@pytest.mark.parametrize("name", BAD)
def test_bad_call(backend, name):
    """It raises its class, quotes its numbers, leaves its inputs alone, and takes under a fifth of a second."""
    function, args, kwargs, error, words = BAD[name]
    before = [snapshot(value) for value in args]
    started = time.process_time()
    with pytest.raises(error) as caught:
        getattr(fastconv, function)(*args, backend=backend, **kwargs)
    assert time.process_time() - started < 0.2
    assert isinstance(caught.value, FastconvError)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    for value, copy in zip(args, before, strict=True):
        assert copy is None or value.tobytes() == copy.tobytes()


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_raise_in_plan_and_explain(name):
    """`explain` and `plan` refuse what the call refuses, with the same words, where no values are looked at."""
    function, args, kwargs, error, _ = BAD[name]
    if function.endswith("_vjp") or name in ("unpool_range", "unpool_negative", "pool_indices_range"):
        return
    with pytest.raises(error) as wanted:
        getattr(fastconv, function)(*args, **kwargs)
    for ask in (fastconv.explain, fastconv.plan):
        with pytest.raises(error) as caught:
            ask(function, *args, **kwargs)
        assert str(caught.value) == str(wanted.value)


def test_messages_are_the_same_on_every_backend():
    names = [name for name, available, _ in fastconv.backends() if available]
    for function, args, kwargs, error, _ in BAD.values():
        messages = set()
        for name in names:
            with pytest.raises(error) as caught:
                getattr(fastconv, function)(*args, backend=name, **kwargs)
            messages.add(str(caught.value))
        assert len(messages) == 1


@pytest.mark.parametrize("name", ["cuda", "", "CPU", 3, ["cpu"], b"cpu"])
def test_unknown_backend(name):
    with pytest.raises(BackendError, match="no backend"):
        fastconv.conv2d(X, W, backend=name)
    with pytest.raises(BackendError, match="no backend"):
        fastconv.set_backend(name)
    with pytest.raises(BackendError, match="no backend"), fastconv.use_backend(name):
        pass


@pytest.mark.parametrize("kind", ["numba", "raw"])
def test_unavailable_backend(kind):
    """A backend that cannot run says why, and nothing else runs in its place."""
    (reason,) = [reason for name, _, reason in fastconv.backends() if name == kind]
    if kind in [name for name, available, _ in fastconv.backends() if available]:
        assert fastconv.conv2d(X, W, backend=kind).shape == DY.shape
        return
    with pytest.raises(BackendError, match=kind) as caught:
        fastconv.conv2d(X, W, backend=kind)
    assert reason in str(caught.value)


class OnGpu:
    """An array in a GPU's memory, as `__cuda_array_interface__` tells it."""

    def __init__(self, shape=(2, 8, 14, 14)):
        self.shape, self.dtype, self.ndim = shape, np.dtype(np.float32), len(shape)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<f4", "data": (4096, False), "version": 3}


def test_mixed_devices(backend):
    """A NumPy and a GPU operand in one call is a DTypeError; data is never moved."""
    with pytest.raises(DTypeError, match="one kind"):
        fastconv.conv2d(X, OnGpu((16, 8, 3, 3)), backend=backend)
    with pytest.raises(DTypeError, match="one kind"):
        fastconv.conv2d(OnGpu(), W, backend=backend)
    with pytest.raises(DTypeError, match="out"):
        fastconv.conv2d(X, W, out=OnGpu(DY.shape), backend=backend)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gpu_arrays_on_a_cpu_backend(name):
    with pytest.raises(BackendError, match="numpy arrays, these are cuda arrays"):
        fastconv.max_pool2d(OnGpu(), 2, backend=name)


def test_argument_errors_are_both():
    """A value of the wrong type is wrong as a value and as a type: either except clause catches it."""
    for error in (ShapeError, DTypeError, ValueError, TypeError):
        with pytest.raises(error):
            fastconv.conv2d(X, W, stride=1.5)


def test_bad_dy_of_a_pullback(backend):
    _, pullback = fastconv.conv2d_vjp(X, W, backend=backend)
    with pytest.raises(ShapeError, match=r"\[2, 16, 12, 12\].*\[2, 16, 12, 11\]"):
        pullback(DY[..., :11])
    with pytest.raises(DTypeError, match="complex128"):
        pullback(DY.astype(complex))
    with pytest.raises(DTypeError, match="list"):
        pullback(DY.tolist())
