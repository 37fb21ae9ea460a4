"""PyTorch in its two memory formats, on the CPU (oneDNN) and on a GPU (cuDNN)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastconv import arrays
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.cuda import TorchStream
from fastconv.benchmarks.device import Queue
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused, symmetric
from fastconv.benchmarks.peers.library import output_padding
from fastconv.problem import ConvProblem, PoolProblem, SignalProblem

Array = np.ndarray


def to_torch(array: Array) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def to_numpy(tensor: Any) -> Array:
    return arrays.to_numpy(tensor.detach().cpu())


class Torch(Contestant):
    """Contiguous NCHW tensors on the CPU."""

    channels_last = False
    where = "cpu"

    def version(self) -> str:
        try:
            import torch
        except ImportError as error:
            raise Absent(f"PyTorch is not installed ({error}): pip install torch") from error
        form = "channels_last" if self.channels_last else "contiguous NCHW"
        return f"torch {torch.__version__}, CPU, {form}, {torch.get_num_threads()} threads"

    def place(self, case: Case, role: str, array: Array) -> Any:
        return self.formed(to_torch(array.copy()).to(self.where))

    def formed(self, tensor: Any) -> Any:
        """In this contestant's memory format."""
        import torch

        if not self.channels_last or tensor.ndim not in (4, 5):
            return tensor
        form = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
        return tensor.contiguous(memory_format=form)

    def write(self, case: Case, role: str, operand: Any, array: Array) -> None:
        operand.copy_(to_torch(array))

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        import torch

        problem = case.problem
        if isinstance(problem, SignalProblem):
            raise Refused("PyTorch has no correlation of one array with another")
        if self.channels_last and problem.ndim == 1:
            raise Refused("PyTorch has no channels_last format for 1-D")
        torch.set_grad_enabled(False)
        if isinstance(problem, ConvProblem):
            return Job(_conv(case, problem, given, self.formed), to_numpy)
        return Job(_pool(case, problem, list(given)), to_numpy)


class TorchChannelsLast(Torch):
    """NHWC memory under the same NCHW axes."""

    channels_last = True


class TorchCuda(Torch):
    """Contiguous NCHW tensors on a GPU. cuDNN tries its algorithms and keeps the fastest; no TF32 unless asked for."""

    where = "cuda"

    def __init__(self) -> None:
        self.device = Queue(TorchStream())

    def version(self) -> str:
        super().version()
        import torch

        if not torch.cuda.is_available():
            raise Absent("PyTorch has no CUDA GPU here")
        form = "channels_last" if self.channels_last else "contiguous NCHW"
        name, cudnn = torch.cuda.get_device_name(), torch.backends.cudnn.version()
        return f"torch {torch.__version__}, cuDNN {cudnn} (benchmark=True), {form}, {name}"

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        import torch

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = getattr(case.problem, "precision", None) == "tf32"
        return super().bind(case, given)


class TorchCudaChannelsLast(TorchCuda):
    """NHWC memory under the same NCHW axes, on a GPU."""

    channels_last = True


def _conv(case: Case, problem: ConvProblem, given: Sequence[Any], formed: Callable[[Any], Any]) -> Callable[[], Any]:
    import torch

    window, pass_ = problem.window, case.op.removeprefix("conv_")
    pads = symmetric(window.pad, "PyTorch")
    if case.layer.family == "convtranspose" and pass_ == "dgrad":
        transposed = getattr(torch.nn.functional, f"conv_transpose{problem.ndim}d")
        more = output_padding(problem)
        return partial(transposed, *given, None, window.stride, pads, more, problem.groups, window.dilation)
    if pass_ == "fprop":
        forward = getattr(torch.nn.functional, f"conv{problem.ndim}d")
        return partial(forward, *given, None, window.stride, pads, window.dilation, problem.groups)
    wanted = [pass_ == "dgrad", pass_ == "wgrad", False]
    dy, other = given
    absent = formed(dy.new_empty(problem.dims(case.result)))  # of what is not asked for, only the shape counts
    x, w = (absent, other) if pass_ == "dgrad" else (other, absent)
    backward = partial(
        torch.ops.aten.convolution_backward, dy, x, w, None, list(window.stride), pads, list(window.dilation),
        False, [0] * problem.ndim, problem.groups, wanted,
    )  # fmt: skip
    at = wanted.index(True)
    return lambda: backward()[at]


def _pool(case: Case, problem: PoolProblem, given: list[Any]) -> Callable[[], Any]:
    import torch

    kind, nd, window = case.layer.family.removesuffix("pool"), problem.ndim, problem.window
    if window is None:
        adaptive = getattr(torch.nn.functional, f"adaptive_{kind}_pool{nd}d")
        return _either(case, given, lambda x: adaptive(x, problem.out))
    pads, ceil = symmetric(window.pad, "PyTorch"), window.rounding == "ceil"
    if window.rounding == "exact":
        raise Refused("PyTorch has no exact rounding")
    pool = getattr(torch.nn.functional, f"{kind}_pool{nd}d")
    if kind == "max":
        if case.pass_ == "dgrad" and nd > 1:
            return _max_dgrad(problem, given, ceil)
        return _either(case, given, lambda x: pool(x, window.ksize, window.stride, pads, window.dilation, ceil))
    if max(window.dilation) > 1 or (nd == 1 and problem.divisor is not None):
        raise Refused("PyTorch has no dilated average pooling, and no divisor of the 1-D one")
    options = [ceil, problem.count_include_pad, *([] if nd == 1 else [problem.divisor])]
    return _either(case, given, lambda x: pool(x, window.ksize, window.stride, pads, *options))


def _max_dgrad(problem: PoolProblem, given: list[Any], ceil: bool) -> Callable[[], Any]:
    """The gradient as its formula calls it, with the indices that the forward pass kept."""
    import torch

    window, (dy, x), name = problem.window, given, f"max_pool{problem.ndim}d_with_indices"
    assert window is not None
    pads = [low for low, _ in window.pad]
    geometry = [list(window.ksize), list(window.stride), pads, list(window.dilation), ceil]
    _, indices = getattr(torch.ops.aten, name)(x, *geometry)
    return partial(getattr(torch.ops.aten, f"{name}_backward"), dy, x, *geometry, indices)


def _either(case: Case, given: list[Any], forward: Callable[[Any], Any]) -> Callable[[], Any]:
    """The forward pass, or its gradient by autograd: the graph is made once, and only its way back is timed."""
    import torch

    if case.pass_ == "fprop":
        return partial(forward, *given)
    dy = given[0]
    with torch.enable_grad():
        x = (given[1] if len(given) == 2 else dy.new_zeros(case.problem.dims("x"))).requires_grad_()
        y = forward(x)
    return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)[0]
