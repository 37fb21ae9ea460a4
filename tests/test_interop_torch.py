"""PyTorch under `patch`: the same results and gradients as without it, computed here, and what is passed on."""

from __future__ import annotations

import copy
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import fastconv  # noqa: E402
from fastconv import FastconvError  # noqa: E402
from fastconv.interop.torch import patch  # noqa: E402

SIZES = (9, 8, 7)
EXAMPLE = Path(__file__).parents[1] / "examples" / "train_torch_module.py"


def of_rank(name, ndim):
    return getattr(F, name.replace("#", f"{ndim}d"))


#: Per case: what is called for a number of spatial axes, on which shapes (x's without its spatial extents, then
#: weights' without theirs), and the operators that must have run.
CONVOLUTIONS = {
    "strided": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b, 2, 1), (2, 4), (6, 4), 3, 6),
    "dilated groups": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b, 1, 2, 2, 2), (2, 4), (6, 2), 3, 6),
    "depthwise": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b, 1, 1, 1, 4), (2, 4), (8, 1), 3, 8),
    "same": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b, padding="same"), (2, 4), (6, 4), 3, 6),
    "same, even window": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b, padding="same"), (2, 4), (6, 4), 2, 6),
    "one by one": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b), (2, 4), (6, 4), 1, 6),
    "no batch": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b), (4,), (6, 4), 3, 6),
    "empty batch": (lambda n: lambda x, w, b: of_rank("conv#", n)(x, w, b), (0, 4), (6, 4), 3, 6),
    "transposed": (lambda n: lambda x, w, b: of_rank("conv_transpose#", n)(x, w, b, 2, 1, 1, 2), (2, 4), (4, 3), 3, 6),
    "transposed, dilated": (
        lambda n: lambda x, w, b: of_rank("conv_transpose#", n)(x, w, b, dilation=2), (2, 4), (4, 3), 3, 3,
    ),
}  # fmt: skip

POOLINGS = {
    "max": lambda n: lambda x: of_rank("max_pool#", n)(x, 3, 2, 1, ceil_mode=True),
    "max, dilated, with indices": lambda n: lambda x: of_rank("max_pool#", n)(x, 2, 1, 1, 2, return_indices=True),
    "average": lambda n: lambda x: of_rank("avg_pool#", n)(x, 4, 2, 2),
    "average, padding not counted": lambda n: lambda x: of_rank("avg_pool#", n)(x, 2, 3, 1, True, False),
    "Lp": lambda n: lambda x: of_rank("lp_pool#", n)(x.abs() + 1, 2.0, 2),
    "adaptive max": lambda n: lambda x: of_rank("adaptive_max_pool#", n)(x, (3, 5, 2)[:n], return_indices=True),
    "adaptive average": lambda n: lambda x: of_rank("adaptive_avg_pool#", n)(x, (3, 5, 2)[:n]),
    "global average": lambda n: lambda x: of_rank("adaptive_avg_pool#", n)(x, 1),
    "global max": lambda n: lambda x: of_rank("adaptive_max_pool#", n)(x, 1),
    "unpooled": lambda n: (
        lambda x: of_rank("max_unpool#", n)(*of_rank("max_pool#", n)(x, 2, return_indices=True), 2, output_size=x.shape)
    ),
}


def integers(*shape, dtype=torch.float64, seed=0):
    values = np.random.default_rng(seed).integers(-3, 4, shape)
    return torch.from_numpy(values).to(dtype)


