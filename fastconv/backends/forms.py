"""What a launch works out once for each form of its operands: their dtypes and strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMS = 64  # that a launch remembers; a program that passes ever new strides starts again
Call = Callable[..., None]


def by_form(bind: Callable[..., Call], also: Callable[[], Any] = int) -> Call:
    """``run(*arrays)``: what `bind` makes for arrays of their form, and of one value of `also`, is called with them."""
    known: dict[Any, Call] = {}

    def run(*arrays: Any) -> None:
        form = (also(), *[None if array is None else (array.strides, array.dtype) for array in arrays])
        call = known.get(form)
        if call is None:
            if len(known) >= FORMS:
                known.clear()
            call = known[form] = bind(*arrays)
        call(*arrays)

    return run
