"""How time is told: on the CPU, and on a stand-in for a GPU whose clock is known."""

from types import SimpleNamespace

import pytest

from fastconv.benchmarks import cuda, device
from fastconv.benchmarks.device import COPIES, HOST, Host, Queue, last_cache
from fastconv.benchmarks.limits import Limits
from fastconv.benchmarks.peers.library import Library
from fastconv.benchmarks.runner import Settings, Table
from fastconv.benchmarks.seat import Seat


class Clock:
    """Time that passes only where it is said to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class StandIn:
    """A queue: the host adds kernels to it, the device takes `kernel` seconds for each, once it has them."""

    def __init__(self, clock, launch, kernel, flush=50e-6, records=True):
        self.clock, self.launch, self.kernel, self.flushing, self.records = clock, launch, kernel, flush, records
        self.free = 0.0  # when the device is through
        self.log, self.recording = [], None

    def call(self):
        if self.recording is not None:
            self.recording += self.kernel
            return "recorded"
        self.clock.now += self.launch
        self._enqueue(self.kernel)
        self.log.append("call")
        return "result"

    def _enqueue(self, seconds):
        self.free = max(self.free, self.clock.now) + seconds

    def put(self, array):
        return array.copy()

    def wait(self):
        self.clock.now = max(self.clock.now, self.free)
        self.log.append("wait")

    def mark(self):
        self.clock.now += 1e-7
        return SimpleNamespace(at=max(self.free, self.clock.now))

    def between(self, start, stop):
        return stop.at - start.at

    def flush(self):
        self.clock.now += 1e-6
        self._enqueue(self.flushing)
        self.log.append("flush")

    def record(self, call):
        if not self.records:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recording = 0.0
        result = call()
        graph, self.recording = self.recording, None

        def replay():
            self.clock.now += self.launch
            self._enqueue(graph)
            self.log.append("replay")

        return replay, result

    def memory(self):
        return 100

    def peak(self):
        return 150

    def limits(self, dtype):
        return Limits(1e12, 1e11)


@pytest.fixture
def stand_in(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(device, "time", clock)
    return lambda **figures: StandIn(clock, **figures)


def test_a_long_kernel_is_timed_on_the_device(stand_in):
    stream = stand_in(launch=5e-6, kernel=1e-3)
    block = Queue(stream).block(stream.call, 4, cold=True)
    assert block.seconds == pytest.approx([1e-3] * 4, rel=1e-3)
    assert block.host == pytest.approx([5e-6] * 4)
    assert block.result == "result"
    assert stream.log == ["wait", *["flush", "call"] * 5, "wait"]  # nothing waits between the calls


def test_a_short_kernel_is_replayed(stand_in):
    """Between marks the device would wait for the host: 20 µs in place of 2."""
    stream = stand_in(launch=20e-6, kernel=2e-6)
    block = Queue(stream).block(stream.call, 100, cold=False)
    assert block.seconds == pytest.approx([2e-6] * 5, rel=0.01)
    assert block.host == pytest.approx([20e-6] * 100)
    assert block.result == "recorded"  # what the replays wrote is what is verified
    assert stream.log.count("replay") == 100 // COPIES + 1


def test_flushing_hides_the_launch(stand_in):
    """With a flush in the queue before it, the host is ahead, and the mark gives the kernel's own time."""
    stream = stand_in(launch=20e-6, kernel=30e-6)
    block = Queue(stream).block(stream.call, 5, cold=True)
    assert block.seconds == pytest.approx([30e-6] * 5, rel=0.01)
    assert "replay" not in stream.log


def test_what_cannot_be_recorded_keeps_its_time(stand_in):
    stream = stand_in(launch=20e-6, kernel=2e-6, records=False)
    block = Queue(stream).block(stream.call, 4, cold=False)
    assert min(block.seconds) >= 20e-6


def test_a_contestant_on_a_device(stand_in, monkeypatch):
    """The whole of a case: times are the device's, the host's beside them, cold ones count."""

    class OnStandIn(Library):
        def __init__(self, stream):
            super().__init__("reference")
            self.device, self.stream = Queue(stream), stream

        def bind(self, case, given):
            from dataclasses import replace

            job = super().bind(case, given)

            def run():
                self.stream.call()
                return job.run()

            return replace(job, run=run, keeps=None)

    from fastconv.benchmarks.cases import build_cases

    settings = Settings(device="gpu", warm=0.0, block=0.0, rewarm=0.0, rounds=2)
    (case,) = [case for case in build_cases(["tiny"]) if case.name == "tiny/conv3x3/fprop"]
    stream = stand_in(launch=5e-6, kernel=1e-3)
    table = Table({"planted": Seat("planted", OnStandIn(stream))}, settings)
    outcome = table.measure(case)["planted"]
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.timing.median == pytest.approx(1e-3, rel=1e-3)
    assert outcome.cold == outcome.timing.median
    assert outcome.warm == pytest.approx(1e-3, rel=1e-3)
    assert outcome.host == pytest.approx(5e-6, rel=0.1)
    assert outcome.memory == 50


def test_cold_calls_come_after_a_flush(monkeypatch):
    monkeypatch.setattr(device, "last_cache", lambda: 80)
    host, order = Host(), []
    monkeypatch.setattr(host, "_flush", lambda: order.append("flush"))
    block = host.block(lambda: order.append("call"), 2, cold=True)
    assert order == ["flush", "call", "flush", "call"]
    assert (len(block.seconds), block.host) == (2, [])
    assert host._sweep.nbytes == 80


def test_memory_of_a_call():
    """A call that takes 64 MB is seen to, where the system tells."""
    import numpy as np

    used = HOST.memory()
    if used is None:
        pytest.skip("this system does not tell a process's peak")
    np.ones(2**23).sum()
    assert 2**25 < HOST.peak() - used < 2**28


def test_the_last_cache(tmp_path):
    for index, size in enumerate(("48K", "2M", "32M", "512")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_cache(str(tmp_path)) == 32 * 2**20
    assert last_cache(str(tmp_path / "nothing")) == 32 * 2**20


@pytest.mark.parametrize("stream", [cuda.CupyStream, cuda.TorchStream])
def test_real_queues_have_what_the_stand_in_has(stream):
    wanted = {"put", "wait", "mark", "between", "flush", "record", "memory", "peak", "limits"}
    assert wanted <= set(dir(stream))
    assert wanted <= set(dir(StandIn))


@pytest.mark.gpu
@pytest.mark.skipif(cuda.missing() is not None, reason="no CUDA GPU")
def test_a_real_queue():
    import cupy
    import numpy as np

    queue = Queue(cuda.CupyStream())
    x = queue.put(np.ones(2**24, np.float32))
    cold, warm = (queue.block(lambda: cupy.add(x, x), 20, cold) for cold in (True, False))
    for block in (cold, warm):
        assert min(block.seconds) > 0
        assert float(block.result[0]) == 2
