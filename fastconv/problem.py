"""Problems: all shape arithmetic and all validation of values, with the standard library only.

A problem is everything about a call but its data. It is immutable, validated once while it is
built, hashable, and has a text form that parses back (``ConvProblem.parse(str(p)) == p``): the
same line names a test case, a benchmark row and a bug report.

Geometry is written in forward terms whichever pass runs: ``x[N, C, size]``,
``w[K, C/groups, ksize]``, ``y[N, K, out]``, and per axis (the course notes' formula)

    out = (size + pad_low + pad_high - extent) / stride + 1,   extent = dilation * (ksize - 1) + 1
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar

from fastconv.errors import ArgumentError, DTypeError, FastconvError, ShapeError

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


# ---------------------------------------------------------------- values and words


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


# ---------------------------------------------------------------- the window


@dataclass(frozen=True)
class Window:
    """A sliding window: tuples over the spatial axes. Dilation 1 is dense."""

    ksize: Ints
    stride: Ints
    dilation: Ints
    pad: Pads
    rounding: str = "floor"

    @cached_property
    def extent(self) -> Ints:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.ksize, self.dilation, strict=True))

    @property
    def taps(self) -> int:
        return math.prod(self.ksize)

    def out(self, size: Ints) -> Ints:
        return tuple(self._out(axis, n) for axis, n in enumerate(size))

    def _out(self, axis: int, size: int) -> int:
        low, high = self.pad[axis]
        stride, extent = self.stride[axis], self.extent[axis]
        span = size + low + high - extent
        letter = SPATIAL[len(self.ksize) * -1 + axis] if len(self.ksize) <= 3 else f"[{axis}]"
        if span < 0:
            raise ShapeError(
                f"the window does not fit: its extent {extent} (ksize={self.ksize[axis]}, "
                f"dilation={self.dilation[axis]}) is larger than the padded input "
                f"{size} + {low} + {high} along {letter}; pad more or use a smaller window"
            )
        count, rest = divmod(span, stride)
        if rest and self.rounding == "exact":
            pads = f"2*{low}" if low == high else f"({low} + {high})"
            raise ShapeError(
                f"O{letter} = ({letter} + 2P - F{letter})/S + 1 = ({size} + {pads} - {extent})/{stride} + 1 = "
                f"{span / stride + 1:.4g} is not whole; change the padding or the stride, or use rounding='floor'"
            )
        # A last partial window must start inside the input or its low padding.
        if rest and self.rounding == "ceil" and (count + 1) * stride < size + low:
            count += 1
        return count + 1


def make_window(
    size: Ints, ksize: Any, stride: Any, padding: Any, dilation: Any, rounding: Any, pooling: bool = False
) -> Window:
    """A validated window over spatial extents `size`, from the arguments as users write them."""
    ndim = len(size)
    ksize = as_ints("ksize", ksize, ndim, 1)
    stride = ksize if stride is None and pooling else as_ints("stride", stride, ndim, 1)
    dilation = as_ints("dilation", dilation, ndim, 1)
    one_of("rounding", rounding, ROUNDINGS if pooling else ("floor", "exact"))
    extent = tuple(d * (k - 1) + 1 for k, d in zip(ksize, dilation, strict=True))
    pad = make_pads(padding, size, extent, stride)
    if pooling:
        _check_pool_pads(padding, pad, ksize, extent)
    return Window(ksize, stride, dilation, pad, rounding)


def make_pads(padding: Any, size: Ints, extent: Ints, stride: Ints) -> Pads:
    """Every form of `padding` as (low, high) pairs, one per axis."""
    ndim = len(size)
    if isinstance(padding, str):
        one_of("padding", padding, PADDINGS)
        if padding == "valid":
            return ((0, 0),) * ndim
        if padding == "full":
            return tuple((e - 1, e - 1) for e in extent)
        totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, e, s in zip(size, extent, stride, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
        return tuple(pads if padding == "same" else [(high, low) for low, high in pads])
    if padding is None:
        raise ArgumentError(f"padding must be ints, pairs or one of {', '.join(PADDINGS)}: got None")
    if not hasattr(padding, "__iter__"):
        return ((as_int("padding", padding, 0),) * 2,) * ndim
    items = tuple(padding)
    if len(items) != ndim:
        raise ShapeError(
            f"padding must be an int, {ndim} ints or {ndim} (low, high) pairs, one per spatial axis: got {padding!r}"
        )
    return tuple(_pair(item) for item in items)


def _pair(item: Any) -> tuple[int, int]:
    if isinstance(item, str) or not hasattr(item, "__iter__"):
        return (as_int("padding", item, 0),) * 2
    pair = tuple(as_int("padding", end, 0) for end in item)
    if len(pair) != 2:
        raise ShapeError(f"padding of one axis must be an int or a (low, high) pair: got {item!r}")
    return pair


def _check_pool_pads(padding: Any, pad: Pads, ksize: Ints, extent: Ints) -> None:
    """PyTorch's rule for ints; a pair or a word may pad up to the window's extent minus one."""
    items = tuple(padding) if hasattr(padding, "__iter__") and not isinstance(padding, str) else padding
    for axis, (low, high) in enumerate(pad):
        item = items[axis] if isinstance(items, tuple) else items
        if not isinstance(item, str) and not hasattr(item, "__iter__"):
            limit, rule = ksize[axis] // 2, "half of the window"
        else:
            limit, rule = extent[axis] - 1, "the window's extent minus one"
        if max(low, high) > limit:
            raise ShapeError(
                f"pooling padding may be at most {rule}, {limit} for ksize={ksize[axis]} with extent "
                f"{extent[axis]}: got {padding!r}; use a smaller padding, or (low, high) pairs"
            )


# ---------------------------------------------------------------- convolution


@dataclass(frozen=True)
class ConvProblem:
    """A convolution (cross-correlation) and its gradients: x[N,C,size], w[K,C/groups,ksize], y[N,K,out].

    `dtype` is the dtype of the result. `bias` is the shape of the bias, or None. `activation` and
    `bias` belong to the op that runs: `conv_fprop`, or `conv_dgrad` when it serves as a transposed
    convolution. `batched` is False where the user left out the batch axis.
    """

    N: int
    C: int
    K: int
    size: Ints
    window: Window
    groups: int = 1
    dtype: str = "float32"
    layout: str = "NCHW"
    weight_layout: str = "OIHW"
    bias: Ints | None = None
    activation: str | None = None
    precision: str | None = None
    batched: bool = True

    @property
    def ndim(self) -> int:
        return len(self.size)

    @cached_property
    def out(self) -> Ints:
        return self.window.out(self.size)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of any of the three passes, padding counted."""
        return self.N * self.K * (self.C // self.groups) * math.prod(self.out) * self.window.taps

    def dims(self, role: str) -> Ints:
        """The canonical shape (batch, channels, spatial) of an operand of this problem."""
        if role == "x":
            return (self.N, self.C, *self.size)
        if role == "y":
            return (self.N, self.K, *self.out)
        if role == "w":
            return (self.K, self.C // self.groups, *self.window.ksize)
        return (self.K,) if role == "bias" else (self.C,)

    def shape(self, role: str) -> Ints:
        """The shape of an operand as the user passes it or gets it back."""
        if role in ("bias", "tbias"):
            return self.bias if self.bias is not None else self.dims(role)
        return user_shape(self, role)

    def order(self, role: str) -> str:
        """The order of an operand's axes in the user's array."""
        if role == "w":
            return self.weight_layout
        return "C" if role in ("bias", "tbias") else self.layout

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in CONV_FIELDS))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        window = self.window
        default = ConvProblem(self.N, self.C, self.K, self.size, window, weight_layout=OWN_WEIGHTS[self.layout])
        head = f"conv{self.ndim}d n={self.N} c={self.C} size={_join(self.size)} k={self.K} ksize={_join(window.ksize)}"
        words = _window_words(window, (1,) * self.ndim)
        words += [
            f"{name}={getattr(self, name)}"
            for name in ("groups", "dtype", "layout", "weight_layout", "activation", "precision", "batched")
            if getattr(self, name) != getattr(default, name)
        ]
        if self.bias is not None:
            words.append(f"bias={_join(self.bias)}")
        return " ".join([head, *words])

    @staticmethod
    def parse(text: str) -> ConvProblem:
        """The problem that a line such as ``conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3`` names.

        One number stands for all axes; what is left out has the API's default. ``pad`` takes
        ``low:high`` per axis.
        """
        ndim, words = _parse(text, "conv", required=("n", "c", "size", "k", "ksize"))
        size = _ints(words, "size", ndim)
        layout = words.get("layout", "NCHW")
        groups = _number(words, "groups", 1)
        N, C, K, ksize = (*(_number(words, name) for name in ("n", "c", "k")), _ints(words, "ksize", ndim))
        batched = _flag(words, "batched")
        bias = tuple(_number({"bias": item}, "bias") for item in words["bias"].split("x")) if "bias" in words else None
        transposed = bias is not None and bias[0] == C != K  # the bias of a transposed convolution
        wl = one_of("weight_layout", words.get("weight_layout", OWN_WEIGHTS.get(layout)), (None, *WEIGHT_LAYOUTS))
        channels = (C,) if layout == "NCHW" else ()
        x_shape = ((N,) if batched else ()) + channels + size + ((C,) if layout == "NHWC" else ())
        return conv_problem(
            ndim, x_shape, weight_shape(wl or "OIHW", K, C // max(groups, 1), ksize), bias,
            _ints(words, "stride", ndim, 1), _pads(words, ndim), _ints(words, "dilation", ndim, 1), groups,
            _dtype(words), layout, wl, words.get("activation"), words.get("rounding", "floor"), words.get("precision"),
            transposed,
        )  # fmt: skip


CONV_FIELDS = tuple(ConvProblem.__dataclass_fields__)


def weight_shape(weight_layout: str, K: int, C: int, ksize: Ints) -> Ints:
    return {"OIHW": (K, C, *ksize), "OHWI": (K, *ksize, C), "HWIO": (*ksize, C, K)}[weight_layout]


def user_shape(problem: ConvProblem | PoolProblem, role: str) -> Ints:
    dims = problem.dims(role)
    if role == "w":
        assert isinstance(problem, ConvProblem)
        return weight_shape(problem.weight_layout, dims[0], dims[1], dims[2:])
    shape = dims if problem.layout == "NCHW" else (dims[0], *dims[2:], dims[1])
    return shape if problem.batched else shape[1:]


@memoised
def conv_problem(
    ndim: int, x_shape: Ints, w_shape: Ints, bias: Ints | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    dtype: str, layout: Any, weight_layout: Any, activation: Any, rounding: Any, precision: Any,
    transposed: bool = False,
) -> ConvProblem:  # fmt: skip
    """Validate a forward convolution of shapes as users write them. Memoised.

    With `transposed` the bias and the activation are of the op's own output, x's channels.
    """
    weight_layout = _check_words(layout, weight_layout, activation, precision)
    batched, N, C, size = split_shape("x", x_shape, ndim, layout)
    if len(w_shape) != ndim + 2:
        raise ShapeError(f"w must have {ndim + 2} axes ({weight_layout}): got w{list(w_shape)}")
    where = {"OIHW": (0, 1, 2), "OHWI": (0, -1, 1), "HWIO": (-1, -2, 0)}[weight_layout]
    K, Cg = w_shape[where[0]], w_shape[where[1]]
    ksize = w_shape[where[2] : where[2] + ndim]
    groups = as_int("groups", groups, 1)
    got = f"got x{list(x_shape)}, w{list(w_shape)}"
    for letter, value in (("C", C), ("K", K)):
        if value % groups or value == 0:
            raise ShapeError(f"groups={groups} must divide {letter}={value}: {got}")
    if Cg * groups != C:
        raise ShapeError(
            f"w must have C/groups = {C}/{groups} = {C // groups} channels ({weight_layout}), it has {Cg}: {got}"
        )
    window = make_window(size, ksize, stride, padding, dilation, rounding)
    if dtype == "int32" and activation not in (None, "relu", "relu6"):
        raise DTypeError(f"activation={activation!r} needs a float dtype; int8 and uint8 take 'relu' and 'relu6'")
    channels = C if transposed else K
    if bias is not None and bias not in ((channels,), (channels,) + (1,) * ndim):
        ones = ", 1" * ndim
        raise ShapeError(f"bias must be [{channels}] or [{channels}{ones}], one per filter: got bias{list(bias)}")
    problem = ConvProblem(
        N, C, K, size, window, groups, dtype, layout, weight_layout, bias, activation, precision, batched
    )
    check_bytes("the output y", problem.dims("y"), ITEMSIZE[dtype])
    check_bytes("x", problem.dims("x") if transposed else (1,), ITEMSIZE[dtype])
    return problem


def _check_words(layout: Any, weight_layout: Any, activation: Any, precision: Any) -> str:
    one_of("layout", layout, LAYOUTS)
    one_of("weight_layout", weight_layout, (None, *WEIGHT_LAYOUTS))
    one_of("activation", activation, (None, *ACTIVATIONS))
    one_of("precision", precision, (None, *PRECISIONS))
    return weight_layout or OWN_WEIGHTS[layout]


def split_shape(name: str, shape: Ints, ndim: int, layout: str) -> tuple[bool, int, int, Ints]:
    """(has a batch axis, batch, channels, spatial extents) of an activation's shape."""
    if len(shape) not in (ndim + 1, ndim + 2):
        axes = "spatial axes " + ", ".join(SPATIAL[-ndim:]) if ndim <= 3 else f"{ndim} spatial axes"
        raise ShapeError(
            f"{name} must have {ndim + 2} axes ({layout} with {axes}), or {ndim + 1} without a batch: "
            f"got {name}{list(shape)}"
        )
    batched = len(shape) == ndim + 2
    N = shape[0] if batched else 1
    rest = shape[1:] if batched else shape
    C, size = (rest[0], rest[1:]) if layout == "NCHW" else (rest[-1], rest[:-1])
    if min(*size, C) < 1 or N < 0:
        raise ShapeError(f"only the batch may be empty: got {name}{list(shape)} ({layout})")
    return batched, N, C, size


@memoised
def conv_transpose_problem(
    ndim: int, x_shape: Ints, w_shape: Ints, bias: Ints | None, stride: Any, padding: Any, output_padding: Any,
    groups: Any, dilation: Any, dtype: str, layout: Any, weight_layout: Any, activation: Any, precision: Any,
) -> ConvProblem:  # fmt: skip
    """The forward problem whose dgrad is this transposed convolution: its y is our x."""
    weight_layout = _check_words(layout, weight_layout, activation, precision)
    batched, N, K, size = split_shape("x", x_shape, ndim, layout)
    if len(w_shape) != ndim + 2:
        raise ShapeError(f"w must have {ndim + 2} axes ({weight_layout}): got w{list(w_shape)}")
    at_k, at_c, at_r = {"OIHW": (0, 1, 2), "OHWI": (0, -1, 1), "HWIO": (-1, -2, 0)}[weight_layout]
    groups = as_int("groups", groups, 1)
    got = f"got x{list(x_shape)}, w{list(w_shape)}"
    if w_shape[at_k] != K:
        raise ShapeError(f"w of a transposed convolution must have C={K} input channels, it has {w_shape[at_k]}: {got}")
    C, ksize = w_shape[at_c] * groups, w_shape[at_r : at_r + ndim]
    stride, dilation = as_ints("stride", stride, ndim, 1), as_ints("dilation", dilation, ndim, 1)
    extra = as_ints("output_padding", output_padding, ndim, 0)
    ksize = as_ints("ksize", ksize, ndim, 1)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(ksize, dilation, strict=True))
    pads = _transposed_pads(padding, extent, stride)
    for e, s, d in zip(extra, stride, dilation, strict=True):
        if e >= max(s, d):
            raise ShapeError(f"output_padding={e} must be smaller than stride={s} or dilation={d}")
    out = tuple(
        (n - 1) * s + e - low - high + more
        for n, s, e, (low, high), more in zip(size, stride, extent, pads, extra, strict=True)
    )
    if min(out) < 1:
        raise ShapeError(f"the transposed output would be {list(out)}: padding {padding!r} takes all of it; {got}")
    spatial = (C, *out) if layout == "NCHW" else (*out, C)
    return conv_problem(
        ndim, ((N,) if batched else ()) + spatial, w_shape, bias, stride, pads, dilation, groups, dtype,
        layout, weight_layout, activation, "floor", precision, True,
    )  # fmt: skip


