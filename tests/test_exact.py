"""Every op on every named problem: exact on integers, within its rounding bound on floats.

Each body also poisons the output, runs twice for the same bits, and sees that inputs are untouched
(`selftest.settled`); what fails prints the line that runs it again.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.testing import cases, selftest

CONV_OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose")
FLOATS = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", cases.CONV)
@pytest.mark.parametrize("op", CONV_OPS)
def test_conv(backend, op, name, dtype):
    selftest.check_conv(backend, op, cases.conv(name, dtype=dtype))


@pytest.mark.parametrize("name", cases.CONV_MID)
@pytest.mark.parametrize("op", CONV_OPS)
def test_conv_mid(backend, op, name):
    selftest.check_conv(backend, op, cases.conv(name))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["mid_3x3_bias_relu", "mid_1x1", "mid_depthwise", "mid_nhwc"])
@pytest.mark.parametrize("op", CONV_OPS)
def test_conv_mid_dtypes(backend, op, name, dtype):
    selftest.conv_exact(backend, op, cases.conv(name, dtype=dtype))


@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")])
@pytest.mark.parametrize("name", [*cases.CONV, "mid_3x3_bias_relu", "mid_1x1", "mid_depthwise"])
@pytest.mark.parametrize("op", CONV_OPS)
def test_conv_of_bytes(backend, op, name, dtypes):
    """8-bit integers of every value and sign give int32, exactly."""
    selftest.conv_exact(backend, op, cases.conv(name, dtype="int32"), dtypes)


@pytest.mark.parametrize("precision", [None, "ieee", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["dense", "depthwise", "pointwise", "mid_3x3", "mid_1x1", "mid_5x5"])
@pytest.mark.parametrize("op", CONV_OPS)
def test_precision(backend, op, name, precision):
    """None keeps the promise of 1e-5, "ieee" the bound of float32 sums, the others that of rounded factors."""
    selftest.conv_bounded(backend, op, cases.conv(name, precision=precision))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", selftest.ACTIVATIONS)
def test_activation(backend, activation, dtype):
    problem = cases.ConvProblem.parse(f"conv1d n=2 c=3 size=97 k=3 ksize=1 groups=3 activation={activation}")
    selftest.check_activation(backend, "activation", selftest.replace(problem, dtype=dtype))


@pytest.mark.parametrize("activation", selftest.ACTIVATIONS)
@pytest.mark.parametrize("name", ["bias", "depthwise", "pointwise", "nhwc", "conv3d", "grouped", "mid_3x3"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_transpose"])
def test_fused_activation(backend, op, name, activation):
    selftest.conv_bounded(backend, op, cases.conv(name, activation=activation))


@pytest.mark.parametrize("dtype", [*FLOATS, "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("name", cases.POOL)
def test_max_pool(backend, name, dtype):
    selftest.check_maxpool(backend, "max_pool", cases.pool(name, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", cases.POOL)
def test_avg_pool(backend, name, dtype):
    selftest.check_avgpool(backend, "avg_pool", cases.pool(name, dtype=dtype))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [name for name in cases.POOL if cases.pool(name).window is not None])
def test_lp_pool(backend, name, dtype, p):
    selftest.check_lppool(backend, "lp_pool", cases.pool(name, dtype=dtype, p=p))


@pytest.mark.parametrize("check", [selftest.check_maxpool, selftest.check_avgpool])
@pytest.mark.parametrize("name", cases.POOL_MID)
def test_pool_mid(backend, name, check):
    check(backend, check.__name__, cases.pool(name))


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
@pytest.mark.parametrize("name", ["halve", "overlap", "padded", "nhwc", "nhwc_unbatched", "pool1d", "pool3d"])
def test_max_unpool(backend, name, dtype):
    selftest.check_unpool(backend, "max_unpool", cases.pool(name, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", ["halve", "nhwc", "pool1d", "pool3d", "mid_nhwc", "empty_batch"])
def test_bias_grad(backend, case, dtype):
    selftest.check_bias_grad(backend, "bias_grad", str(cases.pool(case, dtype=dtype)))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("c", "k", "ksize", "stride", "groups"),
    [(8, 2, 1, 1, 1), (8, 2, 1, 2, 1), (8, 2, 3, 2, 1), (8, 8, 3, 1, 8), (16, 16, 3, 1, 1)],
)
def test_long_sums(c, k, ksize, stride, groups, layout):
    """A gradient to the weights sums all pixels: terms of one sign that are added one by one break the bound of 1e-5.

    One by one, these 360,000 leave 2e-5 to 5e-5 of the sum; runs that are added up first leave 1e-7 to 1.5e-6.
    """
    rng = np.random.default_rng(0)
    pixels = (600 - ksize) // stride + 1
    x, dy = rng.random((1, c, 600, 600), np.float32), rng.random((1, k, pixels, pixels), np.float32)
    last = (pixels - 1) * stride + 1
    taps = [x[:, :, i : i + last : stride, j : j + last : stride] for i in range(ksize) for j in range(ksize)]
    wide = dy.reshape(groups, k // groups, -1).astype(float)
    sums = [np.einsum("gkp,gcp->gkc", wide, tap.reshape(groups, c // groups, -1).astype(float)) for tap in taps]
    expected = np.stack(sums, -1).reshape(k, c // groups, ksize, ksize)
    if layout == "NHWC":
        x, dy = (np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (x, dy))
        expected = np.transpose(expected, (2, 3, 1, 0))
    dw = fastconv.conv2d_wgrad(
        dy, x, expected.shape, stride, groups=groups, layout=layout, backend="cpu"
    )  # fmt: skip
    assert np.abs(dw - expected).max() <= 1e-5 * expected.max()
