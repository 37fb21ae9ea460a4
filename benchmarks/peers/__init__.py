"""One adapter per library that takes part in a benchmark, and their names."""

from __future__ import annotations

from importlib import import_module

from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused

__all__ = ["PEERS", "Absent", "Contestant", "Job", "Refused", "make", "peer_names"]

#: What a name given to ``--peers`` stands for. Layouts are peers of their own: each is timed by itself.
PEERS = {"torch": ("torch", "torch-nhwc"), "numpy": ("numpy",)}

_ADAPTERS = {
    "fastconv": "fastconv.benchmarks.peers.library:Library",
    "torch": "fastconv.benchmarks.peers.pytorch:Torch",
    "torch-nhwc": "fastconv.benchmarks.peers.pytorch:TorchChannelsLast",
    "numpy": "fastconv.benchmarks.peers.numpy_im2col:NumpyIm2col",
}


def peer_names(words: list[str]) -> list[str]:
    """The contestants that the words of ``--peers`` stand for.

    Raises
    ------
    ValueError
        For an unknown word.
    """
    for word in words:
        if word not in PEERS and word not in _ADAPTERS:
            raise ValueError(f"there is no peer {word!r}: the peers are {', '.join(PEERS)}")
    return list(dict.fromkeys(name for word in words for name in PEERS.get(word, (word,))))


def make(name: str) -> Contestant:
    """The contestant of a name: ``fastconv.BACKEND``, a peer, or ``package.module:Class`` for an adapter elsewhere."""
    backend = name.removeprefix("fastconv.") if name.startswith("fastconv.") and ":" not in name else None
    module, _, attribute = (name if ":" in name else _ADAPTERS["fastconv" if backend else name]).partition(":")
    contestant: Contestant = getattr(import_module(module), attribute)(*([backend] if backend else []))
    return contestant
