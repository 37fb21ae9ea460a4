"""Windows of a pooling along one axis: which cells an output meets, and which outputs meet a cell.

A regular window has cells ``o * stride - pad + r * dilation``, r < ksize, of the n in the input. Adaptive bin o
of m has the cells from ``floor(o * n / m)`` to ``ceil((o + 1) * n / m)``; a stride of 0 says so.
"""

from __future__ import annotations

from fastconv.kernels.numba_cuda.target import device


@device
def cells(o, n, m, ksize, stride, pad, dilation):
    """(first cell, how many) of output o; padding is not among them."""
    if stride == 0:
        first = o * n // m
        return first, -(-(o + 1) * n // m) - first
    start = o * stride - pad
    skipped = max(0, -(start // dilation))  # taps before the input
    stop = min(ksize, -((start - n) // dilation))  # the first tap past its end
    return start + skipped * dilation, max(0, stop - skipped)


@device
def outputs(h, n, m, ksize, stride, pad, dilation):
    """(first, end) of the outputs whose windows span cell h; dilated ones may pass over it."""
    if stride == 0:
        return h * m // n, -(-(h + 1) * m // n)
    return max(0, -(((ksize - 1) * dilation - h - pad) // stride)), min(m, (h + pad) // stride + 1)


@device
def meets(h, o, stride, pad, dilation):
    """Whether cell h, which the window of output o spans, is one of its cells."""
    return stride == 0 or (h + pad - o * stride) % dilation == 0


@device
def skipped(first, o, stride, pad, dilation):
    """How many taps of output o lie before its first cell in the input."""
    return 0 if stride == 0 else (first - o * stride + pad) // dilation


@device
def tap(h, o, n, m, stride, pad, dilation):
    """The tap by which output o, whose window spans cell h, meets it; -1 where it passes over it."""
    if stride == 0:
        return h - o * n // m
    into = h + pad - o * stride
    return into // dilation if into % dilation == 0 else -1


@device
def padded(o, n, m, ksize, stride, pad, high, dilation):
    """How many cells of the padded input output o meets."""
    if stride == 0:
        return -(-(o + 1) * n // m) - o * n // m
    start = o * stride - pad
    return min(ksize, max(0, -((start - n - high) // dilation)))
