"""Every adapter computes what it claims to, and refuses the rest with a reason; which cases it takes is a fact."""

import pytest

from fastconv.benchmarks import cuda
from fastconv.benchmarks.cases import FAMILIES, Case, Layer, parse_problem
from fastconv.benchmarks.peers import PEERS, Absent, Refused, make, peer_names
from fastconv.benchmarks.seat import Seat
from fastconv.benchmarks.verify import AFTER, BEFORE, Expectation

PROBLEMS = {
    "dense": ("conv", "conv2d n=2 c=3 size=9x8 k=5 ksize=3 pad=1"),
    "strided": ("conv", "conv2d n=2 c=4 size=9x8 k=6 ksize=3 stride=2 pad=1 groups=2 dilation=2"),
    "asymmetric": ("conv", "conv2d n=1 c=2 size=7 k=3 ksize=3 pad=0:2"),
    "1d": ("conv", "conv1d n=2 c=3 size=17 k=4 ksize=5 pad=2"),
    "3d": ("conv", "conv3d n=1 c=2 size=5 k=3 ksize=3 pad=1"),
    "transposed": ("convtranspose", "conv2d n=2 c=4 size=9x8 k=6 ksize=3 stride=2 pad=1 groups=2"),
    "transposed1d": ("convtranspose", "conv1d n=2 c=4 size=20 k=6 ksize=4 stride=2"),
    "max": ("maxpool", "pool2d n=2 c=3 size=13x11 ksize=3 stride=2 pad=1"),
    "max_plain": ("maxpool", "pool2d n=2 c=3 size=8 ksize=2"),
    "max_ceil": ("maxpool", "pool2d n=2 c=3 size=12 ksize=3 stride=2 rounding=ceil"),
    "max_dilated": ("maxpool", "pool2d n=2 c=3 size=14 ksize=3 stride=1 pad=1 dilation=2"),
    "max1d": ("maxpool", "pool1d n=2 c=3 size=13 ksize=3 stride=2 pad=1"),
    "max_adaptive": ("maxpool", "pool2d n=2 c=3 size=14 bins=4"),
    "avg": ("avgpool", "pool2d n=2 c=3 size=13x11 ksize=3 stride=2 pad=1"),
    "avg_inner": ("avgpool", "pool2d n=2 c=3 size=13 ksize=3 stride=2 pad=1 count_include_pad=False"),
    "avg1d": ("avgpool", "pool1d n=2 c=3 size=13 ksize=3 stride=2 pad=1"),
    "avg3d": ("avgpool", "pool3d n=2 c=3 size=6 ksize=2"),
    "global": ("avgpool", "pool2d n=2 c=3 size=7 bins=1"),
    "convolve": ("signal", "convolve in1=40x30 in2=5x4 mode=same"),
    "correlate": ("signal", "correlate in1=50 in2=7 mode=valid"),
}
CASES = {
    f"{name}/{pass_}": Case(Layer("x", "x", name, 1, family, text), pass_, parse_problem(text, family))
    for name, (family, text) in PROBLEMS.items()
    for pass_ in FAMILIES[family]
}
EVERY = ("fprop", "dgrad", "wgrad")
#: What each library computes; everything else it refuses.
TAKES = {
    "fastconv.reference": set(CASES),
    "torch": {name for name in CASES if not name.startswith(("asymmetric", "convolve", "correlate"))},
    "torch-nhwc": {
        name for name in CASES if not name.startswith(("asymmetric", "convolve", "correlate")) and "1d" not in name
    },
    "onnxruntime": {name for name in CASES if name.endswith("/fprop")}
    - {"max_adaptive/fprop", "convolve/fprop", "correlate/fprop"},
    "jax": {name for name in CASES if not name.startswith(("max_ceil", "max_adaptive"))} - {"max_dilated/dgrad"},
    "scipy": {"dense/fprop", "asymmetric/fprop", "1d/fprop", "3d/fprop", "convolve/fprop", "correlate/fprop"},
    "numpy": {
        *(f"{name}/{pass_}" for name in ("dense", "strided", "asymmetric", "1d", "3d") for pass_ in ("fprop", "wgrad")),
        *(f"{name}/{pass_}" for name in ("transposed", "transposed1d") for pass_ in ("dgrad", "wgrad")),
        *(f"{name}/fprop" for name in ("max", "max_plain", "max_dilated", "max1d", "avg", "avg1d", "avg3d")),
    },
    "autograd": {
        *(f"{name}/{pass_}" for name in ("dense", "asymmetric", "1d", "3d") for pass_ in EVERY),
        "correlate/fprop",
    },
    "mygrad": {"dense/fprop", "1d/fprop", "3d/fprop", "max_plain/fprop"},
}


#: Libraries that compile each case for a second take fewer of them.
FEWER = {
    "jax": ("dense", "strided", "transposed/", "max/", "max_ceil", "max_adaptive", "max_dilated", "avg_", "convolve")
}


def seat_of(name):
    try:
        seat = Seat(name)
        seat.version()
        return seat
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", TAKES)
def test_every_case_is_right_or_refused(name):
    seat = seat_of(name)
    for label, case in CASES.items():
        if name in FEWER and not label.startswith(FEWER[name]):
            continue
        if label not in TAKES[name]:
            with pytest.raises(Refused, match=r".{10,}"):
                seat.prepare(case)
            continue
        seat.prepare(case)
        expectation, own = Expectation(case), name.startswith("fastconv.")
        for data, result in ((BEFORE, seat.first()[1]), (AFTER, seat.other_data())):
            check = expectation.check(data, result, own)
            assert check.ok, f"{name} {label}: {check.reason}"


@pytest.mark.parametrize("name", [name for name in peer_names(list(PEERS), "gpu") if name != "cupyx"] + ["cupyx"])
def test_without_a_gpu_its_libraries_are_absent(name):
    """Where there is one, they say what it is."""
    if cuda.missing() is None:
        assert make(name).version()
        return
    with pytest.raises(Absent, match=r".{10,}"):
        make(name).version()


def test_weights_that_are_packed_beforehand_are_packed_anew():
    """ONNX Runtime keeps the weights in its session: other data is another session."""
    seat = seat_of("onnxruntime")
    case = CASES["dense/fprop"]
    assert seat.prepare(case) == "weights packed beforehand"
    first = seat.first()[1]
    assert not (first == seat.other_data()).all()


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("name", ["onnxruntime", "jax", "torch"])
def test_other_dtypes_are_right_or_refused(name, dtype):
    seat = seat_of(name)
    family, text = PROBLEMS["dense"]
    text += f" dtype={dtype}"
    case = Case(Layer("x", "x", "dense", 1, family, text), "fprop", parse_problem(text, family))
    try:
        seat.prepare(case)
    except Refused:
        return
    check = Expectation(case).check(BEFORE, seat.first()[1], own=False)
    assert check.ok, check.reason
