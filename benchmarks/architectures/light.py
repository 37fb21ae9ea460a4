"""Networks on images, built around depthwise convolutions."""

from __future__ import annotations

from fastconv.benchmarks.architectures.walk import Suite, Walk


def mobilenet_v2() -> Walk:
    """Inverted residuals: 1x1 to t times the channels, 3x3 depthwise, 1x1."""
    net = Walk("MobileNetV2", 3, (224, 224))
    net.conv("stem", 32, 3, 2)
    number = 0
    for t, k, count, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for place in range(count):
            number += 1
            taken, stride = net.at, 1 if place else first
            if t > 1:
                net.conv(f"block{number}-expand", t * net.channels, 1)
            net.depthwise(f"block{number}-depthwise", 3, stride)
            net.conv(f"block{number}-project", k, 1)
            if place:
                net.add(taken)
    net.conv("last", 1280, 1)
    net.global_pool("avgpool")
    return net


#: Kernel, width inside, channels, squeeze-and-excitation, stride (table 1 of the paper, the large network).
MOBILENET_V3 = [
    (3, 16, 16, False, 1), (3, 64, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1),
    (5, 120, 40, True, 1), (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1),
    (3, 184, 80, False, 1), (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2),
    (5, 960, 160, True, 1), (5, 960, 160, True, 1),
]  # fmt: skip


def rounded(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is not more than a tenth smaller."""
    near = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return near if near >= 0.9 * width else near + divisor


def mobilenet_v3() -> Walk:
    net = Walk("MobileNetV3", 3, (224, 224))
    net.conv("stem", 16, 3, 2)
    for number, (ksize, inner, k, squeezed, stride) in enumerate(MOBILENET_V3, 1):
        taken = net.at
        if inner != net.channels:
            net.conv(f"block{number}-expand", inner, 1)
        net.depthwise(f"block{number}-depthwise", ksize, stride)
        if squeezed:
            net.squeeze(f"block{number}", rounded(inner / 4))
        net.conv(f"block{number}-project", k, 1)
        if stride == 1 and taken[0] == k:
            net.add(taken)
    net.conv("last", 960, 1)
    net.global_pool("avgpool")
    return net


def efficientnet_b0() -> Walk:
    """Inverted residuals, all with squeeze-and-excitation to a quarter of the block's input channels."""
    net = Walk("EfficientNet-B0", 3, (224, 224))
    net.conv("stem", 32, 3, 2)
    number = 0
    for t, ksize, k, count, first in [
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]:  # fmt: skip
        for place in range(count):
            number += 1
            taken, stride = net.at, 1 if place else first
            if t > 1:
                net.conv(f"block{number}-expand", t * net.channels, 1)
            net.depthwise(f"block{number}-depthwise", ksize, stride)
            net.squeeze(f"block{number}", taken[0] // 4)
            net.conv(f"block{number}-project", k, 1)
            if place:
                net.add(taken)
    net.conv("last", 1280, 1)
    net.global_pool("avgpool")
    return net


def convnext_tiny() -> Walk:
    """Blocks of 7x7 depthwise, then two linear layers, which are 1x1 convolutions, to 4 times the channels and back."""
    net = Walk("ConvNeXt-T", 3, (224, 224))
    for stage, (k, count) in enumerate([(96, 3), (192, 3), (384, 9), (768, 3)], 1):
        net.conv("stem" if stage == 1 else f"down{stage}", k, 4 if stage == 1 else 2, 4 if stage == 1 else 2, pad=0)
        for _ in range(count):
            taken = net.depthwise(f"stage{stage}-depthwise", 7)
            net.conv(f"stage{stage}-expand", 4 * k, 1)
            net.conv(f"stage{stage}-project", k, 1)
            net.add(taken)
    net.global_pool("avgpool")
    return net


def replknet_31b() -> Walk:
    """Blocks of 1x1, large depthwise, 1x1, each followed by 1x1 to 4 times the channels and back."""
    net = Walk("RepLKNet-31B", 3, (224, 224))
    net.conv("stem", 128, 3, 2)
    net.depthwise("stem-depthwise1", 3)
    net.conv("stem-1x1", 128, 1)
    net.depthwise("stem-depthwise2", 3, 2)
    for stage, (k, count, ksize) in enumerate([(128, 2, 31), (256, 2, 29), (512, 18, 27), (1024, 2, 13)], 1):
        if stage > 1:
            net.conv(f"transition{stage}-1x1", k, 1)
            net.depthwise(f"transition{stage}-depthwise", 3, 2)
        for _ in range(count):
            taken = net.conv(f"stage{stage}-1x1", k, 1)
            net.depthwise(f"stage{stage}-{ksize}x{ksize}", ksize)
            net.conv(f"stage{stage}-1x1", k, 1)
            net.conv(f"stage{stage}-expand", 4 * k, 1)
            net.conv(f"stage{stage}-project", k, 1)
            net.add(taken)
    net.global_pool("avgpool")
    return net


LIGHT = (
    Suite("mobilenetv2", "MobileNetV2 (Sandler and others 2018, table 2), 224x224x3.", lambda: [mobilenet_v2()]),
    Suite("mobilenetv3", """
MobileNetV3-Large (Howard and others 2019, table 1), 224x224x3, with the 1x1 convolutions of its
squeeze-and-excitation.""",
          lambda: [mobilenet_v3()]),
    Suite("efficientnet", """
EfficientNet-B0 (Tan, Le 2019, table 1), 224x224x3, with the 1x1 convolutions of its squeeze-and-excitation.""",
          lambda: [efficientnet_b0()]),
    Suite("convnext", """
ConvNeXt-T (Liu and others 2022), 224x224x3. "expand" and "project" are linear layers there, which are 1x1
convolutions.""",
          lambda: [convnext_tiny()]),
    Suite("replknet", """
RepLKNet-31B (Ding, Zhang, Han, Ding 2022), 224x224x3, its 5x5 branches merged into the large kernels.""",
          lambda: [replknet_31b()]),
)  # fmt: skip
