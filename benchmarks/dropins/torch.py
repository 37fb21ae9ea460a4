"""PyTorch: networks in both memory formats, a forward pass and a training step, unmodified under the patch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from fastconv.benchmarks.dropins.measure import Program, Results
from fastconv.interop.torch import patch


def conv(c: int, k: int, ksize: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(c, k, ksize, stride, ksize // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(k), nn.ReLU())


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, c: int, k: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(conv(c, k, 3, stride), conv(k, k))
        self.skip = nn.Identity() if c == k and stride == 1 else conv(c, k, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.skip(x)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(), nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 36, 10),
    )  # fmt: skip


def resnet18() -> nn.Module:
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              (512, 512, 1)]  # fmt: skip
    blocks = (Block(*width) for width in widths)
    return nn.Sequential(conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks, *head(512))


def depthwise_network() -> nn.Module:
    widths = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    blocks = (nn.Sequential(conv(c, c, 3, stride, c), conv(c, k, 1)) for c, k, stride in widths)
    return nn.Sequential(conv(3, 32, 3, 2), *blocks, *head(256))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


def forward(model: nn.Module, x: torch.Tensor) -> Results:
    with torch.inference_mode():
        return [model(x).numpy()]


def train(model: nn.Module, x: torch.Tensor) -> Results:
    model.zero_grad()
    y = model(x)
    nn.functional.cross_entropy(y, torch.arange(len(x)) % y.shape[1]).backward()
    return [y.detach().numpy(), *(weight.grad.numpy() for weight in model.parameters())]


def programs() -> Iterator[Program]:
    torch.manual_seed(0)
    for name, model, shape in (
        ("small CNN", small_cnn(), (64, 1, 28, 28)),
        ("ResNet-18", resnet18(), (4, 3, 224, 224)),
        ("depthwise network", depthwise_network(), (8, 3, 160, 160)),
    ):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).contiguous(memory_format=form)
            title = f"{name} {'x'.join(map(str, shape))}" + (", channels_last" * (form is torch.channels_last))
            for work, step in (("forward", forward), ("training step", train)):
                placed = copy.deepcopy(model).to(memory_format=form).train(step is train)
                exact = copy.deepcopy(placed).double()
                yield Program(
                    f"{title}, {work}", partial(step, placed, x), patch, exact=partial(step, exact, x.double())
                )
