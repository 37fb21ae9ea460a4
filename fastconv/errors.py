"""The exceptions fastconv raises. Each message says what was expected, what came, and the fix."""

from __future__ import annotations


class FastconvError(Exception):
    """Base of every error that fastconv raises on purpose."""


class ShapeError(FastconvError, ValueError):
    """A shape that does not fit, or a bad value or word (stride, padding, layout, mode, ...)."""


class DTypeError(FastconvError, TypeError):
    """A wrong type or dtype, or arrays of different kinds in one call."""


class BackendError(FastconvError, RuntimeError):
    """A backend that is unknown, unavailable, or refuses the problem."""


class ArgumentError(ShapeError, DTypeError):
    """A value of the wrong type where a number or a word belongs, such as ``stride=1.5``.

    It is wrong both as a value and as a type, so either ``except`` clause catches it.
    """
