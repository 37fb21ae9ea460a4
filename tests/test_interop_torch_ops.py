"""The functions of `fastconv.interop.torch`: fastconv's results, PyTorch's rules for operators, any derivative."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.library import opcheck  # noqa: E402

import fastconv  # noqa: E402
import fastconv.interop.torch as functions  # noqa: E402
from fastconv.interop.torch import ops  # noqa: E402


def of_rank(module, name, ndim):
    return getattr(module, f"{name}{ndim}d")


def randn(*shape, form=torch.contiguous_format):
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=form).requires_grad_()


#: Per function: shapes of its tensors without the spatial extents (x's, then weights', then the bias), arguments.
CASES = {
    "conv": [((1, 2), (4, 1), (4,)), (2, "same"), {"groups": 2}],
    "conv_transpose": [((1, 4), (4, 1), (2,)), (2, [(1, 0), (0, 1), (1, 1)], 1), {"groups": 2}],
    "max_pool": [((1, 2),), (3, 2, 1), {"rounding": "ceil"}],
    "avg_pool": [((1, 2),), (3, 2, 1), {"rounding": "ceil", "count_include_pad": False}],
    "adaptive_max_pool": [((1, 2),), (3,), {}],
    "adaptive_avg_pool": [((1, 2),), (3,), {}],
    "max_unpool": [((1, 1),), (None, 2), {}],
}


def prepared(name, ndim):
    """The tensors of a case that have gradients, and a call of its function, in any module, on such tensors."""
    shapes, arguments, options = CASES[name]
    sizes = [(4, 5, 3)[:ndim], (3,) * ndim, ()]
    tensors = [randn(*shape, *size) for shape, size in zip(shapes, sizes, strict=False)]
    if isinstance(arguments[-2:][0], list):
        arguments = (arguments[0], arguments[1][:ndim], *arguments[2:])
    if name == "max_unpool":
        cells = tensors[0].numel()
        arguments = ((torch.randperm(2**ndim * cells)[:cells]).view(tensors[0].shape), *arguments[1:])
    return tensors, lambda module, *given: of_rank(module, name, ndim)(*given, *arguments, **options)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_function_is_fastconvs(name, ndim):
    tensors, call = prepared(name, ndim)
    expected = call(fastconv, *(tensor.detach() for tensor in tensors))
    torch.testing.assert_close(call(functions, *tensors).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_derivatives_to_second_order(name, ndim):
    tensors, call = prepared(name, ndim)

    def function(*given):
        return call(functions, *given)

    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


def calls(ndim, form):
    """Every operator with arguments for it."""
    x, w, b = randn(2, 4, *(5, 6, 4)[:ndim], form=form), randn(6, 2, *[3] * ndim, form=form), randn(6)
    geometry = [2] * ndim, [1, 0] * ndim, [1] * ndim, 2
    yield ops.conv, (x, w, b, *geometry)
    dy = torch.randn_like(ops.conv(x, w, b, *geometry)).requires_grad_()
    yield ops.conv_dgrad, (dy, w, list(x.shape), *geometry)
    yield ops.conv_wgrad, (dy, x, list(w.shape), *geometry)
    window = [3] * ndim, [2] * ndim, [1] * ndim
    for fprop, dgrad, arguments in (
        (ops.max_pool, ops.max_pool_dgrad, (*window, [1] * ndim, True)),
        (ops.avg_pool, ops.avg_pool_dgrad, (*window, True, False, None)),
        (ops.adaptive_max_pool, ops.adaptive_max_pool_dgrad, ([3] * ndim,)),
        (ops.adaptive_avg_pool, ops.adaptive_avg_pool_dgrad, ([3] * ndim,)),
    ):
        yield fprop, (x, *arguments)
        y, *indices = results if isinstance(results := fprop(x, *arguments), tuple) else (results,)
        dy = torch.randn_like(y).requires_grad_()
        yield dgrad, (dy, x, *indices, *arguments)
        if indices:
            yield ops.max_unpool, (dy, *indices, list(x.shape[2:]))


@pytest.mark.parametrize(
    ("ndim", "form"), [(1, torch.contiguous_format), (2, torch.channels_last), (3, torch.channels_last_3d)]
)
def test_operators_follow_pytorchs_rules(ndim, form):
    for operator, arguments in calls(ndim, form):
        opcheck(operator, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_functions_stay_whole_in_compiled_graphs(dynamic):
    def network(x, w, b):
        y = functions.max_pool2d(functions.conv2d(x, w, b, 2, "same"), 3, 2, 1)
        y = functions.conv_transpose2d(functions.avg_pool2d(y, 2), w, stride=2)
        return functions.adaptive_avg_pool2d(y, (2, None)).square().sum()

    tensors = randn(2, 3, 32, 30), randn(3, 3, 3, 3), randn(3)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = torch.autograd.grad(network(*tensors), tensors)
    for found, gradient in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_dtypes_promote_and_gradients_keep_theirs():
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.float16, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    y = functions.conv2d(x, w)
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert [y.dtype, dx.dtype, dw.dtype] == [torch.float32, torch.float16, torch.float32]
    with torch.no_grad():
        assert functions.conv2d(x.to(torch.int8), w.to(torch.int8)).dtype == torch.int32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: functions.conv2d(x[0, 0], x), "x must have 4 axes"),
        (lambda x: functions.conv2d(x, x, groups=3), "groups=3 must divide"),
        (lambda x: functions.conv2d(x, x, stride=(1, 2, 3)), "stride must be an int or 2 ints"),
        (lambda x: functions.conv2d(x, torch.ones(1, 4, 9, 9)), "the window does not fit"),
        (lambda x: functions.max_pool2d(x, 2, rounding="up"), "rounding must be one of"),
        (lambda x: functions.max_pool2d(x, 2, padding=2), "at most half of the window"),
        (lambda x: functions.max_unpool2d(x, torch.full(x.shape, 99), 1), "99"),
    ],
)
def test_errors(call, message):
    with pytest.raises(fastconv.ShapeError, match=message):
        call(torch.ones(1, 4, 5, 5))
