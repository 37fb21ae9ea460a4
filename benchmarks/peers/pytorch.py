"""PyTorch on the CPU (oneDNN), in its two memory formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastconv import arrays
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Absent, Job, Refused
from fastconv.problem import ConvProblem, Ints, PoolProblem, Window

Array = np.ndarray


def to_torch(array: Array) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def to_numpy(tensor: Any) -> Array:
    return arrays.to_numpy(tensor.detach())


class Torch:
    """Contiguous NCHW tensors."""

    channels_last = False

    def version(self) -> str:
        try:
            import torch
        except ImportError as error:
            raise Absent(f"PyTorch is not installed ({error}): pip install torch") from error
        form = "channels_last" if self.channels_last else "contiguous NCHW"
        return f"torch {torch.__version__}, CPU, {form}, {torch.get_num_threads()} threads"

    def place(self, case: Case, role: str, array: Array) -> Any:
        import torch

        tensor = to_torch(array.copy())
        if self.channels_last and array.ndim in (4, 5):
            form = torch.channels_last if array.ndim == 4 else torch.channels_last_3d
            return tensor.contiguous(memory_format=form)
        return tensor

    def write(self, case: Case, role: str, operand: Any, array: Array) -> None:
        operand.copy_(to_torch(array))

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        import torch

        if self.channels_last and case.problem.ndim == 1:
            raise Refused("PyTorch has no channels_last format for 1-D")
        torch.set_grad_enabled(False)
        call = _conv if isinstance(case.problem, ConvProblem) else _pool
        return Job(call(case, case.problem, list(given)), to_numpy)  # type: ignore[operator]


class TorchChannelsLast(Torch):
    """NHWC memory under the same NCHW axes."""

    channels_last = True


def _pads(window: Window) -> list[int]:
    if any(low != high for low, high in window.pad):
        raise Refused("PyTorch pads both sides alike")
    return [low for low, _ in window.pad]


def _conv(case: Case, problem: ConvProblem, given: list[Any]) -> Callable[[], Any]:
    import torch

    window = problem.window
    pads = _pads(window)
    if case.pass_ == "fprop":
        forward = getattr(torch.nn.functional, f"conv{problem.ndim}d")
        return partial(forward, *given, None, window.stride, pads, window.dilation, problem.groups)
    wanted = [case.pass_ == "dgrad", case.pass_ == "wgrad", False]
    dy, x, w = (
        (given[0], torch.empty(problem.dims("x"), dtype=given[0].dtype), given[1])
        if case.pass_ == "dgrad"
        else (given[0], given[1], torch.empty(problem.dims("w"), dtype=given[0].dtype))
    )
    if given[0].is_contiguous(memory_format=torch.channels_last) and not given[0].is_contiguous():
        x, w = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, w))
    backward = partial(
        torch.ops.aten.convolution_backward, dy, x, w, None, list(window.stride), pads, list(window.dilation),
        False, [0] * problem.ndim, problem.groups, wanted,
    )  # fmt: skip
    at = wanted.index(True)
    return lambda: backward()[at]


def _pool(case: Case, problem: PoolProblem, given: list[Any]) -> Callable[[], Any]:
    import torch

    functions, aten = torch.nn.functional, torch.ops.aten
    kind, nd = case.layer.family.removesuffix("pool"), problem.ndim
    if problem.window is None:
        return _adaptive(case, problem.out, given)
    window, pads = problem.window, _pads(problem.window)
    if window.rounding == "exact":
        raise Refused("PyTorch has no exact rounding")
    ceil = window.rounding == "ceil"
    if case.pass_ == "fprop" and kind == "max":
        forward = getattr(functions, f"max_pool{nd}d")
        return partial(forward, *given, window.ksize, window.stride, pads, window.dilation, ceil)
    if kind == "avg" and (nd == 1 or max(window.dilation) > 1):
        raise Refused("PyTorch has no dilated average pooling, and no separate gradient of the 1-D one")
    if case.pass_ == "fprop":
        forward = getattr(functions, f"avg_pool{nd}d")
        return partial(
            forward, *given, window.ksize, window.stride, pads, ceil, problem.count_include_pad, problem.divisor
        )
    if nd == 1:
        raise Refused("PyTorch has no separate gradient of 1-D pooling")
    if kind == "max":
        dy, x = given
        geometry = [list(window.ksize), list(window.stride), pads, list(window.dilation), ceil]
        _, indices = getattr(aten, f"max_pool{nd}d_with_indices")(x, *geometry)
        return partial(getattr(aten, f"max_pool{nd}d_with_indices_backward"), dy, x, *geometry, indices)
    x = torch.empty(problem.dims("x"), dtype=given[0].dtype)
    return partial(
        getattr(aten, f"avg_pool{nd}d_backward"), *given, x, list(window.ksize), list(window.stride), pads, ceil,
        problem.count_include_pad, problem.divisor,
    )  # fmt: skip


def _adaptive(case: Case, bins: Ints, given: list[Any]) -> Callable[[], Any]:
    import torch

    nd, kind = len(bins), case.layer.family.removesuffix("pool")
    if case.pass_ == "fprop":
        return partial(getattr(torch.nn.functional, f"adaptive_{kind}_pool{nd}d"), *given, bins)
    if kind == "max" or nd == 1:
        raise Refused("the gradient of this adaptive pooling is not measured in PyTorch")
    backward = getattr(torch.ops.aten, f"_adaptive_avg_pool{nd}d_backward")
    return partial(backward, *given, torch.empty(case.problem.dims("x"), dtype=given[0].dtype))
