"""Train an unmodified PyTorch module with fastconv computing its convolutions and poolings.

    python examples/train_torch_module.py

The module learns ten noisy patterns twice from the same start: on PyTorch's own kernels, then under `patch`.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastconv.interop.torch import patch


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> list[float]:
    """The losses of some steps of gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 20) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    labels = torch.arange(40) % 10
    images = torch.randn(10, 1, 20, 20)[labels] + 0.3 * torch.randn(40, 1, 20, 20)
    model = network()
    twin = copy.deepcopy(model)
    with patch() as patched:
        train(copy.deepcopy(model), images, labels, 1)  # compiles what is not in the cache yet
        start = time.perf_counter()
        ours = train(model, images, labels, steps)
        print(f"fastconv {time.perf_counter() - start:6.2f} s   loss {ours[0]:.5f} -> {ours[-1]:.5f}")
    start = time.perf_counter()
    theirs = train(twin, images, labels, steps)
    print(f"PyTorch  {time.perf_counter() - start:6.2f} s   loss {theirs[0]:.5f} -> {theirs[-1]:.5f}")
    print(patched.report())
    return ours, theirs


if __name__ == "__main__":
    main()
