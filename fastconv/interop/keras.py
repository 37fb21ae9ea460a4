"""Keras 3 on fastconv, on its torch and NumPy backends; needs ``keras``.

On the torch backend Keras's layers call PyTorch's operators: `patch` is `fastconv.interop.torch.patch`, and
models train with ``fit``. On the NumPy backend, which has no gradients, Keras lends its convolutions and
poolings from JAX: `patch` puts fastconv's in their place, and models predict without JAX computing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.backend_utils import compute_conv_transpose_padding_args_for_jax

import fastconv
from fastconv.errors import BackendError, DTypeError, FastconvError
from fastconv.interop.patching import Counts, Patch

Array = np.ndarray

# ---------------------------------------------------------------- arguments


def _spatial(name: str, x: Array) -> Any:
    """The public function of that name for x's number of spatial axes."""
    function = getattr(fastconv, f"{name}{x.ndim - 2}d", None)
    if function is None:
        raise fastconv.ShapeError(f"{name} runs on 1 to 3 spatial axes: got x{list(x.shape)}")
    return function


def _layout(data_format: str | None) -> str:
    return "NHWC" if (data_format or keras.config.image_data_format()) == "channels_last" else "NCHW"


def _channels(x: Array, layout: str) -> int:
    return x.shape[-1 if layout == "NHWC" else 1]


def _arrays(*operands: Any) -> tuple[Array, ...]:
    """Images and filters as arrays of one dtype: JAX promotes nothing here."""
    arrays = tuple(keras.ops.convert_to_numpy(operand) for operand in operands)
    if len({array.dtype for array in arrays}) > 1:
        raise DTypeError(f"a convolution is of one dtype: got {', '.join(str(array.dtype) for array in arrays)}")
    return arrays


# ---------------------------------------------------------------- Keras's functions


def conv(
    inputs: Any, kernel: Any, strides: Any = 1, padding: Any = "valid", data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Array:  # fmt: skip
    """Filters are ``[R, S, C/groups, K]`` whatever the layout; the channels tell the number of groups."""
    x, w = _arrays(inputs, kernel)
    layout = _layout(data_format)
    groups = _channels(x, layout) // w.shape[-2]
    return _spatial("conv", x)(
        x, w, None, strides, padding, dilation_rate, groups, layout=layout, weight_layout="HWIO"
    )  # fmt: skip


def depthwise_conv(
    inputs: Any, kernel: Any, strides: Any = 1, padding: Any = "valid", data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Array:  # fmt: skip
    """Filters are ``[R, S, C, multiplier]``."""
    x, w = _arrays(inputs, kernel)
    w = w.reshape(*w.shape[:-2], 1, w.shape[-2] * w.shape[-1])
    return conv(x, w, strides, padding, data_format, dilation_rate)


def conv_transpose(
    inputs: Any, kernel: Any, strides: Any = 1, padding: Any = "valid", output_padding: Any = None,
    data_format: str | None = None, dilation_rate: Any = 1,
) -> Array:  # fmt: skip
    """Filters are ``[R, S, K, C]``; Keras says how JAX would pad the spread-out input."""
    x, w = _arrays(inputs, kernel)
    pads = compute_conv_transpose_padding_args_for_jax(
        x.shape, w.shape, strides, padding, output_padding, dilation_rate
    )
    dilation = (dilation_rate,) * (x.ndim - 2) if isinstance(dilation_rate, int) else dilation_rate
    reach = [d * (k - 1) for k, d in zip(w.shape, dilation, strict=False)]
    cut = [(r - low, max(r - high, 0)) for r, (low, high) in zip(reach, pads, strict=True)]
    extra = [max(high - r, 0) for r, (_, high) in zip(reach, pads, strict=True)]
    return _spatial("conv_transpose", x)(
        x, w, None, strides, cut, extra, dilation=dilation, layout=_layout(data_format), weight_layout="HWIO"
    )  # fmt: skip


def max_pool(
    inputs: Any, pool_size: Any, strides: Any = None, padding: str = "valid", data_format: str | None = None
) -> Array:
    (x,) = _arrays(inputs)
    return _spatial("max_pool", x)(x, pool_size, strides, padding, layout=_layout(data_format))


def average_pool(
    inputs: Any, pool_size: Any, strides: Any = None, padding: str = "valid", data_format: str | None = None
) -> Array:
    """Padding does not count."""
    (x,) = _arrays(inputs)
    return _spatial("avg_pool", x)(x, pool_size, strides, padding, count_include_pad=False, layout=_layout(data_format))


def adaptive_max_pool(inputs: Any, output_size: Any, data_format: str | None = None) -> Array:
    (x,) = _arrays(inputs)
    return _spatial("adaptive_max_pool", x)(x, output_size, layout=_layout(data_format))


def adaptive_average_pool(inputs: Any, output_size: Any, data_format: str | None = None) -> Array:
    (x,) = _arrays(inputs)
    return _spatial("adaptive_avg_pool", x)(x, output_size, layout=_layout(data_format))


# ``separable_conv`` calls the first two.
FUNCTIONS = (conv, depthwise_conv, conv_transpose, max_pool, average_pool, adaptive_max_pool, adaptive_average_pool)

# ---------------------------------------------------------------- the patch


def _in_front_of(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Ours, with Keras's behind it for what we refuse."""

    @wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            result = ours(*args, **kwargs)
        except FastconvError as refusal:
            NumpyPatch.counts.add_passed(ours.__name__, str(refusal))
            return original(*args, **kwargs)
        NumpyPatch.counts.add_run(ours.__name__)
        return result

    return function


class NumpyPatch(Patch):
    """The functions of Keras's NumPy backend; see `patch`."""

    counts = Counts()

    def _begin(self) -> None:
        from keras.src.backend.numpy import nn

        for ours in FUNCTIONS:
            setattr(nn, ours.__name__, _in_front_of(getattr(nn, ours.__name__), ours))

    def _end(self) -> None:
        from keras.src.backend.numpy import nn

        for ours in FUNCTIONS:
            setattr(nn, ours.__name__, getattr(nn, ours.__name__).__wrapped__)


def patch() -> Patch:
    """While installed, Keras's models compute their convolutions and poolings with fastconv.

    Use it as a context manager, or call ``install()`` and ``uninstall()``; ``report()`` counts what ran and
    what was passed on, with the reason. Patches nest.

    Returns
    -------
    Patch
        `fastconv.interop.torch.patch` on Keras's torch backend; on its NumPy backend one of the same kind.

    Raises
    ------
    BackendError
        On Keras's other backends.

    Examples
    --------
    >>> import numpy as np, keras
    >>> from fastconv.interop.keras import patch
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> with patch() as patched:
    ...     model.predict(np.ones((1, 8, 8, 3)), verbose=0).shape
    (1, 6, 6, 4)
    """
    backend = keras.config.backend()
    if backend == "torch":
        from fastconv.interop.torch import patch as torch_patch

        return torch_patch()
    if backend == "numpy":
        return NumpyPatch()
    raise BackendError(f"Keras runs on {backend!r}: set KERAS_BACKEND to 'torch' or 'numpy' before keras is imported")
