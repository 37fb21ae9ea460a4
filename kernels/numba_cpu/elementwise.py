"""Activations and their derivatives, one element at a time, for any kernel to inline.

Codes follow the order of ``fastconv.problem.ACTIVATIONS``, 0 being none. Floats compute in their own
type; integers know none, relu and relu6. A NaN stays one.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

NONE, RELU, RELU6, LEAKY_RELU, SIGMOID, TANH, GELU, SILU = range(8)


def activate(code, value):
    """The activation `code` of one value, in the value's type."""
    raise NotImplementedError("only inside kernels")


@overload(activate)
def _activate(code, value):
    if isinstance(value, types.Integer):
        return _activate_int
    real = np.float32 if value == types.float32 else np.float64
    slope, half, one, root_half = real(0.01), real(0.5), real(1.0), real(math.sqrt(0.5))
    zero, six, lowest = real(0.0), real(6.0), real(-np.inf)

    def activate_float(code, value):
        if code == RELU:
            return zero if value <= zero else value
        if code == RELU6:
            return zero if value <= zero else (six if value >= six else value)
        if code == LEAKY_RELU:
            return slope * value if value <= zero else value
        if code == SIGMOID:
            return one / (one + math.exp(-value))
        if code == TANH:
            return math.tanh(value)
        if code == GELU:  # x * Phi(x)
            return zero if value == lowest else value * half * math.erfc(-root_half * value)
        if code == SILU:  # x * sigmoid(x)
            return zero if value == lowest else value / (one + math.exp(-value))
        return value

    return activate_float


def _activate_int(code, value):
    if code == NONE:
        return value
    if value <= 0:
        return type(value)(0)
    return type(value)(6) if code == RELU6 and value > 6 else value
