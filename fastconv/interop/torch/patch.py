"""`patch`: PyTorch's own convolutions and poolings, computed by fastconv.

PyTorch's dispatcher has one kernel per operator and device. This module puts a kernel of ours in front of
PyTorch's for the operators in `OPERATORS`: below autograd, autocast and the compiler, so that these keep
working as they are, and above everything that computes. Every derivative of a convolution or a pooling is
made of the same operators, so that gradients of any order run on fastconv too.

The kernels enter the dispatcher when a patch is first installed, and stay: its tables must not change while
other threads compute. Without a patch they hand on to PyTorch's kernels at once, which costs a call of a
few microseconds.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch.library import Library, get_kernel

from fastconv.errors import FastconvError
from fastconv.interop.torch import kernels

POOLINGS: dict[str, Callable[..., Any]] = {
    "max_pool{}d_with_indices": kernels.max_pool,
    "max_pool{}d_with_indices_backward": kernels.max_pool_backward,
    "avg_pool{}d": kernels.avg_pool,
    "avg_pool{}d_backward": kernels.avg_pool_backward,
    "adaptive_max_pool{}d": kernels.adaptive_max_pool,
    "adaptive_max_pool{}d_backward": kernels.adaptive_max_pool_backward,
    "_adaptive_avg_pool{}d": kernels.adaptive_avg_pool,
    "_adaptive_avg_pool{}d_backward": kernels.adaptive_avg_pool_backward,
    "max_unpool{}d": kernels.max_unpool,
}

#: Per ``aten`` operator, what computes it. PyTorch makes its 1-D poolings of the 2-D ones.
OPERATORS: dict[str, Callable[..., Any]] = {
    "_convolution": kernels.convolution,
    "convolution_backward": kernels.convolution_backward,
    **{name.format(ndim): partial(kernel, ndim) for name, kernel in POOLINGS.items() for ndim in (2, 3)},
}

#: The dispatch keys of tensors that fastconv takes, and of those whose calls are counted and handed on.
TAKEN = ("CPU", "CUDA")
COUNTED = (
    "MPS", "XPU", "HPU", "PrivateUse1", "MkldnnCPU", "QuantizedCPU", "QuantizedCUDA", "SparseCPU", "SparseCUDA",
    "SparseCsrCPU", "SparseCsrCUDA",
)  # fmt: skip

#: Quantised operators of their own, which PyTorch computes from filters that it has packed.
QUANTISED = re.compile(
    r"quantized::conv(_transpose)?[123]d(_relu|_add|_add_relu|_dynamic)?(\.new)?|aten::quantized_max_pool[123]d"
)

# ---------------------------------------------------------------- state


@dataclass(frozen=True)
class Report:
    """What became of the operators that were called under a patch; ``str()`` of it is a table.

    Attributes
    ----------
    ran : dict
        Per operator, how many calls fastconv computed.
    passed : dict
        Per operator and reason, how many calls went on to PyTorch.
    """

    ran: dict[str, int]
    passed: dict[tuple[str, str], int]

    def __str__(self) -> str:
        lines = [f"{name:36} {count:8} on fastconv" for name, count in sorted(self.ran.items())]
        lines += [f"{name:36} {count:8} on to PyTorch: {why}" for (name, why), count in sorted(self.passed.items())]
        return "\n".join(lines) or "no convolution or pooling was called"


class State:
    """One per process: how many patches are installed, and the counts since the first of them was."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.installed = 0
        self.ran: Counter[str] = Counter()
        self.passed: Counter[tuple[str, str]] = Counter()
        self.libraries: list[Library] = []
        self.inductor: Any = None
        self.forked = False

    def count(self, counter: Counter, key: Any) -> None:
        with self.lock:
            counter[key] += 1


state = State()


def _after_fork() -> None:
    """A forked process cannot start its parent's pool of GNU OpenMP threads again, which Numba refuses by exiting."""
    parallel = sys.modules.get("numba.np.ufunc.parallel")
    state.lock = threading.Lock()
    state.forked = parallel is not None and parallel._threading_layer == "omp"


os.register_at_fork(after_in_child=_after_fork)


# ---------------------------------------------------------------- kernels


class Refused(FastconvError):
    """A call that PyTorch is to compute; the message is the reason."""


def _kernel(name: str, compute: Callable[..., Any], original: Any) -> Callable[..., Any]:
    """fastconv's kernel of an operator, with PyTorch's behind it."""

    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if state.installed:
            try:
                result = _computed(compute, *args, **kwargs)
            except FastconvError as refusal:
                state.count(state.passed, (name, str(refusal)))
            else:
                state.count(state.ran, name)
                return result
        return original.call_boxed(keyset, *args, **kwargs)

    return kernel