def derivatives(function, *inputs):
    """The results, the first derivatives, and second ones through these."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    results = function(*inputs)
    results = list(results) if isinstance(results, tuple) else [results]
    y = results[0]
    dy = integers(*y.shape, dtype=y.dtype, seed=1).requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    loss = sum((g * integers(*g.shape, dtype=y.dtype, seed=2)).sum() for g in first)
    second = torch.autograd.grad(loss, [dy, *inputs], allow_unused=True, materialize_grads=True)
    return [*results, *first, *second]


def strides(tensor):
    """Where they mean something."""
    return [step for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1 and tensor.numel()]


def check_same(function, *inputs, exact=True):
    """With and without the patch the same; returns what ran under it."""
    expected = derivatives(function, *inputs)
    with patch() as patched:
        found = derivatives(function, *inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert strides(ours) == strides(theirs)
        torch.testing.assert_close(ours, theirs, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-12)
    assert patched.report().passed == {}
    return patched.report().ran


# ---------------------------------------------------------------- results and gradients


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_convolution_to_second_order(case, ndim):
    make, x, w, k, bias = CONVOLUTIONS[case]
    inputs = integers(*x, *SIZES[:ndim]), integers(*w, *[k] * ndim), integers(bias)
    ran = check_same(make(ndim), *inputs)
    assert ran["convolution"] >= 1
    assert ran["convolution_backward"] >= 1


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("case", POOLINGS)
def test_pooling_to_second_order(case, ndim):
    exact = "max" in case or case in ("unpooled", "average")
    x = torch.randperm(2 * 3 * int(np.prod(SIZES[:ndim]))).double().view(2, 3, *SIZES[:ndim])
    ran = check_same(POOLINGS[case](ndim), x, exact=exact)
    assert sum(ran.values()) >= 2


@pytest.mark.parametrize("case", ["strided", "depthwise", "transposed"])
@pytest.mark.parametrize("which", ["x", "w", "both"])
def test_convolution_keeps_channels_last(case, which):
    make, x, w, k, bias = CONVOLUTIONS[case]
    x, w = integers(*x, 9, 8, dtype=torch.float32), integers(*w, k, k, dtype=torch.float32)
    if which != "w":
        x = x.to(memory_format=torch.channels_last)
    if which != "x":
        w = w.to(memory_format=torch.channels_last)
    with torch.no_grad(), fastconv.use_backend("reference"):
        expected = make(2)(x, w, integers(bias, dtype=torch.float32))
        with patch():
            y = make(2)(x, w, integers(bias, dtype=torch.float32))
    assert torch.equal(y, expected)
    assert strides(y) == strides(expected)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("case", sorted(set(POOLINGS) - {"global average"}))  # which PyTorch takes by another way
def test_pooling_keeps_channels_last(case, ndim):
    form = (torch.channels_last, torch.channels_last_3d)[ndim - 2]
    x = torch.randperm(2 * 3 * int(np.prod(SIZES[:ndim]))).double().view(2, 3, *SIZES[:ndim])
    check_same(POOLINGS[case](ndim), x.to(memory_format=form), exact=False)


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_has_the_bits_of_fastconv(dtype, name):
    """What a patched call returns is what the public function returns for the same tensors."""
    torch.manual_seed(0)
    x, w, b = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((2, 4, 9, 8), (6, 4, 3, 3), (6,)))
    with fastconv.use_backend(name), torch.no_grad(), patch():
        assert torch.equal(F.conv2d(x, w, b, padding=1), fastconv.conv2d(x, w, b, padding=1))
        assert torch.equal(F.max_pool2d(x, 3, 2), fastconv.max_pool2d(x, 3, 2))
        assert torch.equal(F.avg_pool2d(x, 3, 2), fastconv.avg_pool2d(x, 3, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_pytorchs_dtypes(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(2, 3, 8, 8)

    def step():
        model.zero_grad()
        with torch.autocast("cpu", dtype):
            y = model(x)
        y.float().sum().backward()
        return y, [p.grad for p in model.parameters()]

    y, gradients = step()
    with patch() as patched:
        ours, grads = step()
    assert ours.dtype == y.dtype == dtype
    torch.testing.assert_close(ours, y)
    for found, expected in zip(grads, gradients, strict=True):
        assert found.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert patched.report().passed == {}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    """All poolings in one dimension too, which PyTorch then computes without asking the dispatcher."""
    x = torch.randn(2, 3, 12)
    with mode():
        expected = F.max_pool1d(x, 3), F.avg_pool1d(x, 2), F.conv1d(x, torch.ones(4, 3, 2))
        with patch() as patched:
            found = F.max_pool1d(x, 3), F.avg_pool1d(x, 2), F.conv1d(x, torch.ones(4, 3, 2))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.is_inference() == theirs.is_inference()
    assert patched.report().ran == {"max_pool2d_with_indices": 1, "avg_pool2d": 1, "convolution": 1}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_functional_transforms():
    """vmap over filters, forward-mode derivatives, a Hessian."""
    x, w = integers(2, 3, 6, 5), integers(5, 4, 3, 2, 2)

    def f(w):
        return F.max_pool2d(F.conv2d(x, w), 2).square().sum()

    def each():
        _, tangent = torch.func.jvp(f, (w[0],), (w[1],))
        return [torch.func.vmap(lambda w: F.conv2d(x, w))(w), tangent, torch.func.hessian(f)(w[0])]

    expected = each()
    with patch() as patched:
        found = each()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert patched.report().ran["convolution"] > 3


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_traced_and_scripted_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).eval()
    x = torch.randn(1, 3, 8, 8)
    for compiled in (torch.jit.trace(model, x), torch.jit.script(model)):
        with torch.no_grad(), patch() as patched:
            torch.testing.assert_close(compiled(x), model(x))
        assert patched.report().ran == {"convolution": 2, "max_pool2d_with_indices": 2}


# ---------------------------------------------------------------- training


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.ReLU(), nn.AvgPool2d(3, 2, 1),
        nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def loss_curve(model, dtype, steps=15):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(16, 1, 16, 16, generator=generator, dtype=dtype), torch.arange(16) % 10
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-2)])
def test_a_module_trains_to_the_same_losses(dtype, rtol):
    """To rounding: in float32 that may push a value over ReLU's or a maximum's edge, and then more than itself."""
    torch.manual_seed(0)
    model = small_network().to(dtype)
    twin = copy.deepcopy(model)
    expected = loss_curve(model, dtype)
    with patch() as patched:
        found = loss_curve(twin, dtype)
    np.testing.assert_allclose(found, expected, rtol=rtol)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert expected[-1] < expected[0]
    assert patched.report().ran["convolution_backward"] == 3 * 15
    assert patched.report().passed == {}


def test_the_example_learns_alike_on_both(capsys):
    ours, theirs = runpy.run_path(str(EXAMPLE))["main"](steps=8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)
    assert ours[-1] < ours[0]
    assert "convolution_backward" in capsys.readouterr().out


# ---------------------------------------------------------------- what is passed on


def passed(function):
    """The reasons, after having checked that the results are PyTorch's own."""
    expected = function()
    with patch() as patched:
        found = function()
    assert torch.equal(found, expected)
    return patched.report().passed


