"""CuPy's lost cuDNN: `install` provides ``cupy.cudnn``, which CuPy 14 dropped, for programs such as sigpy.

After `install`, ``cupy.cudnn`` and ``cupyx.cudnn`` have, with the arguments that they had in CuPy 13, the functions for
convolution, pooling, activation and softmax, and ``cupy.cuda.cudnn`` has their constants. What asks at its own import
whether cuDNN is there (sigpy does) must be imported afterwards. Arrays are CuPy's; NumPy's are computed on the CPU, so
that a program can be tried without a GPU.

What differs: results are deterministic, at full precision; ``auto_tune``, ``tensor_core`` and ``deterministic`` change
nothing, and no workspace is needed. Max pooling passes NaN on, and gives the gradient of a tie to the first maximum.
Recurrent networks, normalisation, dropout, fused ops and descriptors are not here: asking for them raises
AttributeError.

Examples
--------
>>> from fastconv.interop import cupy_cudnn
>>> cupy_cudnn.install()
>>> from cupy import cudnn
>>> import numpy as np  # on a GPU: import cupy as np
>>> x, w = np.array([[[1.0, 3, 2, 2, 0, 2, 3]]]), np.array([[[-1.0, 0, 1]]])
>>> y = np.empty((1, 1, 5))
>>> cudnn.convolution_forward(x, w, None, y, (0,), (1,), (1,), 1, auto_tune=True, tensor_core="auto")
>>> y
array([[[ 1., -1., -2.,  0.,  3.]]])
>>> cupy_cudnn.uninstall()
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

import fastconv
from fastconv import arrays, dispatch
from fastconv.errors import DTypeError, ShapeError
from fastconv.problem import ActivationProblem

Ints = tuple[int, ...]

# ---------------------------------------------------------------- the constants of cuDNN that the functions take

CONSTANTS = {
    "CUDNN_TENSOR_NCHW": 0, "CUDNN_TENSOR_NHWC": 1,
    "CUDNN_DATA_FLOAT": 0, "CUDNN_DATA_DOUBLE": 1, "CUDNN_DATA_HALF": 2,
    "CUDNN_CONVOLUTION": 0, "CUDNN_CROSS_CORRELATION": 1,
    "CUDNN_POOLING_MAX": 0, "CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING": 1,
    "CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING": 2, "CUDNN_POOLING_MAX_DETERMINISTIC": 3,
    "CUDNN_ACTIVATION_SIGMOID": 0, "CUDNN_ACTIVATION_RELU": 1, "CUDNN_ACTIVATION_TANH": 2,
    "CUDNN_ACTIVATION_CLIPPED_RELU": 3, "CUDNN_ACTIVATION_ELU": 4,
    "CUDNN_SOFTMAX_FAST": 0, "CUDNN_SOFTMAX_ACCURATE": 1, "CUDNN_SOFTMAX_LOG": 2,
}  # fmt: skip

LAYOUTS = {0: "NCHW", 1: "NHWC"}
WEIGHT_LAYOUTS = {0: "OIHW", 1: "OHWI"}
ACTIVATIONS = {0: "sigmoid", 1: "relu", 2: "tanh"}
CLIPPED_RELU, ELU = 3, 4
FAST, ACCURATE, LOG = 0, 1, 2


class CuDNNError(RuntimeError):
    """What CuPy raised for cuDNN's own errors; here fastconv's errors come in its place."""


def spatial_axes(x: Any) -> int:
    if not 3 <= x.ndim <= 5:
        raise ShapeError(f"x must have a batch, a channel and 1 to 3 spatial axes: got x{list(x.shape)}")
    return int(x.ndim) - 2


# ---------------------------------------------------------------- convolution


def geometry(x: Any, pad: Ints, stride: Ints, dilation: Ints | None, groups: int, tensor_core: str,
             d_layout: int, w_layout: int) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """The number of spatial axes, and fastconv's arguments."""
    if tensor_core not in ("auto", "always", "never"):
        raise ShapeError(f'tensor_core must be "auto", "always" or "never": got {tensor_core!r}')
    if d_layout not in LAYOUTS or w_layout not in WEIGHT_LAYOUTS:
        raise ShapeError(
            f"d_layout and w_layout must be 0 (CUDNN_TENSOR_NCHW) or 1 (CUDNN_TENSOR_NHWC): got {d_layout}, {w_layout}"
        )
    return spatial_axes(x), {
        "stride": stride, "padding": pad, "dilation": 1 if dilation is None else dilation, "groups": groups,
        "layout": LAYOUTS[d_layout], "weight_layout": WEIGHT_LAYOUTS[w_layout],
    }  # fmt: skip