def _computed(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result, on as many threads as both PyTorch and Numba are set to."""
    import numba

    if state.forked:
        raise Refused("this process was forked after its parent had started Numba's GNU OpenMP threads")
    allowed = numba.get_num_threads()
    wanted = min(allowed, torch.get_num_threads())
    if wanted == allowed:
        return compute(*args, **kwargs)
    numba.set_num_threads(wanted)
    try:
        return compute(*args, **kwargs)
    finally:
        numba.set_num_threads(allowed)


def _refuse(reason: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Refused(reason)

    return refuse


# Three operators that PyTorch computes outside of those above, in cases that are ours: PyTorch's own
# composition for the other cases, put before its shortcut. They run above autograd.


def _max_pool1d(original: Any, keyset: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Where no gradient is asked for, PyTorch calls a kernel that the dispatcher does not see."""
    if not state.installed or x.is_quantized or x.is_mkldnn:
        return original.call_boxed(keyset, x, *args, **kwargs)
    return torch.ops.aten.max_pool1d_with_indices(x, *args, **kwargs)[0]


def _adaptive_avg_pool(ndim: int, original: Any, keyset: Any, x: torch.Tensor, output_size: Any) -> Any:
    """Where one cell is asked for, PyTorch takes the mean."""
    if not state.installed or set(output_size) != {1} or x.dtype not in kernels.FLOATS or x.is_mkldnn:
        return original.call_boxed(keyset, x, output_size)
    return (torch.ops.aten._adaptive_avg_pool2d if ndim == 2 else torch.ops.aten._adaptive_avg_pool3d)(x, output_size)


COMPOSITES: dict[str, Callable[..., Any]] = {
    "max_pool1d": _max_pool1d,
    "adaptive_avg_pool2d": partial(_adaptive_avg_pool, 2),
    "adaptive_avg_pool3d": partial(_adaptive_avg_pool, 3),
}

# ---------------------------------------------------------------- the dispatcher


def _register() -> list[Library]:
    """Put the kernels into PyTorch's dispatcher; the libraries own them."""
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    aten, quantised = Library("aten", "IMPL"), Library("quantized", "IMPL")
    for name, compute in OPERATORS.items():
        for key in TAKEN + COUNTED:
            if has_kernel(f"aten::{name}", key):
                body = compute if key in TAKEN else _refuse(f"a tensor of {key}")
                kernel = _kernel(name.strip("_"), body, get_kernel(f"aten::{name}", torch._C._dispatch_key_parse(key)))
                aten.impl(name, kernel, key, with_keyset=True)
    for name in filter(QUANTISED.fullmatch, torch._C._dispatch_get_all_op_names()):
        for key in ("CPU", "QuantizedCPU"):
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
                namespace, _, short = name.partition("::")
                kernel = _kernel(name, _refuse("a quantised operator"), get_kernel(name, key))
                (aten if namespace == "aten" else quantised).impl(short, kernel, key, with_keyset=True)
    for name, composite in COMPOSITES.items():
        kernel = partial(composite, get_kernel(f"aten::{name}", "CPU"))
        aten.impl(name, kernel, "CompositeImplicitAutograd", with_keyset=True)
    return [aten, quantised]


class patch:
    """While installed, PyTorch computes its convolutions and poolings with fastconv, in the whole process.

    Use it as a context manager, or call `install` and `uninstall`. Patches nest, in one thread or several:
    PyTorch has its own kernels again when the last one is uninstalled. Modules, functionals, autograd to any
    order, autocast, ``torch.func`` and ``torch.compile`` work as they do without it.

    Under it run, forward and backward: conv1d to conv3d and their transposed twins with strides, padding,
    dilation and groups; max, average, Lp, adaptive and global pooling; max_unpool. On to PyTorch go, unchanged
    and counted by `report`: quantised, sparse and mkldnn tensors, integers (but for max pooling), other devices
    than those that fastconv has a backend for, and what PyTorch refuses with an error of its own.

    Examples
    --------
    >>> import torch
    >>> from fastconv.interop.torch import patch
    >>> layer, x = torch.nn.Conv2d(3, 8, 3, padding="same"), torch.ones(1, 3, 8, 8)
    >>> with patch() as patched:
    ...     layer(x).sum().backward()
    >>> print(patched.report())
    convolution                                 1 on fastconv
    convolution_backward                        1 on fastconv
    """

    def __init__(self) -> None:
        self._depth = 0

    def install(self) -> patch:
        """Begin; the counts start anew where no other patch is installed."""
        with state.lock:
            if not state.libraries:
                from fastconv.interop.torch.inductor import KeepCalls  # a second to import

                with warnings.catch_warnings():  # PyTorch warns that its kernels are overridden
                    warnings.simplefilter("ignore", UserWarning)
                    state.libraries = _register()
                state.inductor = KeepCalls(name for name in OPERATORS if "pool" in name)
            if not state.installed:
                state.ran.clear()
                state.passed.clear()
                state.inductor.install()
            state.installed += 1
            self._depth += 1
        return self

    def uninstall(self) -> None:
        """End what one call of `install` of this object began.

        Raises
        ------
        FastconvError
            Where it is not installed.
        """
        with state.lock:
            if not self._depth:
                raise FastconvError("this patch is not installed: call install() first")
            self._depth -= 1
            state.installed -= 1
            if not state.installed:
                state.inductor.uninstall()

    def report(self) -> Report:
        """What ran on fastconv and what was passed on, since the outermost patch was last installed."""
        with state.lock:
            return Report(dict(state.ran), dict(state.passed))

    def __enter__(self) -> patch:
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()
