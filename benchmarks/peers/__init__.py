"""One adapter per library that takes part in a benchmark, and their names."""

from __future__ import annotations

from importlib import import_module

from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused

__all__ = ["PEERS", "Absent", "Contestant", "Job", "Refused", "make", "peer_names"]

#: What a name given to ``--peers`` stands for, on a CPU and on a GPU. A layout is a peer of its own, timed by itself.
PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "torch": {"cpu": ("torch", "torch-nhwc"), "gpu": ("torch-cuda", "torch-cuda-nhwc")},
    "onnxruntime": {"cpu": ("onnxruntime",)},
    "jax": {"cpu": ("jax",), "gpu": ("jax-cuda",)},
    "scipy": {"cpu": ("scipy",)},
    "cupy": {"cpu": ("cupyx",), "gpu": ("cupyx",)},
    "numpy": {"cpu": ("numpy",)},
    "autograd": {"cpu": ("autograd",)},
    "mygrad": {"cpu": ("mygrad",)},
}

_HERE = "fastconv.benchmarks.peers."
_ADAPTERS = {
    "fastconv": f"{_HERE}library:Library",
    "torch": f"{_HERE}pytorch:Torch",
    "torch-nhwc": f"{_HERE}pytorch:TorchChannelsLast",
    "torch-cuda": f"{_HERE}pytorch:TorchCuda",
    "torch-cuda-nhwc": f"{_HERE}pytorch:TorchCudaChannelsLast",
    "onnxruntime": f"{_HERE}onnx_runtime:OnnxRuntime",
    "jax": f"{_HERE}jax_xla:Jax",
    "jax-cuda": f"{_HERE}jax_xla:JaxCuda",
    "scipy": f"{_HERE}scipy_signal:Scipy",
    "cupyx": f"{_HERE}scipy_signal:Cupyx",
    "numpy": f"{_HERE}numpy_im2col:NumpyIm2col",
    "autograd": f"{_HERE}hips_autograd:Autograd",
    "mygrad": f"{_HERE}my_grad:MyGrad",
}


def peer_names(words: list[str], device: str = "cpu") -> list[str]:
    """The contestants that the words of ``--peers`` stand for; "all" is every one of that device.

    Raises
    ------
    ValueError
        For an unknown word, and for a library that has no adapter for the device.
    """
    words = [each for word in words for each in (PEERS if word == "all" else (word,))]
    names = []
    for word in words:
        if word not in PEERS and word not in _ADAPTERS:
            raise ValueError(f"there is no peer {word!r}: the peers are {', '.join(PEERS)}, or all of them: all")
        found = PEERS.get(word, {device: (word,)}).get(device, ())
        if not found and len(words) < len(PEERS):
            raise ValueError(f"{word} is no peer on a {device.upper()}")
        names += found
    return list(dict.fromkeys(names))


def make(name: str) -> Contestant:
    """The contestant of a name: ``fastconv.BACKEND``, a peer, or ``package.module:Class`` for an adapter elsewhere."""
    backend = name.removeprefix("fastconv.") if name.startswith("fastconv.") and ":" not in name else None
    module, _, attribute = (name if ":" in name else _ADAPTERS["fastconv" if backend else name]).partition(":")
    contestant: Contestant = getattr(import_module(module), attribute)(*([backend] if backend else []))
    return contestant
