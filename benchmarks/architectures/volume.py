"""Video and medical volumes: convolutions over three axes."""

from __future__ import annotations

from fastconv.benchmarks.architectures.image import join
from fastconv.benchmarks.architectures.light import rounded
from fastconv.benchmarks.architectures.walk import Suite, Walk


def c3d() -> Walk:
    net = Walk("C3D", 3, (16, 112, 112))
    for stage, (k, convs) in enumerate([(64, 1), (128, 1), (256, 2), (512, 2), (512, 2)], 1):
        for place in range(convs):
            net.conv(f"c3d-conv{stage}{'ab'[place] if convs > 1 else ''}", k, 3)
        net.pool(f"c3d-pool{stage}", (1, 2, 2) if stage == 1 else 2, ceil=stage == 5)
    return net


def r3d18() -> Walk:
    net = Walk("R3D-18", 3, (16, 112, 112))
    net.conv("r3d-stem", 64, (3, 7, 7), (1, 2, 2), (1, 3, 3))
    for stage in range(4):
        k = 64 << stage
        for block in range(2):
            taken, stride = net.at, 2 if stage and not block else 1
            net.conv(f"r3d-res{stage + 2}{'-first' if stride > 1 else ''}", k, 3, stride)
            net.conv(f"r3d-res{stage + 2}", k, 3)
            if stride == 1:
                net.add(taken)
            else:
                with net.branch(taken):
                    net.conv(f"r3d-res{stage + 2}-project", k, 1, 2)
    net.global_pool("r3d-avgpool")
    return net


def x3d_m() -> Walk:
    """Bottlenecks around a 3x3x3 depthwise convolution, every second one with squeeze-and-excitation."""
    net = Walk("X3D-M", 3, (16, 224, 224))
    net.conv("x3d-stem", 24, (1, 3, 3), (1, 2, 2))
    net.depthwise("x3d-stem-time", (5, 1, 1))
    for stage, (k, inner, count) in enumerate([(24, 54, 3), (48, 108, 5), (96, 216, 11), (192, 432, 7)], 2):
        for block in range(count):
            name, stride = f"x3d-res{stage}{'' if block else '-first'}", 1 if block else (1, 2, 2)
            taken = net.conv(f"{name}-expand", inner, 1)
            net.depthwise(f"{name}-3x3x3", 3, stride)
            if block % 2 == 0:
                net.squeeze(f"x3d-res{stage}", rounded(inner / 16))
            net.conv(f"{name}-project", k, 1)
            if block:
                net.add(taken)
            else:
                with net.branch(taken):
                    net.conv(f"x3d-res{stage}-shortcut", k, 1, stride)
    net.conv("x3d-last", 432, 1)
    net.global_pool("x3d-avgpool")
    net.conv("x3d-head", 2048, 1)
    return net


def unet3d() -> Walk:
    net, kept = Walk("3D-UNet", 3, (116, 132, 132)), []
    for level, k in enumerate((64, 128, 256, 512), 1):
        net.conv(f"down{level}-1", k // 2, 3, pad=0)
        net.conv(f"down{level}-2", k, 3, pad=0)
        if level < 4:
            kept.append(net.at)
            net.pool(f"pool{level}", 2)
    for level, k in zip((3, 2, 1), (256, 128, 64), strict=True):
        net.transposed(f"up{level}", net.channels, 2, 2)
        join(net, kept.pop())
        for place in (1, 2):
            net.conv(f"up{level}-{place}", k, 3, pad=0)
    net.conv("classes", 3, 1)
    return net


VOLUME = (
    Suite("video", """
Video, 16 frames. C3D (Tran and others 2015), 112x112; its last pooling rounds up. R3D-18 (Tran and others 2018),
112x112, as in torchvision. X3D-M (Feichtenhofer 2020), 224x224: depthwise in space and time, with the 1x1x1
convolutions of its squeeze-and-excitation and of its head.""",
          lambda: [c3d(), r3d18(), x3d_m()]),
    Suite("medical", """
3D U-Net (Cicek and others 2016, figure 2), a volume of 132x132x116 with 3 channels, valid convolutions; its
transposed convolutions ("up") are written as the convolutions that they are the adjoint of. Minutes on a CPU.""",
          lambda: [unet3d()]),
)  # fmt: skip
