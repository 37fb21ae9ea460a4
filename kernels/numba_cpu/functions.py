"""exp, tanh and erfc as sums and products, so that loops over them become vectors.

From S. L. Moshier's Cephes library, within 2 ulp; erfc of float64 is the C library's. A NaN stays one.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from fastconv.kernels.numba_cpu.memory import float_of_bits


def power_of_two(kind, n):
    """2**n as a float of `kind`, for n in the range of its exponent."""
    raise NotImplementedError("only inside kernels")


@overload(power_of_two)
def _power_of_two(kind, n):
    if kind == types.float32:
        return lambda kind, n: float_of_bits(np.uint32(n + 127) << np.uint32(23))
    return lambda kind, n: np.int64((n + 1023) << 52).view(np.float64)


def exponential(x):
    """exp(x): with k = round(x / log 2), 2**k times a polynomial in x - k log 2."""
    raise NotImplementedError("only inside kernels")


@overload(exponential)
def _exponential(x):
    if x == types.float32:
        f = np.float32
        low, high, round_, per, big, small = map(f, (-104, 89, 12582912, 1.44269504, 0.693359375, -2.12194440e-4))
        c5, c4, c3, c2, c1, c0 = map(
            f, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
        )
        one, integer = f(1), np.int32

        def exp32(x):
            t = low if x < low else (high if x > high else x)
            k = (t * per + round_) - round_
            r = t - k * big - k * small
            p = (((((c5 * r + c4) * r + c3) * r + c2) * r + c1) * r + c0) * r * r + r + one
            n = integer(k)
            half = n >> 1  # in two steps: 2**k itself may be no float
            return x if x != x else p * power_of_two(x, half) * power_of_two(x, n - half)

        return exp32

    def exp64(x):
        t = -746.0 if x < -746.0 else (710.0 if x > 710.0 else x)
        k = (t * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0
        r = t - k * 6.93145751953125e-1 - k * 1.42860682030941723212e-6
        s = r * r
        p = r * ((1.26177193074810590878e-4 * s + 3.02994407707441961300e-2) * s + 9.99999999999999999910e-1)
        q = ((3.00198505138664455042e-6 * s + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1) * s + 2.0
        n = np.int64(k)
        half = n >> 1
        value = 1.0 + 2.0 * p / (q - p)
        return x if x != x else value * power_of_two(x, half) * power_of_two(x, n - half)

    return exp64


def hyperbolic_tangent(x):
    raise NotImplementedError("only inside kernels")


@overload(hyperbolic_tangent)
def _hyperbolic_tangent(x):
    if x == types.float32:
        f = np.float32
        limit, one, two = f(0.625), f(1), f(2)
        c = tuple(map(f, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)))

        def tanh32(x):
            size, s = abs(x), x * x
            near = x + x * s * ((((c[0] * s + c[1]) * s + c[2]) * s + c[3]) * s + c[4])
            far = one - two / (exponential(size + size) + one)
            return near if size < limit else (-far if x < 0 else far)

        return tanh32

    def tanh64(x):
        size, s = abs(x), x * x
        p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
        q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
        far = 1.0 - 2.0 / (exponential(size + size) + 1.0)
        return x + x * s * (p / q) if size < 0.625 else (-far if x < 0 else far)

    return tanh64


def error_complement(x):
    """erfc(x)."""
    raise NotImplementedError("only inside kernels")


@overload(error_complement)
def _error_complement(x):
    if x != types.float32:
        return lambda x: math.erfc(x)
    f = np.float32
    one, two = f(1), f(2)
    e = tuple(map(f, (7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2,
                      1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710)))  # fmt: skip
    m = tuple(map(f, (2.326819970068386e-2, -1.387039388740657e-1, 3.687424674597105e-1, -5.824733027278666e-1,
                      6.210004621745983e-1, -4.944515323274145e-1, 3.404879937665872e-1, -2.741127028184656e-1,
                      5.638259427386472e-1)))  # fmt: skip
    t = tuple(map(f, (-1.047766399936249e1, 1.297719955372516e1, -7.495518717768503, 2.921019019210786,
                      -1.015265279202700, 4.218463358204948e-1, -2.820767439740514e-1,
                      5.641895067754075e-1)))  # fmt: skip

    def erfc32(x):
        size, s = abs(x), x * x
        near = one - x * ((((((e[0] * s + e[1]) * s + e[2]) * s + e[3]) * s + e[4]) * s + e[5]) * s + e[6])
        q = one / (one if size < one else size)
        y = q * q
        middle = ((((((m[0] * y + m[1]) * y + m[2]) * y + m[3]) * y + m[4]) * y + m[5]) * y + m[6]) * y + m[7]
        tail = ((((((t[0] * y + t[1]) * y + t[2]) * y + t[3]) * y + t[4]) * y + t[5]) * y + t[6]) * y + t[7]
        far = exponential(-s) * q * (middle * y + m[8] if size < two else tail)
        return near if size < one else (two - far if x < 0 else far)

    return erfc32
