"""Networks on images, built of dense and grouped convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastconv.benchmarks.architectures.walk import Shape, Suite, Walk


def alexnet() -> Walk:
    net = Walk("AlexNet", 3, (227, 227))
    net.conv("conv1", 96, 11, 4, pad=0)
    net.pool("pool1", 3, 2)
    net.conv("conv2", 256, 5, groups=2)
    net.pool("pool2", 3, 2)
    net.conv("conv3", 384, 3)
    net.conv("conv4", 384, 3, groups=2)
    net.conv("conv5", 256, 3, groups=2)
    net.pool("pool5", 3, 2)
    return net


def vgg19() -> Walk:
    net = Walk("VGG-19", 3, (224, 224))
    for stage, (k, names) in enumerate([(64, "1 2"), (128, "1 2"), (256, "1 2-4"), (512, "1 2-4"), (512, "1-4")], 1):
        for name in names.split():
            for _ in range(3 if name == "2-4" else 4 if name == "1-4" else 1):
                net.conv(f"conv{stage}_{name}", k, 3)
        net.pool(f"pool{stage}", 2)
    return net


def resnet(network: str, blocks: Sequence[int], groups: int = 1, width: int = 64) -> Walk:
    """Bottlenecks; the stride of a stage is on its first 3x3."""
    net = Walk(network, 3, (224, 224))
    net.conv("stem", 64, 7, 2)
    net.pool("pool1", 3, 2, 1)
    for stage, count in enumerate(blocks):
        inner, k = width << stage, 256 << stage
        for block in range(count):
            name, first, stride = f"res{stage + 2}", "" if block else "-first", 2 if stage and not block else 1
            taken = net.conv(f"{name}{first}-reduce", inner, 1)
            net.conv(f"{name}{first if stage else ''}-3x3", inner, 3, stride, groups=groups)
            if block:
                net.conv(f"{name}-expand", k, 1)
                net.add(taken)
            else:
                with net.branch(taken):
                    like = taken[0] == inner and stride == 1  # of the shape of the expansions
                    net.conv(f"{name}-expand" if like else f"{name}-project", k, 1, stride)
                net.conv(f"{name}-expand", k, 1)
    net.global_pool("avgpool")
    return net


def googlenet() -> Walk:
    """An inception module is 1x1, 1x1 and 3x3, 1x1 and 5x5, and a pooling and 1x1, side by side."""
    net = Walk("GoogLeNet", 3, (224, 224))
    net.conv("stem", 64, 7, 2)
    net.pool("pool1", 3, 2, ceil=True)
    net.conv("stem-reduce", 64, 1)
    net.conv("stem-3x3", 192, 3)
    net.pool("pool2", 3, 2, ceil=True)
    for name, widths in INCEPTIONS.items():
        if name in ("4a", "5a"):
            net.pool(f"pool{int(name[0]) - 1}", 3, 2, ceil=True)
        inception(net, name, *widths)
    net.global_pool("avgpool")
    return net


#: Filters of 1x1; of 1x1 before 3x3, and 3x3; of 1x1 before 5x5, and 5x5; of 1x1 after the pooling (the paper's table).
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def inception(net: Walk, name: str, one: int, before3: int, three: int, before5: int, five: int, after: int) -> None:
    def pair(reduce: int, k: int, ksize: int) -> None:
        net.conv(f"{name}-{ksize}x{ksize}-reduce", reduce, 1)
        net.conv(f"{name}-{ksize}x{ksize}", k, ksize)

    def pooled() -> None:
        net.pool(f"{name}-pool", 3, 1, 1)
        net.conv(f"{name}-pool-project", after, 1)

    net.concat(
        lambda: net.conv(f"{name}-1x1", one, 1), lambda: pair(before3, three, 3), lambda: pair(before5, five, 5), pooled
    )


def squeezenet() -> Walk:
    """A fire module squeezes by 1x1 and expands by 1x1 and 3x3 side by side."""
    net = Walk("SqueezeNet", 3, (224, 224))
    net.conv("conv1", 96, 7, 2, pad=0)
    net.pool("pool1", 3, 2, ceil=True)
    for fire, (squeeze, k) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)], 2
    ):
        net.conv(f"fire{fire}-squeeze", squeeze, 1)
        net.concat(
            partial(net.conv, f"fire{fire}-expand1", k, 1), partial(net.conv, f"fire{fire}-expand3", k, 3)
        )  # fmt: skip
        if fire in (4, 8):
            net.pool(f"pool{fire}", 3, 2, ceil=True)
    net.conv("conv10", 1000, 1)
    net.global_pool("avgpool")
    return net


def densenet121() -> Walk:
    """Each layer of a block takes all that came before it, and adds 32 channels."""
    net = Walk("DenseNet-121", 3, (224, 224))
    net.conv("stem", 64, 7, 2)
    net.pool("pool1", 3, 2, 1)
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            taken = net.conv(f"block{block}-{layer}-reduce", 128, 1)
            net.conv(f"block{block}-3x3", 32, 3)
            net.channels += taken[0]
        if block < 4:
            net.conv(f"transition{block}", net.channels // 2, 1)
            net.pool(f"transition{block}-pool", 2, kind="avg")
    net.global_pool("avgpool")
    return net


def aspp() -> Walk:
    """The head of DeepLabV3 at output stride 16 on a crop of 513: 1x1, three dilated 3x3 and a mean, side by side."""
    net = Walk("DeepLabV3-head", 2048, (33, 33))

    def mean() -> None:
        _, size = net.global_pool("pool")
        net.conv("pool-1x1", 256, 1)
        net.size = size  # by bilinear interpolation

    dilated = [partial(net.conv, f"3x3-d{rate}", 256, 3, dilation=rate) for rate in (6, 12, 18)]
    net.concat(lambda: net.conv("1x1", 256, 1), *dilated, mean)
    net.conv("project", 256, 1)
    net.conv("last-3x3", 256, 3)
    net.conv("classes", 21, 1)
    return net


def unet() -> Walk:
    """Valid 3x3 convolutions down and up again, the maps of the way down cropped and joined on the way up."""
    net, kept = Walk("UNet", 1, (572, 572)), []
    for level, k in enumerate((64, 128, 256, 512, 1024), 1):
        for place in (1, 2):
            net.conv(f"down{level}-{place}", k, 3, pad=0)
        if level < 5:
            kept.append(net.at)
            net.pool(f"pool{level}", 2)
    for level, k in zip((4, 3, 2, 1), (512, 256, 128, 64), strict=True):
        net.transposed(f"up{level}", k, 2, 2)
        join(net, kept.pop())
        for place in (1, 2):
            net.conv(f"up{level}-{place}", k, 3, pad=0)
    net.conv("classes", 2, 1)
    return net


def join(net: Walk, skip: Shape) -> None:
    """Crop what was kept to the map at hand and join their channels."""
    channels, size = skip
    assert all(n >= m for n, m in zip(size, net.size, strict=True)), f"cannot crop {size} to {net.size}"
    net.channels += channels


IMAGE = (
    Suite("alexnet", "AlexNet (Krizhevsky, Sutskever, Hinton 2012), 227x227x3, with the groups of its two GPUs.",
          lambda: [alexnet()]),
    Suite("vgg19", "VGG-19 (Simonyan, Zisserman 2015), 224x224x3: 3x3 convolutions only. 16 convolutions, 5 poolings.",
          lambda: [vgg19()]),
    Suite("resnet50", """
