"""No time for a wrong answer: kernels that cheat are planted, and none of them gets a time."""

from dataclasses import replace

import numpy as np
import pytest

from fastconv import dispatch
from fastconv.backends.base import Launch
from fastconv.backends.reference import ReferenceBackend
from fastconv.benchmarks import device, runner, verify
from fastconv.benchmarks.cases import Case, Layer, build_cases, parse_problem
from fastconv.benchmarks.peers import Absent, Refused
from fastconv.benchmarks.peers.library import Library
from fastconv.benchmarks.peers.numpy_im2col import NumpyIm2col
from fastconv.benchmarks.runner import Settings, Table
from fastconv.benchmarks.seat import Seat
from fastconv.benchmarks.verify import AFTER, BEFORE, Expectation, operands, reference

QUICK = Settings(warm=0.0, block=0.0, rewarm=0.0, rounds=2)
CASES = {case.name: case for case in build_cases(["tiny"])}
FPROP, MAX_DGRAD = CASES["tiny/conv3x3/fprop"], CASES["tiny/maxpool/dgrad"]


class Planted(Library):
    """The reference backend, its answers tampered with by `cheat(run, calls so far)`."""

    def __init__(self, cheat):
        super().__init__("reference")
        self.cheat, self.calls = cheat, 0

    def bind(self, case, given):
        job = super().bind(case, given)

        def run():
            self.calls += 1
            return self.cheat(job.run, self.calls)

        return replace(job, run=run)


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Emptying the caches of a large machine before each cold call takes longer than the tests."""
    monkeypatch.setitem(device.HOST.__dict__, "_sweep", np.zeros(1000))


def outcome_of(contestant, case=FPROP):
    return Table({"planted": Seat("planted", contestant)}, QUICK).measure(case)["planted"]


def one_off(run, calls):
    y = run()
    y.reshape(-1)[-1] += 1e-3 * abs(y).max()
    return y


def half(run, calls):
    y = run()
    y[..., : y.shape[-1] // 2] = 0
    return y


def lazy_when_warm(run, calls):
    return run() if calls == 1 else np.zeros_like(run())


def poisoned(run, calls):
    y = run()
    y[0, 0, 0, 0] = np.nan
    return y


def cached():
    kept = {}
    return lambda run, calls: kept.setdefault("y", run())


def remembers_shapes():
    """A cache that knows its problem by shape and first value alone."""
    kept = {}

    def cheat(run, calls):
        y = run()
        return kept.setdefault((y.shape, float(abs(y).reshape(-1)[0]) > -1), y)

    return cheat


def counts_in_float16(run, calls):
    return run().astype(np.float16).astype(np.float32)


def transposed(run, calls):
    return np.ascontiguousarray(np.swapaxes(run(), -1, -2))


def raises(run, calls):
    raise FloatingPointError("out of tiles")


def raises_later(run, calls):
    if calls > 2:
        raise RuntimeError("lost")
    return run()


@pytest.mark.parametrize(
    ("cheat", "status", "reason"),
    [
        (lambda run, calls: -run(), "wrong", "wrong values on the timed data: 256 of 256"),
        (one_off, "wrong", "1 of 256"),
        (half, "wrong", "128 of 256"),
        (lazy_when_warm, "wrong", "wrong values on the timed data"),
        (poisoned, "wrong", "got nan"),
        (cached(), "wrong", "wrong values on other data than was timed"),
        (remembers_shapes(), "wrong", "wrong values on other data than was timed"),
        (counts_in_float16, "wrong", "wrong values on the timed data"),
        (transposed, "wrong", "wrong values on the timed data"),
        (lambda run, calls: None, "wrong", "wrong shape []"),
        (lambda run, calls: run().astype(np.float64), "wrong", "wrong dtype float64"),
        (lambda run, calls: run()[..., :-1], "wrong", "wrong shape"),
        (raises, "failed", "out of tiles"),
        (raises_later, "failed", "lost"),
    ],
)
def test_no_time_for_a_wrong_answer(cheat, status, reason):
    outcome = outcome_of(Planted(cheat))
    assert outcome.status == status
    assert reason in outcome.reason
    for figure in ("timing", "first", "host", "warm", "cold", "memory"):
        assert getattr(outcome, figure) is None


def test_an_honest_kernel_is_timed():
    outcome = outcome_of(Planted(lambda run, calls: run()))
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.timing.median > 0
    assert len(outcome.timing.blocks) == QUICK.rounds
    assert 0 <= outcome.error <= 1
    assert outcome.tolerance > 0
    assert outcome.warm == outcome.timing.median
    assert outcome.cold > 0
    assert outcome.memory is None or outcome.memory >= 0
    assert outcome.checked == "all"


def test_a_gradient_sent_to_the_wrong_place():
    assert outcome_of(Planted(lambda run, calls: np.flip(run(), -1)), MAX_DGRAD).status == "wrong"


class Broken(ReferenceBackend):
    """A backend whose kernel returns without computing, or does not compile."""

    name = "cpu"

    def __init__(self, compiles):
        self.compiles = compiles

    def plan(self, op, problem):
        if not self.compiles:
            raise SyntaxError("expected ';' before '}'")
        return Launch(lambda *arrays: None, "empty", "it does nothing")


@pytest.mark.parametrize(("compiles", "status"), [(True, "wrong"), (False, "failed")])
def test_a_broken_backend(monkeypatch, compiles, status):
    monkeypatch.setitem(dispatch._backends, "cpu", Broken(compiles))
    for known in ("_launches", "_known"):
        monkeypatch.setattr(dispatch, known, {})
    outcome = outcome_of(Library("cpu"))
    assert (outcome.status, outcome.timing) == (status, None)


def test_one_that_leaves_does_not_disturb_the_others():
    seats = {"bad": Seat("bad", Planted(raises_later)), "good": Seat("good", Library("reference"))}
    outcomes = Table(seats, QUICK).measure(FPROP)
    assert outcomes["bad"].timing is None
    assert outcomes["good"].timing is not None


def test_a_refusal_is_no_failure():
    class Refusing(Library):
        def bind(self, case, given):
            raise Refused("not today")

    outcome = outcome_of(Refusing("reference"))
    assert (outcome.status, outcome.reason, outcome.timing) == ("refused", "not today", None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("contestant", [Library("reference"), NumpyIm2col()], ids=lambda c: c.version())
def test_right_answers_pass_on_both_data_sets(case, contestant):
    seat, expectation = Seat("right", contestant), Expectation(case)
    try:
        seat.prepare(case)
    except Refused:
        pytest.skip("refused")
    assert expectation.check(BEFORE, seat.first()[1]).reason is None
    assert expectation.check(AFTER, seat.other_data()).reason is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_right_answers_pass_in_every_dtype_and_layout(dtype, layout):
    for case in build_cases(["tiny"], dtype=dtype, layout=layout):
        outcome = outcome_of(Library("reference"), case)
        assert outcome.status == "ok", f"{case.name}: {outcome.reason}"


def test_data_is_the_same_in_every_process_and_differs_between_sets():
    first, again, other = (operands(FPROP, data) for data in (BEFORE, BEFORE, AFTER))
    for role in FPROP.roles:
        assert (first[role] == again[role]).all()
        assert (np.abs(first[role]) == other[role]).all()
    assert (np.abs(reference(FPROP, first)) <= reference(FPROP, other) + 1e-12).all()


def test_fastconv_is_held_to_its_promise_and_others_to_rounding():
    """A sum in float32, one product after the other, may drift; only fastconv promises that its own do not."""
    (case,) = [case for case in build_cases(["tiny"], batch=8) if case.name == "tiny/conv3x3/wgrad"]
    expectation = Expectation(case)
    allowed = expectation.allowed(AFTER, own=True)
    drifted = (expectation.expected[AFTER] + 2 * allowed).astype(np.float32)
    assert expectation.check(AFTER, drifted, own=False).ok
    assert not expectation.check(AFTER, drifted, own=True).ok


# ---------------------------------------------------------------- cases that are checked in part

PARTLY = [
    ("conv", "fprop", "conv2d n=40 c=4 size=9 k=6 ksize=3 pad=1"),
    ("conv", "dgrad", "conv2d n=40 c=4 size=9 k=6 ksize=3 stride=2 layout=NHWC"),
    ("conv", "wgrad", "conv2d n=4 c=4 size=9 k=60 ksize=3 pad=1"),
    ("conv", "fprop", "conv2d n=1 c=4 size=9 k=60 ksize=3 pad=1"),
    ("conv", "dgrad", "conv2d n=2 c=40 size=9 k=6 ksize=3 pad=1"),
    ("maxpool", "fprop", "pool2d n=1 c=40 size=9 ksize=2"),
    ("conv", "fprop", "conv2d n=1 c=40 size=9 k=40 ksize=3 pad=1 groups=20"),
    ("conv", "wgrad", "conv2d n=4 c=80 size=9 k=40 ksize=3 pad=1 groups=20"),
    ("convtranspose", "fprop", "conv2d n=40 c=4 size=8 k=6 ksize=2 stride=2"),
    ("maxpool", "dgrad", "pool2d n=40 c=4 size=9 ksize=3 stride=2"),
    ("avgpool", "fprop", "pool2d n=40 c=4 size=9 bins=1"),
]


def case_of(family, pass_, text):
    return Case(Layer("large", "large", "layer", 1, family, text), pass_, parse_problem(text, family))


@pytest.mark.parametrize(("family", "pass_", "text"), PARTLY)
def test_a_large_case_is_checked_in_part(monkeypatch, family, pass_, text):
    """The part is right where the whole is, and what is wrong everywhere, or in the last image, has no time."""
    case = case_of(family, pass_, text)
    monkeypatch.setattr(verify, "WHOLE_FLOPS", case.flops // 5)
    monkeypatch.setattr(verify, "WHOLE_ELEMENTS", case.elements // 5)
    outcome = outcome_of(Planted(lambda run, calls: run()), case)
    assert (outcome.status, outcome.reason) == ("ok", "")
    by_image = pass_ != "wgrad" and case.problem.N > 2
    assert outcome.checked.endswith("images" if by_image else "channels")
    assert 3 <= int(outcome.checked.split()[0]) < max(case.problem.dims(case.result)[:2])
    assert outcome_of(Planted(lambda run, calls: -run()), case).status == "wrong"

    def last_is_missing(run, calls):
        y = run()
        y[-1 if by_image or case.result == "w" else (slice(None), -1)] = 0
        return y

    assert outcome_of(Planted(last_is_missing), case).status == "wrong"


def test_a_small_case_is_checked_as_a_whole():
    assert verify.part(FPROP) is None
    assert verify.part(case_of("conv", "fprop", "conv2d n=300 c=64 size=56 k=64 ksize=3 pad=1")) is not None


def test_the_data_of_a_huge_case_repeats_itself(monkeypatch):
    case = case_of("conv", "fprop", "conv2d n=40 c=4 size=9 k=6 ksize=3 pad=1")
    monkeypatch.setattr(verify, "WHOLE_ELEMENTS", 10)
    x = operands(case, BEFORE)["x"]
    assert x.shape == case.problem.dims("x")
    assert (x[7:14] == x[:7]).all()
    assert not (x[0] == x[1]).any()


def test_more_than_32_bits_are_for_a_gpu():
    huge = next(case for case in build_cases(["huge"], ("fprop",)) if case.layer.name == "1x1")
    seat = Seat("right", Library("reference"))
    with pytest.raises(Refused, match="on a GPU only"):
        seat.prepare(huge)
    assert Table({"right": seat}, QUICK).measure(huge)["right"].status == "refused"  # and no reference is computed


def test_a_reference_that_does_not_fit_costs_its_case_alone(monkeypatch):
    def too_large(case):
        raise MemoryError

    monkeypatch.setattr(runner, "Expectation", too_large)
    outcome = outcome_of(Library("reference"))
    assert (outcome.status, outcome.reason) == ("failed", "the reference does not fit into memory")


def test_an_emulated_gpu_is_not_measured(monkeypatch):
    """Times of kernels that run on the CPU for debugging would be called a GPU's."""
    monkeypatch.setattr(ReferenceBackend, "name", "raw")
    monkeypatch.setitem(dispatch._backends, "raw", ReferenceBackend())
    with pytest.raises(Absent, match="only an emulated GPU is here"):
        Library("raw").version()
