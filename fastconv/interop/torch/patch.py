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

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch.library import Library, get_kernel

from fastconv.errors import FastconvError
from fastconv.interop.patching import Counts, Patch, Refused
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

counts = Counts()

# ---------------------------------------------------------------- kernels


def _kernel(name: str, compute: Callable[..., Any], original: Any) -> Callable[..., Any]:
    """fastconv's kernel of an operator, with PyTorch's behind it."""

    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if counts.installed:
            try:
                result = _computed(compute, *args, **kwargs)
            except FastconvError as refusal:
                counts.add_passed(name, str(refusal))
            else:
                counts.add_run(name)
                return result
        return original.call_boxed(keyset, *args, **kwargs)

    return kernel


def _computed(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result, on no more threads than PyTorch is set to."""
    import numba

    allowed = numba.get_num_threads()
    wanted = min(allowed, torch.get_num_threads())
    if wanted == allowed:
        return compute(*args, **kwargs)
    numba.set_num_threads(wanted)
    try:
        return compute(*args, **kwargs)
    finally:
        numba.set_num_threads(allowed)


def _refuse(reason: str, *args: Any, **kwargs: Any) -> Any:
    raise Refused(reason)


# Three operators that PyTorch computes outside of those above, in cases that are ours: PyTorch's own
# composition for the other cases, put before its shortcut. They run above autograd.


def _max_pool1d(original: Any, keyset: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Where no gradient is asked for, PyTorch calls a kernel that the dispatcher does not see."""
    if not counts.installed or x.is_quantized or x.is_mkldnn:
        return original.call_boxed(keyset, x, *args, **kwargs)
    return torch.ops.aten.max_pool1d_with_indices(x, *args, **kwargs)[0]


def _adaptive_avg_pool(ndim: int, original: Any, keyset: Any, x: torch.Tensor, output_size: Any) -> Any:
    """Where one cell is asked for, PyTorch takes the mean."""
    if not counts.installed or set(output_size) != {1} or x.dtype not in kernels.FLOATS or x.is_mkldnn:
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
                body = compute if key in TAKEN else partial(_refuse, f"a tensor of {key}")
                original = get_kernel(f"aten::{name}", torch._C._dispatch_key_parse(key))
                aten.impl(name, _kernel(name.strip("_"), body, original), key, with_keyset=True)
    for name in filter(QUANTISED.fullmatch, torch._C._dispatch_get_all_op_names()):
        for key in ("CPU", "QuantizedCPU"):
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
                namespace, _, short = name.partition("::")
                kernel = _kernel(name, partial(_refuse, "a quantised operator"), get_kernel(name, key))
                (aten if namespace == "aten" else quantised).impl(short, kernel, key, with_keyset=True)
    for name, composite in COMPOSITES.items():
        kernel = partial(composite, get_kernel(f"aten::{name}", "CPU"))
        aten.impl(name, kernel, "CompositeImplicitAutograd", with_keyset=True)
    return [aten, quantised]


class patch(Patch):
    """While installed, PyTorch computes its convolutions and poolings with fastconv, in the whole process.

    Use it as a context manager, or call `install` and `uninstall`. Patches nest, in one thread or several:
    PyTorch has its own kernels again when the last one is uninstalled. Modules, functionals, autograd to any
    order, autocast, ``torch.func`` and ``torch.compile`` work as they do without it.

    Under it run, forward and backward: conv1d to conv3d and their transposed twins with strides, padding,
    dilation and groups; max, average, Lp, adaptive and global pooling; max_unpool. On to PyTorch go, unchanged
    and counted by `report`: quantised, sparse and mkldnn tensors, integers (but for max pooling), other devices
    than those that fastconv has a backend for, and what PyTorch refuses with an error of its own. Kernels use
    as many threads as both PyTorch and Numba are set to, at most.

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

    counts = counts
    _libraries: ClassVar[list[Library]] = []
    _inductor: ClassVar[Any] = None

    def _begin(self) -> None:
        if not patch._libraries:
            from fastconv.interop.torch.inductor import KeepCalls  # a second to import

            with warnings.catch_warnings():  # PyTorch warns that its kernels are overridden
                warnings.simplefilter("ignore", UserWarning)
                patch._libraries = _register()
            # Not unpooling, whose memory format PyTorch's compiler and its kernels disagree about.
            patch._inductor = KeepCalls(name for name in OPERATORS if "_pool" in name)
        patch._inductor.install()

    def _end(self) -> None:
        patch._inductor.uninstall()
