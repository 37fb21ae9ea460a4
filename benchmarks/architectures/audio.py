"""Speech and audio: convolutions over time."""

from __future__ import annotations

from fastconv.benchmarks.architectures.walk import Suite, Walk


def whisper() -> Walk:
    net = Walk("Whisper-large-v2", 80, (3000,))
    net.conv("whisper-conv1", 1280, 3)
    net.conv("whisper-conv2", 1280, 3, 2)
    return net


def wav2vec2() -> Walk:
    net = Walk("wav2vec2-base", 1, (16000,))
    for number, (ksize, stride) in enumerate([(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2, 1):
        net.conv(f"wav2vec2-conv{number}", 512, ksize, stride, pad=0)
    net.channels = 768  # by a linear layer
    net.conv("wav2vec2-position", 768, 128, pad=64, groups=16)
    return net


def encodec() -> Walk:
    """Encoder and decoder at 24 kHz on a second. Padding is by reflection, before the layer: it is in the sizes."""
    net = Walk("EnCodec-24kHz", 1, (24000,))
    wide_conv(net, "encodec-first", 32, 7)
    for ratio in (2, 4, 5, 8):
        residual(net, f"encodec-down{ratio}")
        wide_conv(net, f"encodec-down{ratio}", 2 * net.channels, 2 * ratio, ratio)
    wide_conv(net, "encodec-code", 128, 7)
    wide_conv(net, "encodec-decode", 512, 7)
    for ratio in (8, 5, 4, 2):
        length = net.size[0]
        net.transposed(f"encodec-up{ratio}", net.channels // 2, 2 * ratio, ratio)
        net.resize(high=-ratio)  # what the causal form cuts off
        assert net.size[0] == length * ratio
        residual(net, f"encodec-up{ratio}")
    wide_conv(net, "encodec-last", 1, 7)
    return net


def wide_conv(net: Walk, name: str, k: int, ksize: int, stride: int = 1) -> None:
    net.resize(low=ksize - stride)
    net.conv(name, k, ksize, stride, pad=0)


def residual(net: Walk, name: str) -> None:
    """k3 to half of the channels and k1 back, beside a shortcut of k1."""
    taken = net.at
    wide_conv(net, f"{name}-k3", net.channels // 2, 3)
    net.conv(f"{name}-k1", taken[0], 1)
    net.add(taken)
    net.conv(f"{name}-shortcut", taken[0], 1)


def mamba() -> Walk:
    net = Walk("Mamba-130m", 1536, (2048,))
    for _ in range(24):
        net.depthwise("mamba-depthwise", 4, pad=3)
        net.size = (2048,)  # the last three are cut off
    return net


AUDIO = (
    Suite("audio", """
Convolutions over time. Whisper large-v2 (Radford and others 2022): 30 s of 80 mel bands. wav2vec 2.0 base (Baevski
and others 2020): one second at 16 kHz; the position embedding has a padding of 64. EnCodec (Defossez and others 2022):
one second at 24 kHz, encoder and decoder; it pads by reflection before its convolutions, so that sizes contain it;
its transposed convolutions ("up") are written as the convolutions that they are the adjoint of. Mamba-130m (Gu, Dao
2023): the causal depthwise convolution of its 24 layers, 2048 tokens, padded by 3 on both sides.""",
          lambda: [whisper(), wav2vec2(), encodec(), mamba()]),
)  # fmt: skip
