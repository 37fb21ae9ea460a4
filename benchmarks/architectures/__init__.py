"""Networks walked through block by block: where the suites of whole networks come from.

``python -m fastconv.benchmarks.architectures`` writes their files into `suites/`; a test holds each file
to the walk, and the walk to the network's published number of parameters.
"""

from fastconv.benchmarks.architectures.audio import AUDIO
from fastconv.benchmarks.architectures.image import IMAGE
from fastconv.benchmarks.architectures.light import LIGHT
from fastconv.benchmarks.architectures.volume import VOLUME
from fastconv.benchmarks.architectures.walk import Suite, Walk

__all__ = ["SUITES", "Suite", "Walk"]

#: Every suite of whole networks, by name.
SUITES: dict[str, Suite] = {suite.name: suite for suite in (*IMAGE, *LIGHT, *AUDIO, *VOLUME)}
