"""Shape arithmetic along a network: each layer takes the channels and extents that the one before it left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastconv.problem import ConvProblem, PoolProblem

Ints = int | Sequence[int]
Shape = tuple[int, tuple[int, ...]]  # channels, extents


@dataclass
class Line:
    """A layer, and how often the network has it."""

    name: str
    family: str
    text: str
    count: int = 1


@dataclass
class Walk:
    """A network on its way from the input to the last layer."""

    network: str
    channels: int
    size: tuple[int, ...]
    lines: list[Line] = field(default_factory=list)

    @property
    def at(self) -> Shape:
        return self.channels, self.size

    @at.setter
    def at(self, shape: Shape) -> None:
        self.channels, self.size = shape

    def conv(
        self, name: str, k: int, ksize: Ints, stride: Ints = 1, pad: Ints | None = None, dilation: int = 1,
        groups: int = 1,
    ) -> Shape:  # fmt: skip
        """A convolution; without `pad`, half of the window on both sides. Returns the shape that it took."""
        taken, extents = self.at, self._per_axis(ksize)
        pads = [dilation * (r - 1) // 2 for r in extents] if pad is None else self._per_axis(pad)
        words = [f"k={k}", f"ksize={_join(extents)}", *_some("stride", self._per_axis(stride), 1)]
        words += [*_some("pad", pads, 0), *_some("dilation", [dilation], 1), *_some("groups", [groups], 1)]
        text = self._line(name, "conv", "conv", words)
        self.at = k, ConvProblem.parse(text).out
        return taken

    def depthwise(self, name: str, ksize: Ints, stride: Ints = 1, pad: Ints | None = None) -> Shape:
        return self.conv(name, self.channels, ksize, stride, pad, groups=self.channels)

    def transposed(self, name: str, k: int, ksize: Ints, stride: Ints) -> None:
        """A transposed convolution without padding, written as the convolution whose adjoint it is."""
        extents, strides = self._per_axis(ksize), self._per_axis(stride)
        coarse, c = self.size, self.channels
        self.at = k, tuple((n - 1) * s + r for n, s, r in zip(coarse, strides, extents, strict=True))
        words = [f"k={c}", f"ksize={_join(extents)}", *_some("stride", strides, 1)]
        problem = ConvProblem.parse(self._line(name, "convtranspose", "conv", words))
        assert (problem.K, problem.out) == (c, coarse), f"{name} does not lead from {c}, {coarse} to {self.at}"

    def pool(
        self, name: str, ksize: Ints, stride: Ints | None = None, pad: Ints = 0, kind: str = "max", ceil: bool = False
    ) -> Shape:
        taken, extents = self.at, self._per_axis(ksize)
        strides = extents if stride is None else self._per_axis(stride)
        words = [f"ksize={_join(extents)}"]
        words += [f"stride={_join(strides)}"] * (strides != extents) + _some("pad", self._per_axis(pad), 0)
        text = self._line(name, f"{kind}pool", "pool", words + ["rounding=ceil"] * ceil)
        self.size = PoolProblem.parse(text).out
        return taken

    def global_pool(self, name: str) -> Shape:
        """The mean over everything."""
        taken = self.at
        self._line(name, "avgpool", "pool", ["bins=1"])
        self.size = (1,) * len(self.size)
        return taken

    def squeeze(self, name: str, width: int) -> None:
        """Squeeze-and-excitation: the mean, to `width` channels and back; it scales what it took."""
        taken = self.global_pool(f"{name}-mean")
        self.conv(f"{name}-squeeze", width, 1)
        self.conv(f"{name}-excite", taken[0], 1)
        self.at = taken

    @contextmanager
    def branch(self, start: Shape | None = None) -> Iterator[None]:
        """Layers beside the way: afterwards the walk is back where it was."""
        here = self.at
        self.at = start or here
        yield
        self.at = here

    def concat(self, *branches: Callable[[], object]) -> None:
        """Branches from here, whose channels are joined."""
        start, channels, sizes = self.at, 0, set()
        for run in branches:
            self.at = start
            run()
            channels += self.channels
            sizes.add(self.size)
        assert len(sizes) == 1, f"branches of different extents: {sizes}"
        self.channels = channels

    def add(self, other: Shape) -> None:
        """A sum with something of the same shape."""
        assert self.at == other, f"{self.at} + {other}"

    def resize(self, low: int = 0, high: int = 0) -> None:
        """Cells added to (or, below 0, cut from) both ends of every axis by something that is no layer here."""
        self.size = tuple(n + low + high for n in self.size)

    def _per_axis(self, value: Ints) -> list[int]:
        return [value] * len(self.size) if isinstance(value, int) else list(value)

    def _line(self, name: str, family: str, kind: str, words: list[str]) -> str:
        text = " ".join([f"{kind}{len(self.size)}d n=1 c={self.channels} size={_join(self.size)}", *words])
        same = next((line for line in self.lines if (line.family, line.text) == (family, text)), None)
        if same is not None:
            same.count += 1
            return text
        assert all(line.name != name for line in self.lines), f"{self.network}: two layers are named {name}"
        self.lines.append(Line(name, family, text))
        return text


def _join(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def _some(name: str, values: Sequence[int], default: int) -> list[str]:
    return [] if set(values) == {default} else [f"{name}={_join(values)}"]


@dataclass(frozen=True)
class Suite:
    """A file of the suites: the comment at its head, and the networks in it."""

    name: str
    source: str
    walks: Callable[[], list[Walk]]

    def text(self) -> str:
        """The file."""
        walks = self.walks()
        rows = [(walk.network, line.name, f"x{line.count}", line.family, line.text) for walk in walks
                for line in walk.lines]  # fmt: skip
        heads = [("# network", "layer", "count", "family", "problem (forward terms, batch 1)"), *rows]
        widths = [max(len(row[column]) for row in heads) for column in range(4)]
        table = [" ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
                 for row in heads]  # fmt: skip
        comment = [f"# {line}" for line in self.source.strip().splitlines()]
        return "\n".join([*comment, *table]) + "\n"
