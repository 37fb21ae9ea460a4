"""A convolution, its pooling and its weight gradient over an image several times larger than the workers' memory.

    python examples/dask_larger_than_memory.py --gib 4 --workers 2 --memory 448

starts a cluster on this machine, whose dashboard shows the blocks as they come and go, lets its workers make up the
image block by block, and prints the peak memory of each. The same program runs on a cluster of machines: give `Client`
the address of its scheduler.
"""

from __future__ import annotations

import argparse
import time

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

import fastconv
from fastconv.interop import dask as fc

BLOCK = 1024  # pixels along each side: 4 MiB of float32


def image(gib: float) -> da.Array:
    """x[1, 1, side, side], random, made when it is asked for: no memory holds it."""
    side = int((gib * 2**30 / 4) ** 0.5)
    return da.random.default_rng(0).random((1, 1, side, side), chunks=(1, 1, BLOCK, BLOCK), dtype=np.float32)


def peak_mib() -> float:
    """The largest memory that this process has had so far."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def compile_kernels(w: np.ndarray) -> None:
    """Once here, on a block: workers find the kernels in the cache folder, and keep their memory for the image."""
    x = np.zeros((1, 1, BLOCK, BLOCK), np.float32)
    y = fastconv.conv2d(x, w, padding=1)
    fastconv.max_pool2d(y, 3, stride=2)
    fastconv.conv2d_wgrad(y, x, w.shape, padding=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the image")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", type=int, default=448, help="memory limit of each worker, in MiB")
    options = parser.parse_args()
    w = np.random.default_rng(1).standard_normal((2, 1, 3, 3)).astype(np.float32)
    compile_kernels(w)
    with (
        LocalCluster(
            n_workers=options.workers, threads_per_worker=1, memory_limit=f"{options.memory}MiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        print(f"dashboard: {cluster.dashboard_link}")
        x = image(options.gib)
        print(f"image: {x.nbytes / 2**30:.2f} GiB in {x.npartitions} blocks, {options.memory} MiB for each worker")
        before = client.run(peak_mib)
        start = time.perf_counter()
        y = fc.conv2d(x, w, padding=1)
        pooled = fc.max_pool2d(da.maximum(y, 0), 3, stride=2)
        gradient = fc.conv2d_wgrad(y, x, w.shape, padding=1)  # of sum(y**2) / 2
        mean, gradient, corner, result = dask.compute(
            pooled.mean(), gradient, x[..., :1500, :1500], pooled[..., :700, :700]
        )
        print(f"mean of the pooled output {mean:.6f}, gradient to w[0, 0, 1, 1] {gradient[0, 0, 1, 1]:.6g}")
        print(f"{time.perf_counter() - start:.1f} s")
        whole = fastconv.max_pool2d(fastconv.conv2d(corner, w, padding=1, activation="relu"), 3, stride=2)
        assert np.allclose(result, whole[..., :700, :700], rtol=1e-5, atol=1e-5)
        after = client.run(peak_mib)
        for worker, peak in after.items():
            print(f"peak of {worker}: {peak:.0f} MiB, {before[worker]:.0f} of them before the first block")
        assert len(after) == options.workers
        assert max(after.values()) < options.memory


if __name__ == "__main__":
    main()
