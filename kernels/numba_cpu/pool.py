"""What the pooling kernels share: the order of values, folds over a window, and the windows themselves.

An operand is a tuple (address, strides of N, C and three spatial axes A, B, W in elements); 1-D and
2-D have unit axes. Windows come as one table per axis, rows (first cell, number of cells) per output
index, cells lying `step` apart. `X` is how an operand is stored, `S` the storage that is computed in.
Scratch is `work_bytes` per thread at `work`.

Loops take a `Kind`, so that one nest serves every kind of pooling and compiles to straight code.
"""

import numpy as np
from numba import njit, types
from numba.core.imputils import lower_constant
from numba.extending import models, overload, register_model, typeof_impl

from fastconv.kernels.numba_cpu.memory import FLOATS, StorageType, computed_name, store


def lowest(storage):
    """What max pooling pads with: minus infinity, or an integer's minimum."""
    raise NotImplementedError("only inside kernels")


def number(storage, value):
    """`value` in the type that a stored dtype is computed in."""
    raise NotImplementedError("only inside kernels")


@overload(lowest)
def _lowest(storage):
    real = storage.stored in (*FLOATS, "float64")
    bound = -np.inf if real else np.iinfo(storage.stored).min
    value = getattr(np, computed_name(storage.stored))(bound)
    return lambda storage: value


@overload(number)
def _number(storage, value):
    computed = getattr(np, computed_name(storage.stored))
    return lambda storage, value: computed(value)


@njit(nogil=True)
def larger(kept, value):
    """max in which a NaN is the largest and stays."""
    rest = kept if kept > value else value
    return kept if kept != kept else rest


@njit(nogil=True)
def beats(value, kept):
    """Whether `value` replaces an earlier maximum: ties go to the first, and so do NaNs."""
    return value > kept or (value != value and kept == kept)


# ---------------------------------------------------------------- kinds: what loops are compiled for


class Kind:
    """A word that a kernel's loops specialise on; a function passed in its place could not be cached on disk."""

    def __init__(self, name):
        self.name = name


class KindType(types.Type):
    def __init__(self, name):
        self.kind = name
        super().__init__(name=f"Kind({name})")


register_model(KindType)(models.OpaqueModel)


@typeof_impl.register(Kind)
def _typeof_kind(value, context):
    return KindType(value.name)


@lower_constant(KindType)
@lower_constant(StorageType)
def _constant(context, builder, typ, value):
    return context.get_dummy_value()


MAX, SUM, SIZE, POWER = map(Kind, ("max", "sum", "size", "power"))


def fold(kind, total, value, scale, p):
    """One more value of a window: the maximum, the sum, the largest size, or the sum of (|value| / scale)^p."""
    raise NotImplementedError("only inside kernels")


@overload(fold)
def _fold(kind, total, value, scale, p):
    return {
        "max": lambda kind, total, value, scale, p: larger(total, value),
        "sum": lambda kind, total, value, scale, p: total + value,
        "size": lambda kind, total, value, scale, p: larger(total, abs(value)),
        "power": lambda kind, total, value, scale, p: total + power(abs(value) / scale, p),
    }[kind.kind]


@njit(nogil=True)
def power(base, p):
    if p == 2:
        return base * base
    if p == 1:
        return base
    return base ** type(base)(p)


# ---------------------------------------------------------------- windows


@njit(nogil=True)
def touching(table, step, low, high):
    """The range of outputs whose windows meet a cell of [low, high)."""
    start, stop = len(table), 0
    for i in range(len(table)):
        first, count = table[i, 0], table[i, 1]
        if count > 0 and first < high and first + (count - 1) * step >= low:
            start, stop = min(start, i), i + 1
    return start, stop


@njit(nogil=True)
def clip(first, count, step, low, high):
    """The taps [t0, t1) of a window whose cells lie in [low, high)."""
    t0 = max(0, -((first - low) // step))
    t1 = min(count, -((first - high) // step))
    return t0, t1


@njit(nogil=True)
def fill(S, address, count, value):
    for i in range(count):
        store(S, address, i, value)
