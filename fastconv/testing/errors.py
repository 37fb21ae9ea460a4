"""The errors of each float32 algorithm against float64, beside PyTorch's: ``python -m fastconv.testing.errors``.

Per case, the rms and the largest ``|y - exact|`` over the largest ``conv(|x|, |w|)`` within 8 outputs, which
precision=None keeps below 1e-5; the columns hold them in units of 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastconv.backends.base import OPS
from fastconv.backends.cpu import conv
from fastconv.problem import ConvProblem
from fastconv.testing import compare

Array = np.ndarray
LINE = "conv2d n=1 c=64 size=28 k=64 ksize=3 pad=1"
LINES = {
    "gemm": (LINE, LINE.replace("ksize=3 pad=1", "ksize=1")),
    "winograd": (LINE, LINE.replace("size=28", "size=7"), LINE.replace("ksize=3 pad=1", "ksize=5 pad=2")),
    "scatter": (LINE,),
    "strips": (LINE + " groups=16", LINE.replace("c=64", "c=3")),
    "depthwise": (LINE + " groups=64",),
}
DATA: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "normal": lambda rng, a: a,
    "wide range": lambda rng, a: a * 10 ** rng.uniform(-4, 4, a.shape),
    "cancelling": lambda rng, a: (1 + 1e-3 * a) * np.where(np.arange(a.shape[1]) % 2, -1, 1)[:, None, None],
}


def torch_run(op: str, problem: ConvProblem, *operands: Array) -> Array:
    """The same pass by PyTorch, in the operands' dtype."""
    import torch

    pads, groups = [low for low, _ in problem.window.pad], problem.groups
    first, second = (torch.from_numpy(array) for array in operands)
    if op == "conv_fprop":
        result = torch.nn.functional.conv2d(first, second, None, 1, pads, 1, groups)
    elif op == "conv_dgrad":
        result = torch.nn.grad.conv2d_input(problem.dims("x"), second, first, 1, pads, 1, groups)
    else:
        result = torch.nn.grad.conv2d_weight(second, problem.dims("w"), first, 1, pads, 1, groups)
    return np.asarray(result)


def fastconv_run(algorithm: str, op: str, problem: ConvProblem, *operands: Array) -> Array:
    (result,) = OPS[op][1]
    out = np.empty(problem.dims(result), np.float32)
    conv.build(algorithm, op, problem, "").run(out, *operands, *([] if op == "conv_wgrad" else [None]))
    return out


def rows() -> Iterator[tuple[str, ...]]:
    """(algorithm, data, pass, problem, rms and maximum of fastconv, rms and maximum of PyTorch)."""
    for algorithm, lines in LINES.items():
        for line in lines:
            for data, change in DATA.items():
                for op in ("conv_fprop", "conv_dgrad", "conv_wgrad"):
                    problem, rng = ConvProblem.parse(line), np.random.default_rng(0)
                    if algorithm not in conv.applicable(op, problem):
                        continue
                    roles = [role for role in OPS[op][0] if not role.endswith("bias")]
                    operands = [
                        change(rng, rng.standard_normal(problem.dims(role))).astype(np.float32) for role in roles
                    ]
                    wide = [array.astype(np.float64) for array in operands]
                    exact, scale = (torch_run(op, problem, *arrays) for arrays in (wide, map(np.abs, wide)))
                    for axis in (2, 3):
                        scale = compare.reach(scale, axis, compare.FAST_REACH)
                    found = fastconv_run(algorithm, op, problem, *operands), torch_run(op, problem, *operands)
                    errors = [np.abs(result - exact) / scale for result in found]
                    numbers = [f"{1e8 * f(e):.2f}" for e in errors for f in (lambda e: np.sqrt((e**2).mean()), np.max)]
                    yield algorithm, data, op[5:], line.removeprefix("conv2d n=1 "), *numbers


def main() -> None:
    """Print the table in Markdown."""
    head = "algorithm", "data", "pass", "problem", "rms", "max", "PyTorch rms", "PyTorch max"
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows():
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