def test_integers_are_passed_on():
    x = torch.arange(16).view(1, 1, 4, 4)
    (name, reason), count = passed(lambda: F.avg_pool2d(x, 2)).popitem()
    assert (name, count) == ("avg_pool2d", 1)
    assert "int64" in reason
    with patch() as patched:
        assert F.max_pool2d(x, 2).tolist() == [[[[5, 7], [13, 15]]]]
    assert patched.report().passed == {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch deprecates its quantised tensors
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # and their modules
def test_quantised_tensors_and_operators_are_passed_on():
    x = torch.quantize_per_tensor(torch.randn(1, 2, 6, 6), 0.1, 10, torch.quint8)
    layer = torch.ao.nn.quantized.Conv2d(2, 3, 3)
    keys = [
        key
        for call in (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
        for key in passed(lambda call=call: call(x, 2).int_repr())
    ]
    keys += passed(lambda: layer(x).int_repr())
    assert [name for name, _ in keys] == [
        "aten::quantized_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "quantized::conv2d.new",
    ]  # fmt: skip


def test_mkldnn_and_sparse_tensors_are_passed_on():
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    assert passed(lambda: F.conv2d(x.to_mkldnn(), w).to_dense()) == {("convolution", "a tensor of MkldnnCPU"): 1}
    with patch() as patched, pytest.raises((RuntimeError, NotImplementedError)):
        F.conv2d(x.to_sparse(), w)
    assert {name for name, _ in patched.report().passed} == {"convolution"}


def test_complex_convolution_is_three_real_ones():
    """PyTorch takes it apart, and the parts come here."""
    x, w = torch.randn(1, 2, 6, 6, dtype=torch.complex128), torch.randn(3, 2, 3, 3, dtype=torch.complex128)
    expected = F.conv2d(x, w)
    with patch() as patched:
        torch.testing.assert_close(F.conv2d(x, w), expected)
        assert patched.report().ran == {"convolution": 3}
        with pytest.raises(RuntimeError):
            F.avg_pool2d(x, 2)
    assert "complex128" in str(patched.report())


def test_errors_are_pytorchs():
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    bad = [
        lambda: F.conv2d(x, w.double()),
        lambda: F.conv2d(x, torch.randn(3, 2, 7, 7)),
        lambda: F.max_pool2d(x, 2, padding=2),
        lambda: F.max_unpool2d(x, torch.full(x.shape, 999), 1),
    ]
    for call in bad:
        with pytest.raises(RuntimeError) as expected:
            call()
        with patch() as patched, pytest.raises(RuntimeError) as found:
            call()
        assert str(found.value) == str(expected.value)
        assert patched.report().ran == {}


def test_meta_tensors_are_pytorchs():
    with patch() as patched:
        assert F.conv2d(torch.empty(1, 2, 6, 6, device="meta"), torch.empty(3, 2, 3, 3, device="meta")).is_meta
    assert patched.report().ran == {}


# ---------------------------------------------------------------- installing


def test_undone_on_leaving():
    x, w = torch.randn(1, 8, 9, 9), torch.randn(8, 8, 3, 3)
    before = F.conv2d(x, w)
    patched = patch()
    with pytest.raises(RuntimeError), patched:
        F.conv2d(x, w.double())
    with patched:
        F.conv2d(x, w)
    report = patched.report()
    assert torch.equal(F.conv2d(x, w), before)
    assert patched.report() == report
    assert report.ran == {"convolution": 1}


def test_patches_nest():
    x = torch.randn(1, 1, 4, 4)
    outer, inner = patch().install(), patch()
    with inner:
        F.avg_pool2d(x, 2)
    F.avg_pool2d(x, 2)
    assert outer.report() == inner.report()
    assert outer.report().ran == {"avg_pool2d": 2}
    with pytest.raises(FastconvError, match="not installed"):
        inner.uninstall()
    outer.uninstall()
    F.avg_pool2d(x, 2)
    assert str(outer.report()) == f"{'avg_pool2d':36} {2:8} on fastconv"
    with patch() as fresh:
        assert str(fresh.report()) == "no convolution or pooling was called"


def test_threads_share_a_patch_that_others_toggle():
    x = integers(2, 4, 9, 8)
    w = integers(4, 4, 3, 3).requires_grad_()
    expected = F.conv2d(x, w).detach()
    (gradient,) = torch.autograd.grad(F.conv2d(x, w).sum(), w)
    wrong = []

    def compute():
        for _ in range(60):
            y = F.conv2d(x, w)
            (dw,) = torch.autograd.grad(y.sum(), w)
            wrong.append(not (torch.equal(y, expected) and torch.equal(dw, gradient)))

    def toggle():
        for _ in range(200):
            with patch():
                pass

    threads = [threading.Thread(target=target) for target in (compute, compute, compute, toggle, toggle)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 180


def test_pytorchs_number_of_threads_is_a_limit():
    import numba

    from fastconv.interop.torch.patch import _computed

    before, allowed = torch.get_num_threads(), numba.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert _computed(numba.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)
    assert numba.get_num_threads() == allowed


FORKED = """
import torch, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from fastconv.interop.torch import patch

class Blurred(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return F.avg_pool2d(F.conv2d(torch.full((1, 4, 64, 64), float(i)), torch.ones(4, 4, 3, 3)), 2)[0]

with patch() as patched:
    model = torch.nn.Conv2d(4, 8, 3)
    model(torch.ones(16, 4, 64, 64)).sum().backward()  # the pools of threads are running
    for batch in DataLoader(Blurred(), batch_size=4, num_workers=2, multiprocessing_context="fork"):
        model(batch).sum().backward()
    print(batch.shape == (4, 4, 31, 31), batch.flatten(1)[:, 0].tolist(), patched.report().ran["convolution"])
"""


def test_data_loaders_workers_compute_too():
    """They are forked from a process whose thread pools run; they pass on to PyTorch."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True [144.0, 180.0, 216.0, 252.0] 3", done.stderr


# ---------------------------------------------------------------- torch.compile


def check_compiled(model, x, **options):
    """Under the patch compiled and not, the same operators run; returns the compiled module."""
    expected = gradients(model, x)
    torch._dynamo.reset()
    with patch() as patched:
        gradients(model, x)
    ran = patched.report().ran
    with patch() as patched:
        compiled = torch.compile(model, fullgraph=True, **options)
        found = gradients(compiled, x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert patched.report().passed == {}
    assert patched.report().ran == ran
    return compiled


def gradients(model, x):
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_code_generator(dynamic):
    check_compiled(small_network(), torch.randn(4, 1, 16, 16), backend="aot_eager", dynamic=dynamic)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="Inductor needs a C++ compiler with OpenMP")
def test_compiled_by_inductor(tmp_path, monkeypatch):
    """A graph that was compiled under the patch goes on afterwards, on PyTorch."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layers = nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
    model, x = nn.Sequential(*layers), torch.randn(2, 1, 12, 12)
    with torch._inductor.config.patch({"compile_threads": 1, "cpp_cache_precompile_headers": False}):
        compiled = check_compiled(model, x)
        before = patch().report()
        gradients(compiled, x)
        assert patch().report() == before


# ---------------------------------------------------------------- a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_on_a_gpu(case):
    make, x, w, k, bias = CONVOLUTIONS[case]
    inputs = [integers(*x, 9, 8).cuda(), integers(*w, k, k).cuda(), integers(bias).cuda()]
    expected = make(2)(*inputs)
    with patch() as patched:
        y = make(2)(*inputs)
    assert y.device == expected.device
    assert torch.equal(y, expected)
    assert patched.report().ran == {"convolution": 1}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_a_network_on_a_gpu():
    """Forward and backward, poolings too, on a stream that is not the default one."""
    model, x = small_network().cuda(), torch.randn(4, 1, 16, 16).cuda()
    expected = gradients(model, x)
    torch.cuda.synchronize()
    with patch() as patched, torch.cuda.stream(torch.cuda.Stream()):
        found = gradients(model, x)
    torch.cuda.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert patched.report().ran
    assert patched.report().passed == {}
