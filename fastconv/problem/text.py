"""The text form of problems: words like ``ksize=3x3`` to and from tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.errors import ShapeError
from fastconv.problem.values import _T, ITEMSIZE, Ints, Pads, one_of
from fastconv.problem.window import Window


def join(values: Ints) -> str:
    return "x".join(map(str, values))


def window_words(window: Window, stride: Ints) -> list[str]:
    words = []
    if window.stride != stride:
        words.append(f"stride={join(window.stride)}")
    if any(low or high for low, high in window.pad):
        words.append("pad=" + "x".join(str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in window.pad))
    if any(d != 1 for d in window.dilation):
        words.append(f"dilation={join(window.dilation)}")
    if window.rounding != "floor":
        words.append(f"rounding={window.rounding}")
    return words


def parse_words(text: str, family: str, required: tuple[str, ...]) -> tuple[int, dict[str, str]]:
    head, *items = text.split() or [""]
    if head not in (f"{family}1d", f"{family}2d", f"{family}3d"):
        raise ShapeError(f"a problem begins with {family}1d, {family}2d or {family}3d: got {text!r}")
    pairs = [item.partition("=") for item in items]
    known = WORDS[family]
    for name, equals, value in pairs:
        if name not in known or not equals or not value:
            raise ShapeError(
                f"{name + equals + value!r} is no word of a {family} problem ({', '.join(known)}): {text!r}"
            )
    words = {name: value for name, _, value in pairs}
    missing = [name for name in required if name not in words]
    if missing:
        raise ShapeError(f"the problem lacks {', '.join(missing)}: {text!r}")
    return int(head[-2]), words


_COMMON = ("n", "c", "size", "ksize", "stride", "pad", "dilation", "rounding", "dtype", "layout", "batched")
WORDS = {
    "conv": (*_COMMON, "k", "groups", "weight_layout", "activation", "precision", "bias"),
    "pool": (*_COMMON, "bins", "count_include_pad", "divisor", "p"),
}


def parse_ints(words: dict[str, str], name: str, ndim: int, default: int | None = None) -> Any:
    if name not in words:
        return None if default is None else (default,) * ndim
    return _per_axis(words[name], name, ndim, int)


def parse_number(words: dict[str, str], name: str, default: Any = None, convert: Callable[[str], Any] = int) -> Any:
    if name not in words:
        return default
    try:
        return convert(words[name])
    except ValueError:
        raise ShapeError(f"{name}={words[name]} is no number") from None


def parse_shape(words: dict[str, str], name: str) -> Ints | None:
    """Ints joined by "x", however many; None where the word is absent."""
    if name not in words:
        return None
    return tuple(parse_number({name: item}, name) for item in words[name].split("x"))


def parse_flag(words: dict[str, str], name: str) -> bool:
    return bool(one_of(name, words.get(name, "True"), ("True", "False")) == "True")


def parse_dtype(words: dict[str, str]) -> str:
    return str(one_of("dtype", words.get("dtype", "float32"), tuple(ITEMSIZE)))


def parse_pads(words: dict[str, str], ndim: int) -> Pads:
    def pair(text: str) -> tuple[int, int]:
        low, _, high = text.partition(":")
        return int(low), int(high or low)

    return _per_axis(words.get("pad", "0"), "pad", ndim, pair)


def _per_axis(text: str, name: str, ndim: int, convert: Callable[[str], _T]) -> tuple[_T, ...]:
    try:
        items = tuple(convert(item) for item in text.split("x"))
    except ValueError:
        raise ShapeError(f"{name}={text} is not ints joined by 'x'") from None
    if len(items) not in (1, ndim):
        raise ShapeError(f"{name}={text} must have 1 or {ndim} values")
    return items * ndim if len(items) == 1 else items