def convolution_forward(
    x: Any, W: Any, b: Any, y: Any, pad: Ints, stride: Ints, dilation: Ints | None, groups: int, *,
    auto_tune: bool, tensor_core: str, d_layout: int = 0, w_layout: int = 0,
) -> None:  # fmt: skip
    """y = the cross-correlation of x with W, plus b (or None): `fastconv.conv2d`."""
    ndim, window = geometry(x, pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    getattr(fastconv, f"conv{ndim}d")(x, W, b, **window, out=y)


def convolution_backward_data(
    W: Any, x: Any, b: Any, y: Any, pad: Ints, stride: Ints, dilation: Ints | None, groups: int, *,
    deterministic: bool, auto_tune: bool, tensor_core: str, d_layout: int = 0, w_layout: int = 0,
) -> None:  # fmt: skip
    """y = the gradient to the input from that to the output, x, plus b (or None): `fastconv.conv2d_dgrad`."""
    ndim, window = geometry(x, pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    getattr(fastconv, f"conv{ndim}d_dgrad")(x, W, y.shape, **window, out=y)
    if b is not None:
        y += b.reshape((-1, *(1,) * ndim) if d_layout == 0 else (-1,))


def convolution_backward_filter(
    x: Any, gy: Any, gW: Any, pad: Ints, stride: Ints, dilation: Ints | None, groups: int, *,
    deterministic: bool, auto_tune: bool, tensor_core: str, d_layout: int = 0, w_layout: int = 0,
) -> None:  # fmt: skip
    """gW = the gradient to the weights from that to the output, gy: `fastconv.conv2d_wgrad`."""
    ndim, window = geometry(x, pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    getattr(fastconv, f"conv{ndim}d_wgrad")(gy, x, gW.shape, **window, out=gW)


# ---------------------------------------------------------------- pooling


def pooling(x: Any, y: Any, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> tuple[str, dict[str, Any]]:
    """The beginning of fastconv's function's name, and its arguments.

    A y larger than whole windows fill has a last partial one along each axis, as Chainer's ``cover_all`` asks for.
    """
    if mode not in (0, 1, 2, 3):
        raise ShapeError(f"mode must be one of the CUDNN_POOLING constants, 0 to 3: got {mode}")
    ndim, given = spatial_axes(x), {"ksize": ksize, "stride": stride, "pad": pad}
    if any(len(values) != ndim for values in given.values()):
        raise ShapeError(f"ksize, stride and pad must have an int for each of {ndim} spatial axes: got {given}")
    axes = zip(x.shape[2:], ksize, stride, pad, strict=True)
    floors = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)
    window: dict[str, Any] = {"ksize": ksize, "stride": stride, "padding": tuple((p, p) for p in pad)}
    window["rounding"] = "floor" if tuple(y.shape[2:]) == floors else "ceil"
    if mode in (0, 3):
        return f"max_pool{ndim}d", window
    return f"avg_pool{ndim}d", {**window, "count_include_pad": mode == 1}


def pooling_forward(x: Any, y: Any, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Any:
    """y, filled with the pooled x: `fastconv.max_pool2d` or `fastconv.avg_pool2d`."""
    name, window = pooling(x, y, ksize, stride, pad, mode)
    return getattr(fastconv, name)(x, **window, out=y)


def pooling_backward(x: Any, y: Any, gy: Any, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Any:
    """The gradient to x: `fastconv.max_pool2d_dgrad` or `fastconv.avg_pool2d_dgrad`."""
    name, window = pooling(x, y, ksize, stride, pad, mode)
    return getattr(fastconv, f"{name}_dgrad")(gy, x if name.startswith("max") else x.shape, **window)


# ---------------------------------------------------------------- activation and softmax


def activation(op: str, mode: int, *operands: Any) -> Any:
    roles = ("x",) if op == "activation_fprop" else ("y", "x")
    admitted = dispatch.admit(roles, operands, None)
    first = admitted.arrays[0]
    dtype = arrays.name_of(first.dtype)
    if dtype not in arrays.FLOATS:
        raise DTypeError(f"activations take {', '.join(arrays.FLOATS)}: got {dtype}")
    return dispatch.run(op, ActivationProblem(ACTIVATIONS[mode], first.shape, dtype), admitted, None, None)


def activation_forward(x: Any, mode: int, coef: float = 0.0) -> Any:
    """The activation of x; `coef` is where the clipped ReLU ends, or what ELU is scaled with."""
    if mode in ACTIVATIONS:
        return activation("activation_fprop", mode, x)
    if mode == CLIPPED_RELU:
        return np.clip(x, 0, coef)
    if mode == ELU:
        return np.where(x > 0, x, coef * np.expm1(np.minimum(x, 0)))
    raise ShapeError(f"mode must be one of the CUDNN_ACTIVATION constants, 0 to 4: got {mode}")


def activation_backward(x: Any, y: Any, gy: Any, mode: int, coef: float = 0.0) -> Any:
    """The gradient to x from that to y = activation_forward(x)."""
    if mode in ACTIVATIONS:
        return activation("activation_dgrad", mode, gy, y)
    if mode == CLIPPED_RELU:
        return np.where((x > 0) & (x < coef), gy, gy.dtype.type(0))
    if mode == ELU:
        return gy * np.where(x > 0, gy.dtype.type(1), y + gy.dtype.type(coef))
    raise ShapeError(f"mode must be one of the CUDNN_ACTIVATION constants, 0 to 4: got {mode}")


def softmax_forward(x: Any, axis: int, algorithm: int) -> Any:
    """exp(x) / sum(exp(x)) along an axis, or its logarithm; both algorithms but LOG subtract the maximum first."""
    check_softmax(algorithm)
    shifted = x - x.max(axis=axis, keepdims=True)
    if algorithm == LOG:
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    powers = np.exp(shifted)
    return powers / powers.sum(axis=axis, keepdims=True)


def softmax_backward(y: Any, gy: Any, axis: int, algorithm: int) -> Any:
    """The gradient to x from that to y = softmax_forward(x)."""
    check_softmax(algorithm)
    if algorithm == LOG:
        return gy - np.exp(y) * gy.sum(axis=axis, keepdims=True)
    return y * (gy - (y * gy).sum(axis=axis, keepdims=True))


def check_softmax(algorithm: int) -> None:
    if algorithm not in (FAST, ACCURATE, LOG):
        raise ShapeError(f"algorithm must be one of the CUDNN_SOFTMAX constants, 0 to 2: got {algorithm}")


# ---------------------------------------------------------------- the modules

_workspace = [8 * 2**20]  # bytes; kept for programs that set it, and read by nothing


def get_max_workspace_size() -> int:
    return _workspace[0]


def set_max_workspace_size(size: int) -> None:
    _workspace[0] = size


def getVersion() -> int:
    """The version of cuDNN whose arguments the functions take."""
    return 8000


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    convolution_forward, convolution_backward_data, convolution_backward_filter, pooling_forward, pooling_backward,
    activation_forward, activation_backward, softmax_forward, softmax_backward, get_max_workspace_size,
    set_max_workspace_size,
)  # fmt: skip

_before: dict[str, Any] = {}  # what `install` replaced, or None


def module(name: str, content: dict[str, Any]) -> types.ModuleType:
    made = types.ModuleType(name, f"Provided by fastconv.interop.cupy_cudnn: {', '.join(sorted(content))}.")
    made.__spec__ = ModuleSpec(name, None)
    made.__dict__.update(content)

    def missing(attribute: str) -> Any:
        raise AttributeError(
            f"{name}.{attribute} is not provided: fastconv's has convolution, pooling, activation and softmax"
        )

    made.__dict__["__getattr__"] = missing
    return made


def install() -> None:
    """Put ``cupy.cudnn``, ``cupyx.cudnn`` and ``cupy.cuda.cudnn`` in place, until `uninstall`.

    Raises
    ------
    ModuleNotFoundError
        Where there is no CuPy.
    """
    if _before:
        return
    functions: dict[str, Any] = {function.__name__: function for function in FUNCTIONS}
    low = CONSTANTS | {"available": True, "getVersion": getVersion, "CuDNNError": CuDNNError}
    places: dict[str, dict[str, Any]] = {"cupy.cudnn": functions, "cupyx.cudnn": functions, "cupy.cuda.cudnn": low}
    parents = {name: importlib.import_module(name.rpartition(".")[0]) for name in places}
    for name, content in places.items():
        _before[name] = sys.modules.get(name)
        sys.modules[name] = made = module(name, content)
        parents[name].cudnn = made  # type: ignore[attr-defined]


def uninstall() -> None:
    """Take them away again, or put back what was there before."""
    for name, former in _before.items():
        parent = sys.modules[name.rpartition(".")[0]]
        if former is None:
            del sys.modules[name]
            delattr(parent, "cudnn")
        else:
            sys.modules[name] = former
            parent.cudnn = former  # type: ignore[attr-defined]
    _before.clear()
