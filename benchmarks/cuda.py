"""What can only run where a CUDA GPU is: the queues of CuPy and of PyTorch for `fastconv.benchmarks.device.Queue`.

Both time with CUDA events on the library's current stream, flush by a memset of twice the L2 cache, and record
with stream capture. Nothing else in the benchmarks needs a GPU; a stand-in takes the place of these in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from fastconv.benchmarks.device import Call, Queue
from fastconv.benchmarks.limits import Limits

PRODUCT, COPY = 8192, 2**30  # the side of the matrices, the bytes of the copy


def missing() -> str | None:
    """Why there is no GPU for CuPy here, or None where there is one."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy fails in many ways where there is no driver
        return f"no CUDA GPU for CuPy: {type(error).__name__}: {error}"
    return None


class CupyStream:
    """CuPy's current stream and memory pool."""

    def put(self, array: np.ndarray) -> Any:
        import cupy

        return cupy.asarray(array)

    def wait(self) -> None:
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def mark(self) -> Any:
        import cupy

        event = cupy.cuda.Event()
        event.record()
        return event

    def between(self, start: Any, stop: Any) -> float:
        import cupy

        return 1e-3 * cupy.cuda.get_elapsed_time(start, stop)

    @cached_property
    def _sweep(self) -> Any:
        import cupy

        return cupy.empty(2 * cupy.cuda.Device().attributes["L2CacheSize"], cupy.uint8)

    def flush(self) -> None:
        self._sweep.fill(0)

    def record(self, call: Call) -> tuple[Call, Any]:
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            call()  # whatever is made once is made before the capture
            stream.synchronize()
            stream.begin_capture()
            result = call()
            graph = stream.end_capture()
        return graph.launch, result

    def memory(self) -> int:
        import cupy

        self._pool = cupy.get_default_memory_pool()
        self._pool.free_all_blocks()
        return int(self._pool.total_bytes())

    def peak(self) -> int:
        return int(self._pool.total_bytes())  # the pool keeps what it took

    def limits(self, dtype: str) -> Limits:
        import cupy

        kind = {"float64": cupy.float64, "float32": cupy.float32}.get(dtype, cupy.float16)
        first, second = (cupy.ones((PRODUCT, PRODUCT), kind) for _ in range(2))
        source = cupy.ones(COPY, cupy.uint8)
        target = cupy.empty_like(source)
        return _limits(Queue(self), lambda: cupy.matmul(first, second), lambda: cupy.copyto(target, source))

    @staticmethod
    def name() -> str:
        import cupy

        return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()


class TorchStream:
    """PyTorch's current CUDA stream and its caching allocator."""

    def put(self, array: np.ndarray) -> Any:
        from fastconv.benchmarks.peers.pytorch import to_torch

        return to_torch(array).cuda()

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, stop: Any) -> float:
        return 1e-3 * start.elapsed_time(stop)

    @cached_property
    def _sweep(self) -> Any:
        import torch

        size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        return torch.empty(2 * size, dtype=torch.uint8, device="cuda")

    def flush(self) -> None:
        self._sweep.zero_()

    def record(self, call: Call) -> tuple[Call, Any]:
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()  # cuDNN chooses its algorithms before the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return graph.replay, result

    def memory(self) -> int:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_allocated())

    def limits(self, dtype: str) -> Limits:
        import torch

        kind = getattr(torch, dtype)
        first, second = (torch.ones(PRODUCT, PRODUCT, dtype=kind, device="cuda") for _ in range(2))
        source = torch.ones(COPY, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return _limits(Queue(self), lambda: first @ second, lambda: target.copy_(source))


def _limits(queue: Queue, product: Callable[[], Any], copy: Callable[[], Any]) -> Limits:
    """The best of repeated products and copies."""
    for call in (product, copy):
        queue.block(call, 3, False)
    flops, copied = (min(queue.block(call, 20, False).seconds) for call in (product, copy))
    return Limits(2 * PRODUCT**3 / flops, 2 * COPY / copied)
