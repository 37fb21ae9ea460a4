"""Arrays: their kinds (NumPy, DLPack, CUDA), dtype promotion, canonical views, and ``out=``.

What lies in a GPU's memory is taken and given back by `fastconv.gpu_arrays`.

Every backend sees an operand in canonical axes, ``[N, C, spatial]`` or ``[K, C, ksize]``: a layout
is a set of strides, so NHWC arrays and NCHW views over NHWC memory need no copy and no code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv import gpu_arrays
from fastconv.errors import DTypeError, ShapeError
from fastconv.problem import Ints

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
COMPLEX = ("complex64", "complex128")
OPTIONAL = frozenset(("bias", "tbias", "indices"))  # the operands that may be None
BIASES = ("bias", "tbias")
BYTES = ("int8", "uint8")

# ---------------------------------------------------------------- kinds


def kind_of(array: Any) -> str:
    """``"numpy"``, ``"cuda"`` (anything in a GPU's memory) or ``"dlpack"`` (a CPU array of another library)."""
    if isinstance(array, np.ndarray):
        if isinstance(array, np.ma.MaskedArray):
            raise DTypeError("masked arrays are not taken, their mask would be lost: pass x.filled(0)")
        return "numpy"
    if not hasattr(type(array), "__dlpack__") and hasattr(array, "__cuda_array_interface__"):
        return "cuda"
    if hasattr(array, "__dlpack_device__"):
        device = array.__dlpack_device__()[0]
        if device in (2, 3, 13):  # kDLCUDA, kDLCUDAHost, kDLCUDAManaged
            return "cuda"
        if device == 1:
            return "dlpack"
        raise DTypeError(f"an array on DLPack device type {int(device)} is not taken: copy it to the CPU or a CUDA GPU")
    raise DTypeError(
        f"expected an array (NumPy, CuPy, or one that speaks DLPack), got {type(array).__name__}; "
        "wrap it in numpy.asarray"
    )


Wrap = Callable[[Any], Any]


class Operands:
    """The arrays of one call as NumPy's or CuPy's, and how to give a result back in the caller's kind."""

    __slots__ = ("arrays", "kind", "wrap")

    def __init__(self, arrays: tuple[Any, ...], kind: str, wrap: Wrap | None):
        self.arrays, self.kind, self.wrap = arrays, kind, wrap


def admit(names: Sequence[str], arrays: Sequence[Any]) -> Operands:
    """Take the arrays of one call (None where an optional one was left out); all of one kind.

    Raises
    ------
    DTypeError
        For what is no array, and for arrays of different kinds or devices in one call.
    """
    for at, array in enumerate(arrays):
        if type(array) is not np.ndarray and (array is not None or names[at] not in OPTIONAL):
            break
    else:
        return Operands(tuple(arrays), "numpy", None)
    for name, array in zip(names, arrays, strict=True):
        if array is None and name not in OPTIONAL:
            raise DTypeError(f"{name} must be an array: got None")
    present = [(name, array, kind_of(array)) for name, array in zip(names, arrays, strict=True) if array is not None]
    origins = {_origin(array) for _, array, _ in present}
    kinds = {kind for _, _, kind in present}
    if len(kinds) > 1 or len(origins) > 1:
        listing = ", ".join(
            f"{name}: {type(array).__module__}.{type(array).__qualname__}" for name, array, _ in present
        )
        raise DTypeError(f"all arrays of a call must be of one kind, on one device: got {listing}; convert one of them")
    kind, origin = kinds.pop(), origins.pop()
    if kind == "cuda":
        devices = {gpu_arrays.device_number(array) for _, array, _ in present}
        if len(devices) > 1:
            raise DTypeError(f"all arrays of a call must be on one GPU: got them on {sorted(devices)}")
        return Operands(tuple(arrays), kind, None)
    views = tuple(None if array is None else to_numpy(array) for array in arrays)
    return Operands(views, "numpy", None if kind == "numpy" else _wrapper(origin))


def take_cuda(operands: Operands) -> Operands:
    """Arrays on a GPU as backends see them: CuPy's, or by address where there is no CuPy."""
    present = [array for array in operands.arrays if array is not None]
    views = tuple(None if array is None else gpu_arrays.take(array) for array in operands.arrays)
    return Operands(views, "cuda", gpu_arrays.wrapper(_origin(present[0])))


def as_view(array: Any, kind: str) -> Any:
    """A result that was given out, as an operand of a later call."""
    return to_numpy(array) if kind == "numpy" else gpu_arrays.take(array)


def module_of(array: Any) -> Any:
    """NumPy, or CuPy for its arrays."""
    return np if isinstance(array, np.ndarray) else gpu_arrays.cupy_or_none()


def _origin(array: Any) -> str:
    """The library an array comes from: NumPy subclasses are NumPy's."""
    return "numpy" if isinstance(array, np.ndarray) else type(array).__module__.partition(".")[0]


def to_numpy(array: Any) -> np.ndarray:
    """A NumPy view of a CPU array, without a copy."""
    if isinstance(array, np.ndarray):
        return array.view(np.ndarray)
    if _origin(array) == "jaxlib":  # JAX arrays are immutable and lend their memory read-only
        return np.asarray(array)
    try:
        if str(getattr(array, "dtype", "")) == "torch.bfloat16":  # DLPack's bfloat16 has no NumPy reader
            bits: np.ndarray = np.from_dlpack(array.view(sys.modules["torch"].int16))
            return bits.view(bfloat16())
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DTypeError(f"this {type(array).__name__} cannot be read through DLPack: {error}") from error


def _wrapper(origin: str) -> Wrap:
    """How a NumPy result becomes an array of the library `origin`, sharing its memory."""
    if origin == "torch":
        torch: Any = sys.modules["torch"]

        def to_torch(result: np.ndarray) -> Any:
            if result.dtype.name == "bfloat16":
                return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(result)

        return to_torch
    if origin == "jaxlib":
        return sys.modules["jax"].numpy.asarray
    module = sys.modules[origin]
    if hasattr(module, "from_dlpack"):
        return module.from_dlpack
    raise DTypeError(f"{origin} has no from_dlpack to give its results back; pass numpy.from_dlpack(x)")


# ---------------------------------------------------------------- dtypes


@lru_cache(maxsize=1)
def bfloat16() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def dtype_of(name: str) -> np.dtype:
    return bfloat16() if name == "bfloat16" else np.dtype(name)


@lru_cache(maxsize=1024)
def conv_dtype(first: np.dtype, second: np.dtype, bias_dtype: np.dtype | None = None) -> str:
    """The dtype of a convolution of two operands and an optional bias: floats promote, int8/uint8 give int32."""
    main = [name_of(first), name_of(second)]
    bias = [] if bias_dtype is None else [name_of(bias_dtype)]
    if all(name in FLOATS for name in main + bias):
        return _promote_floats(main + bias)
    if all(name in BYTES for name in main) and all(name in (*BYTES, "int32") for name in bias):
        return "int32"
    raise DTypeError(
        f"convolution takes {', '.join(FLOATS)} or int8/uint8 (which give int32, with an int32 bias): "
        f"got {', '.join(main + bias)}; convert with astype"
    )


@lru_cache(maxsize=256)
def pool_dtype(dtype: np.dtype, ints: bool) -> str:
    name = name_of(dtype)
    if name in FLOATS or (ints and name in INTS):
        return name
    raise DTypeError(f"this pooling takes {', '.join(FLOATS)}{' and integers' if ints else ''}: got {name}")


@lru_cache(maxsize=256)
def signal_dtype(first: np.dtype, second: np.dtype) -> str:
    names = name_of(first), name_of(second)
    for name in names:
        if name not in (*FLOATS, *INTS, *COMPLEX, "bool"):
            raise DTypeError(f"correlate and convolve take numbers and bools: got {name}")
    if all(name in FLOATS for name in names):
        return _promote_floats(list(names))
    return name_of(np.promote_types(first, second))


def name_of(dtype: np.dtype) -> str:
    return str(dtype.name) if dtype.kind in "?biufcV" and dtype.names is None else str(dtype)


def _promote_floats(names: list[str]) -> str:
    """As NumPy promotes; float16 with bfloat16, which NumPy leaves open, gives float32."""
    kinds = set(names)
    if len(kinds) == 1:
        return names[0]
    return "float64" if "float64" in kinds else "float32"


# ---------------------------------------------------------------- canonical views and results


@lru_cache(maxsize=256)
def _axes(order: str, ndim: int) -> Ints | None:
    """The transposition from the user's axes to the canonical ones, or None where they agree."""
    if order in ("NHWC", "OHWI"):
        return (0, ndim - 1, *range(1, ndim - 1))
    if order == "HWIO":
        return (ndim - 1, ndim - 2, *range(ndim - 2))
    return None


def canonical(problem: Any, role: str, array: np.ndarray) -> np.ndarray:
    """The operand of that role as ``[N, C, spatial]``, ``[K, C, ksize]`` or ``[K]``: a view."""
    if problem.plain and role not in BIASES:
        return array
    order = problem.order(role)
    if order == "C":
        return array if array.ndim == 1 else array.reshape(-1)
    if role != "w" and not problem.batched:
        array = array[None]
    axes = _axes(order, array.ndim)
    return array if axes is None else array.transpose(axes)


def native(array: np.ndarray) -> np.ndarray:
    """The same values in native byte order and aligned; a copy only where they were not."""
    if type(array) is not np.ndarray or (array.dtype.isnative and array.flags.aligned):
        return array
    return array.astype(array.dtype.newbyteorder("="), copy=True)


def empty(shape: Ints, dtype: np.dtype, like: Any, follow: bool = False) -> Any:
    """An uninitialised result of the kind of `like`; with `follow`, in NHWC memory where `like` lies so."""
    last = follow and not like.flags.c_contiguous and is_channels_last(like)
    memory = (shape[0], *shape[2:], shape[1]) if last else shape
    try:
        new = np.empty(memory, dtype) if type(like) is np.ndarray else gpu_arrays.empty(memory, dtype, like)
        return new.transpose((0, len(shape) - 1, *range(1, len(shape) - 1))) if last else new
    except MemoryError as error:
        raise ShapeError(f"the result {list(shape)} of {dtype} does not fit into memory: {error}") from error


def is_channels_last(array: np.ndarray) -> bool:
    """True for an [N, C, spatial] view whose channels lie next to each other, pixels after that."""
    if array.shape[1] == 1 or array.strides[1] != array.itemsize:
        return False
    expected = array.itemsize * array.shape[1]
    for axis in range(array.ndim - 1, 1, -1):
        if array.shape[axis] != 1 and array.strides[axis] != expected:
            return False
        expected *= array.shape[axis]
    return True


def admit_out(out: Any, operands: Operands) -> Any:
    """An ``out`` as the operands' backend sees it."""
    kind = "cuda" if kind_of(out) == "cuda" else "numpy"
    if kind != operands.kind or (kind == "numpy" and isinstance(out, np.ndarray) != (operands.wrap is None)):
        raise DTypeError(
            f"out must be of the inputs' kind and device: got {type(out).__module__}.{type(out).__qualname__}"
        )
    return as_view(out, kind)


def check_out(out: Any, shape: Ints, dtype: np.dtype, inputs: Sequence[Any]) -> None:
    """Refuse an ``out`` that is not exactly what the call returns, or that would overwrite an input."""
    if out.shape != shape:
        raise ShapeError(f"out must have the shape {list(shape)}: got out{list(out.shape)}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise DTypeError(f"out must have the dtype {dtype.name}: got {out.dtype}")
    if not getattr(out.flags, "writeable", True):
        raise ShapeError("out is read-only: pass a writable array")
    if out.size and any(stride == 0 and n > 1 for stride, n in zip(out.strides, out.shape, strict=True)):
        raise ShapeError(f"out{list(out.shape)} repeats its elements (stride 0): pass an array of its own memory")
    for array in inputs:
        if array is not None and share_memory(out, array):
            raise ShapeError("out shares memory with an input, which is never written to: pass another array")


def share_memory(a: Any, b: Any) -> bool:
    """True where two arrays have an element in common, or where that is too hard to tell."""
    if type(a) is not np.ndarray:
        a, b = gpu_arrays.addresses(a), gpu_arrays.addresses(b)
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
