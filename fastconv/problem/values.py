"""Values and words as users write them, made exact or refused; results too large are refused too."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

from fastconv.errors import ArgumentError, FastconvError, ShapeError

_T = TypeVar("_T")
Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

LAYOUTS = ("NCHW", "NHWC")
WEIGHT_LAYOUTS = ("OIHW", "OHWI", "HWIO")
OWN_WEIGHTS = {"NCHW": "OIHW", "NHWC": "HWIO"}  # the weight layout that goes with a layout
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu", "silu")
ROUNDINGS = ("floor", "ceil", "exact")
PRECISIONS = ("ieee", "tf32", "bf16")
PADDINGS = ("valid", "same", "same_lower", "full")
MODES = ("full", "same", "valid")
METHODS = ("auto", "direct", "fft")
BOUNDARIES = ("fill", "wrap", "symm")
MAX_INT = 2**48  # beyond any memory; keeps every product of two offsets inside 64 bits
SPATIAL = ("D", "H", "W")


def as_int(name: str, value: Any, low: int) -> int:
    """`value` as an int in [low, MAX_INT]; floats, bools, strings and None are refused."""
    if isinstance(value, bool):
        raise ArgumentError(f"{name} must be an int: got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be an int: got {value!r}") from None
    if not low <= number <= MAX_INT:
        raise ShapeError(f"{name} must be at least {low} and at most 2**48: got {number}")
    return number


def as_ints(name: str, value: Any, ndim: int, low: int) -> Ints:
    """One int for all axes, or one per axis, as a tuple of `ndim` ints."""
    if isinstance(value, str) or value is None:
        raise ArgumentError(f"{name} must be an int or {ndim} ints: got {value!r}")
    try:
        items = tuple(value)
    except TypeError:
        return (as_int(name, value, low),) * ndim
    if len(items) != ndim:
        raise ShapeError(f"{name} must be an int or {ndim} ints, one per spatial axis: got {value!r}")
    return tuple(as_int(name, item, low) for item in items)


def one_of(name: str, value: Any, words: Sequence[str | None]) -> Any:
    if isinstance(value, str) or value is None:
        if value in words:
            return value
        error: type[ShapeError] = ShapeError
    else:
        error = ArgumentError
    raise error(f"{name} must be one of {', '.join(map(repr, words))}: got {value!r}")


def as_shape(name: str, value: Any) -> Ints:
    """A shape (tuple, list, or an array's ``.shape``) as a tuple of non-negative ints."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ArgumentError(f"{name} must be a tuple of ints: got {value!r}")
    return tuple(as_int(name, item, 0) for item in value)


def hashable(value: Any) -> Any:
    """Geometry as a user writes it, in a form that a call can be looked up by: nested tuples of exact ints.

    ``(1, True)`` and ``(1, 1.0)`` hash like ``(1, 1)`` and must not find its cached problem before
    they have been refused, so what is no int inside a sequence is refused here.
    """
    if value is None or isinstance(value, str | int):
        return value
    if type(value) is tuple:
        for item in value:
            if type(item) is not int:
                break
        else:
            return value
    try:
        return operator.index(value)
    except TypeError:
        pass
    if not hasattr(value, "__iter__"):
        raise ArgumentError(f"stride, padding, dilation and sizes must be ints: got {value!r}")
    return tuple(item if type(item) is int or item is None else _exact(item) for item in value)


def _exact(item: Any) -> Any:
    if isinstance(item, bool):
        raise ArgumentError(f"stride, padding, dilation and sizes must be ints: got {item!r}")
    return hashable(item)


def memoised(build: Callable[..., _T]) -> Callable[..., _T]:
    """Remember validated problems; arguments that cannot be looked up go to `build`, which refuses them."""
    remember = lru_cache(maxsize=4096, typed=True)(build)

    @wraps(build)
    def lookup(*args: Any) -> _T:
        try:
            return remember(*args)
        except FastconvError:
            raise
        except TypeError:
            return build(*args)

    return lookup


def check_bytes(what: str, shape: Ints, itemsize: int) -> None:
    """Refuse a result that no memory of this machine can hold, before anything is allocated."""
    nbytes = math.prod(shape) * itemsize
    limit = _physical_memory()
    if nbytes > limit:
        raise ShapeError(
            f"{what}{list(shape)} needs {nbytes / 2**30:,.0f} GiB; this machine has {limit / 2**30:,.0f} GiB"
        )


@lru_cache(maxsize=1)
def _physical_memory() -> int:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1


ITEMSIZE = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4, "int64": 8, "uint64": 8, "float64": 8,
    "complex64": 8, "complex128": 16,
}  # fmt: skip
