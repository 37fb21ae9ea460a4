"""The figures of scaling: verified, in turns, and a page and a plot of them."""

from __future__ import annotations

import xml.etree.ElementTree

import numpy as np
import pytest

from fastconv.benchmarks import scaling
from fastconv.benchmarks.scaling import Growth

SMALL = (("1x1", "conv", "conv2d n=1 c=8 size=8 k=8 ksize=1"), ("pooling", "maxpool", "pool2d n=1 c=4 size=8 ksize=2"))


def test_time_against_work():
    assert Growth("1x1, batch", "fprop", ("1", "2", "4"), (1, 2, 4), (3e-6, 6e-6, 6e-6)).against_work() == [1, 1, 0.5]


def test_page_and_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "LAYERS", SMALL)
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "scaling.md")
    monkeypatch.setattr(scaling, "PLOT", tmp_path / "scaling.svg")
    shown = []
    scaling.main(["--rounds", "1", "--keep"], shown.append)
    text = (tmp_path / "scaling.md").read_text()
    assert shown == [text]
    for words in (
        "| 1x1 | wgrad |",
        "| pooling | dgrad |",
        "| 1x1, batch | 1, 2, 4, 8 |",
        "| pooling, size | 4, 6, 8, 12 |",
    ):
        assert words in text
    root = xml.etree.ElementTree.parse(tmp_path / "scaling.svg").getroot()
    assert (
        len(root.findall("{http://www.w3.org/2000/svg}path")) == 4 + 2
    )  # two layers by batch and size, and the legend


def test_a_wrong_result_has_no_time():
    one = scaling.Call(scaling.case(*SMALL[0], "fprop"), 1)
    one.block()
    read = one.job.read
    object.__setattr__(one.job, "read", lambda result: read(result) + np.float32(1e-2))
    with pytest.raises(scaling.Wrong, match="wrong values"):
        one.finish()