ResNet-50 (He, Zhang, Ren, Sun 2016), 224x224x3, stages of 3, 4, 6 and 3 bottlenecks. The stride of a stage
is on its first 3x3 (torchvision's variant 1.5). "reduce", "3x3" and "expand" are the three convolutions of
a bottleneck, "first" those of a stage's first one where they differ, "project" is its shortcut. 53 convolutions.""",
          lambda: [resnet("ResNet-50", (3, 4, 6, 3))]),
    Suite("resnet152", """
ResNet-152 (He, Zhang, Ren, Sun 2016), 224x224x3, stages of 3, 8, 36 and 3 bottlenecks. The stride of a
stage is on its first 3x3 (torchvision's variant 1.5). "reduce", "3x3" and "expand" are the three
convolutions of a bottleneck, "first" those of a stage's first one where they differ, "project" is its
shortcut. res2's shortcut has the shape of its expansions and is counted with them. 155 convolutions.""",
          lambda: [resnet("ResNet-152", (3, 8, 36, 3))]),
    Suite("resnext50", """
ResNeXt-50 32x4d (Xie, Girshick, Dollar, Tu, He 2017), 224x224x3: ResNet-50 with 3x3 of 32 groups, names as there.""",
          lambda: [resnet("ResNeXt-50", (3, 4, 6, 3), 32, 128)]),
    Suite("googlenet", """
GoogLeNet (Szegedy and others 2015, table 1), 224x224x3, without the auxiliary classifiers; poolings round up.""",
          lambda: [googlenet()]),
    Suite("squeezenet", """
SqueezeNet 1.0 (Iandola and others 2016, table 1), 224x224x3; poolings round up, as in torchvision.""",
          lambda: [squeezenet()]),
    Suite("densenet121", """
DenseNet-121 (Huang, Liu, van der Maaten, Weinberger 2017, table 1), 224x224x3, growth rate 32.""",
          lambda: [densenet121()]),
    Suite("deeplabv3", """
The head of DeepLabV3 (Chen, Papandreou, Schroff, Adam 2017): atrous spatial pyramid pooling on the 33x33x2048 map
of a ResNet at output stride 16 (crop 513), rates 6, 12, 18, then torchvision's 3x3 and the 21 classes.""",
          lambda: [aspp()]),
    Suite("unet", """
U-Net (Ronneberger, Fischer, Brox 2015, figure 1), 572x572x1, valid convolutions. "up" are its transposed
convolutions, 2x2 with stride 2, written as the convolutions that they are the adjoint of: c and size are
of what comes out of the layer, k is its input channels.""",
          lambda: [unet()]),
)  # fmt: skip