def _transposed_pads(padding: Any, extent: Ints, stride: Ints) -> Pads:
    """`"same"` of a transposed convolution makes the output size * stride, as TensorFlow."""
    if isinstance(padding, str) and padding in ("same", "same_lower"):
        totals = [max(e - s, 0) for e, s in zip(extent, stride, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
        return tuple(pads if padding == "same" else [(high, low) for low, high in pads])
    return make_pads(padding, (1,) * len(extent), extent, stride)


# ---------------------------------------------------------------- pooling


@dataclass(frozen=True)
class PoolProblem:
    """Pooling of x[N,C,size] to y[N,C,out] and its gradients.

    Regular windows have a `window`; adaptive ones have `bins` (their output extents) and no window.
    """

    N: int
    C: int
    size: Ints
    window: Window | None
    bins: Ints | None = None
    dtype: str = "float32"
    layout: str = "NCHW"
    count_include_pad: bool = True
    divisor: int | None = None
    p: float = 2.0
    batched: bool = True

    @property
    def ndim(self) -> int:
        return len(self.size)

    @cached_property
    def out(self) -> Ints:
        return self.bins if self.window is None else self.window.out(self.size)  # type: ignore[return-value]

    @cached_property
    def taps(self) -> int:
        """The number of cells of the largest window."""
        if self.window is not None:
            return self.window.taps
        return math.prod(max(count for _, count in self.cells(axis)) for axis in range(self.ndim))

    def step(self, axis: int) -> int:
        return 1 if self.window is None else self.window.dilation[axis]

    def cells(self, axis: int) -> list[tuple[int, int]]:
        """Per output index, the first input index that its window meets and how many it meets.

        Cells lie `step(axis)` apart. Padding is not among them.
        """
        return [(first, count) for first, count, _ in self._spans(axis)]

    def padded_counts(self, axis: int) -> list[int]:
        """Per output index, how many cells of the padded input its window meets."""
        return [padded for _, _, padded in self._spans(axis)]

    def _spans(self, axis: int) -> list[tuple[int, int, int]]:
        n = self.size[axis]
        if self.window is None:
            m = self.out[axis]
            edges = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            return [(start, stop - start, stop - start) for start, stop in edges]
        k, s, d = (getattr(self.window, name)[axis] for name in ("ksize", "stride", "dilation"))
        low, high = self.window.pad[axis]
        spans = []
        for i in range(self.out[axis]):
            start = i * s - low
            skipped = max(0, -(start // d))  # taps that fall before the input
            stop = min(k, max(0, -((start - n) // d)))  # the first tap at or past its end
            padded = min(k, max(0, -((start - n - high) // d)))
            spans.append((start + skipped * d, max(0, stop - skipped), padded))
        return spans

    def dims(self, role: str) -> Ints:
        if role == "bias":
            return (self.C,)
        return (self.N, self.C, *(self.size if role == "x" else self.out))

    def shape(self, role: str) -> Ints:
        return (self.C,) if role == "bias" else user_shape(self, role)

    def order(self, role: str) -> str:
        """The order of an operand's axes in the user's array."""
        return "C" if role == "bias" else self.layout

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in POOL_FIELDS))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        head = f"pool{self.ndim}d n={self.N} c={self.C} size={_join(self.size)}"
        if self.window is None:
            words = [f"bins={_join(self.out)}"]
        else:
            words = [f"ksize={_join(self.window.ksize)}", *_window_words(self.window, self.window.ksize)]
        default = PoolProblem(self.N, self.C, self.size, self.window)
        words += [
            f"{name}={getattr(self, name)}"
            for name in ("dtype", "layout", "count_include_pad", "divisor", "p", "batched")
            if getattr(self, name) != getattr(default, name)
        ]
        return " ".join([head, *words])

    @staticmethod
    def parse(text: str) -> PoolProblem:
        """The problem that a line such as ``pool2d n=1 c=64 size=112 ksize=3 stride=2 pad=1`` names."""
        ndim, words = _parse(text, "pool", required=("n", "c", "size"))
        layout = words.get("layout", "NCHW")
        size, C = _ints(words, "size", ndim), _number(words, "c")
        batch = (_number(words, "n"),) if _flag(words, "batched") else ()
        x_shape = batch + ((C, *size) if layout == "NCHW" else (*size, C))
        dtype, p = _dtype(words), _number(words, "p", 2.0, float)
        if "bins" in words:
            return replace(adaptive_problem(ndim, x_shape, _ints(words, "bins", ndim), dtype, layout), p=as_power(p))
        ksize = _ints(words, "ksize", ndim)
        return pool_problem(
            ndim, x_shape, ksize, _ints(words, "stride", ndim, None) or ksize, _pads(words, ndim),
            _ints(words, "dilation", ndim, 1), words.get("rounding", "floor"), dtype, layout,
            _flag(words, "count_include_pad"), _number(words, "divisor") if "divisor" in words else None, p,
        )  # fmt: skip


POOL_FIELDS = tuple(PoolProblem.__dataclass_fields__)


@memoised
def pool_problem(
    ndim: int, x_shape: Ints, ksize: Any, stride: Any, padding: Any, dilation: Any, rounding: Any, dtype: str,
    layout: Any, count_include_pad: Any = True, divisor: Any = None, p: Any = 2.0,
) -> PoolProblem:  # fmt: skip
    """Validate a pooling of shapes as users write them. Memoised."""
    one_of("layout", layout, LAYOUTS)
    batched, N, C, size = split_shape("x", x_shape, ndim, layout)
    window = make_window(size, ksize, stride, padding, dilation, rounding, pooling=True)
    if divisor is not None and as_int("divisor", divisor, -MAX_INT) == 0:
        raise ShapeError("divisor must not be 0")
    if not isinstance(count_include_pad, bool):
        raise ArgumentError(f"count_include_pad must be True or False: got {count_include_pad!r}")
    problem = PoolProblem(N, C, size, window, None, dtype, layout, count_include_pad, divisor, as_power(p), batched)
    check_bytes("the output y", problem.dims("y"), ITEMSIZE[dtype])
    return problem


def as_power(p: Any) -> float:
    """The p of an Lp norm: a finite number above 0."""
    if isinstance(p, bool | str) or not hasattr(p, "__float__"):
        raise ArgumentError(f"p must be a number above 0: got {p!r}")
    power = float(p)
    if not 0 < power < math.inf:
        raise ShapeError(f"p must be a finite number above 0: got {p!r}")
    return power


@memoised
def adaptive_problem(ndim: int, x_shape: Ints, output_size: Any, dtype: str, layout: Any) -> PoolProblem:
    """Validate an adaptive pooling: bin i of m over n cells is [floor(i*n/m), ceil((i+1)*n/m))."""
    one_of("layout", layout, LAYOUTS)
    batched, N, C, size = split_shape("x", x_shape, ndim, layout)
    items = output_size if isinstance(output_size, tuple) else (output_size,) * ndim
    if len(items) != ndim:
        raise ShapeError(f"output_size must be an int or {ndim} ints or Nones: got {output_size!r}")
    bins = tuple(n if m is None else as_int("output_size", m, 1) for m, n in zip(items, size, strict=True))
    problem = PoolProblem(N, C, size, None, bins, dtype, layout, batched=batched)
    check_bytes("the output y", problem.dims("y"), ITEMSIZE[dtype])
    return problem


@memoised
def unpool_problem(
    ndim: int, y_shape: Ints, ksize: Any, stride: Any, padding: Any, output_size: Any, dtype: str, layout: Any
) -> PoolProblem:
    """The pooling that max unpooling undoes: its output is y, its input what unpooling fills.

    Where a value goes, its index alone says, so that only the extents of the two are kept.
    """
    one_of("layout", layout, LAYOUTS)
    batched, N, C, cells = split_shape("y", y_shape, ndim, layout)
    ksize = as_ints("ksize", ksize, ndim, 1)
    stride = ksize if stride is None else as_ints("stride", stride, ndim, 1)
    pads = _transposed_pads(padding, ksize, stride)
    _check_pool_pads(padding, pads, ksize, ksize)
    size = tuple((n - 1) * s - lo - hi + k for n, s, k, (lo, hi) in zip(cells, stride, ksize, pads, strict=True))
    if output_size is not None:
        size = as_shape("output_size", output_size)
        if len(size) == len(y_shape):
            given = split_shape("output_size", size, ndim, layout)
            if given[:3] != (batched, N, C):
                raise ShapeError(f"output_size {list(size)} must keep the batch and channels of y{list(y_shape)}")
            size = given[3]
    if len(size) != ndim or min(size) < 1:
        raise ShapeError(f"output_size must be {ndim} extents of at least 1, or the whole shape: got {list(size)}")
    problem = PoolProblem(N, C, size, None, cells, dtype, layout, batched=batched)
    check_bytes("the output", problem.dims("x"), ITEMSIZE[dtype])
    return problem


# ---------------------------------------------------------------- activations


@dataclass(frozen=True)
class ActivationProblem:
    """An activation, or its gradient, over an array of any shape."""

    activation: str
    size: Ints
    dtype: str

    def dims(self, role: str) -> Ints:
        return self.size

    shape = dims

    def order(self, role: str) -> str:
        return "any"


# ---------------------------------------------------------------- signals


@dataclass(frozen=True)
class SignalProblem:
    """An N-D correlation or convolution of in1 with in2, in SciPy's meaning.

    ``flip`` is True for convolution; ``start`` is where the result begins in the full output. Of an even
    in2, mode "same" takes the lower middle as the centre, or the upper one as SciPy's correlate2d does.
    """

    shape1: Ints
    shape2: Ints
    dtype: str
    flip: bool
    mode: str
    method: str = "auto"
    boundary: str = "fill"
    upper: bool = False

    @property
    def full(self) -> Ints:
        return tuple(a + b - 1 for a, b in zip(self.shape1, self.shape2, strict=True))

    @cached_property
    def out(self) -> Ints:
        if self.mode == "full":
            return self.full
        if self.mode == "same":
            return self.shape1
        return tuple(abs(a - b) + 1 for a, b in zip(self.shape1, self.shape2, strict=True))

    @property
    def start(self) -> Ints:
        if self.mode == "full":
            return (0,) * len(self.shape1)
        if self.mode == "same":
            return tuple((f - a + self.upper) // 2 for f, a in zip(self.full, self.shape1, strict=True))
        return tuple(min(a, b) - 1 for a, b in zip(self.shape1, self.shape2, strict=True))

    @property
    def macs(self) -> int:
        return math.prod(self.out) * math.prod(self.shape2)

    def dims(self, role: str) -> Ints:
        return {"in1": self.shape1, "in2": self.shape2}.get(role, self.out)

    shape = dims

    def order(self, role: str) -> str:
        return "any"

    def __str__(self) -> str:
        name = "convolve" if self.flip else "correlate"
        words = [f"{name} in1={_join(self.shape1)} in2={_join(self.shape2)} mode={self.mode} dtype={self.dtype}"]
        words += [
            f"{n}={v}" for n, v, d in (("method", self.method, "auto"), ("boundary", self.boundary, "fill")) if v != d
        ]
        return " ".join(words)


@memoised
def signal_problem(
    shape1: Ints, shape2: Ints, dtype: str, flip: bool, mode: Any, method: Any = "auto", boundary: Any = "fill",
    upper: bool = False,
) -> SignalProblem:  # fmt: skip
    one_of("mode", mode, MODES)
    one_of("method", method, METHODS)
    one_of("boundary", boundary, BOUNDARIES)
    got = f"got in1{list(shape1)}, in2{list(shape2)}"
    if len(shape1) != len(shape2):
        raise ShapeError(f"in1 and in2 must have the same number of axes: {got}")
    if 0 in shape1 or 0 in shape2:
        raise ShapeError(f"in1 and in2 must not be empty: {got}")
    pairs = list(zip(shape1, shape2, strict=True))
    if mode == "valid" and any(a < b for a, b in pairs) and any(a > b for a, b in pairs):
        raise ShapeError(f"mode='valid' needs one input at least as large as the other along every axis: {got}")
    problem = SignalProblem(shape1, shape2, dtype, flip, mode, method, boundary, upper)
    check_bytes("the result", problem.out, ITEMSIZE[dtype])
    return problem


# ---------------------------------------------------------------- the text form


def _join(values: Ints) -> str:
    return "x".join(map(str, values))


def _window_words(window: Window, stride: Ints) -> list[str]:
    words = []
    if window.stride != stride:
        words.append(f"stride={_join(window.stride)}")
    if any(low or high for low, high in window.pad):
        words.append("pad=" + "x".join(str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in window.pad))
    if any(d != 1 for d in window.dilation):
        words.append(f"dilation={_join(window.dilation)}")
    if window.rounding != "floor":
        words.append(f"rounding={window.rounding}")
    return words


def _parse(text: str, family: str, required: tuple[str, ...]) -> tuple[int, dict[str, str]]:
    head, *items = text.split() or [""]
    if head not in (f"{family}1d", f"{family}2d", f"{family}3d"):
        raise ShapeError(f"a problem begins with {family}1d, {family}2d or {family}3d: got {text!r}")
    pairs = [item.partition("=") for item in items]
    known = WORDS[family]
    for name, equals, value in pairs:
        if name not in known or not equals or not value:
            raise ShapeError(
                f"{name + equals + value!r} is no word of a {family} problem ({', '.join(known)}): {text!r}"
            )
    words = {name: value for name, _, value in pairs}
    missing = [name for name in required if name not in words]
    if missing:
        raise ShapeError(f"the problem lacks {', '.join(missing)}: {text!r}")
    return int(head[-2]), words


_COMMON = ("n", "c", "size", "ksize", "stride", "pad", "dilation", "rounding", "dtype", "layout", "batched")
WORDS = {
    "conv": (*_COMMON, "k", "groups", "weight_layout", "activation", "precision", "bias"),
    "pool": (*_COMMON, "bins", "count_include_pad", "divisor", "p"),
}


def _ints(words: dict[str, str], name: str, ndim: int, default: int | None = None) -> Any:
    if name not in words:
        return None if default is None else (default,) * ndim
    return _per_axis(words[name], name, ndim, int)


def _number(words: dict[str, str], name: str, default: Any = None, convert: Callable[[str], Any] = int) -> Any:
    if name not in words:
        return default
    try:
        return convert(words[name])
    except ValueError:
        raise ShapeError(f"{name}={words[name]} is no number") from None


def _flag(words: dict[str, str], name: str) -> bool:
    return bool(one_of(name, words.get(name, "True"), ("True", "False")) == "True")


def _dtype(words: dict[str, str]) -> str:
    return str(one_of("dtype", words.get("dtype", "float32"), tuple(ITEMSIZE)))


def _pads(words: dict[str, str], ndim: int) -> Pads:
    def pair(text: str) -> tuple[int, int]:
        low, _, high = text.partition(":")
        return int(low), int(high or low)

    return _per_axis(words.get("pad", "0"), "pad", ndim, pair)


def _per_axis(text: str, name: str, ndim: int, convert: Callable[[str], _T]) -> tuple[_T, ...]:
    try:
        items = tuple(convert(item) for item in text.split("x"))
    except ValueError:
        raise ShapeError(f"{name}={text} is not ints joined by 'x'") from None
    if len(items) not in (1, ndim):
        raise ShapeError(f"{name}={text} must have 1 or {ndim} values")
    return items * ndim if len(items) == 1 else items
