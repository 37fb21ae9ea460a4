"""What ``torch.compile`` does with poolings under a patch: they stay calls of their operators.

Inductor calls PyTorch's kernels for convolutions, but writes loops of its own for most poolings, which would
pass by the dispatcher. While a patch is installed, a pass over its graphs marks the poolings as calls to leave
alone. The pass has an identity, by which Inductor's caches keep the graphs compiled with and without it apart.
A graph keeps the calls that it was compiled with; who computes them is decided when they are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._inductor import config, decomposition
from torch._inductor.custom_graph_pass import CustomGraphPass, get_custom_graph_passes, get_hash_for_files


class KeepCalls(CustomGraphPass):
    """Marks the nodes of some ``aten`` operators, which then become calls of them."""

    def __init__(self, names: Iterable[str]):
        self.operators = {getattr(torch.ops.aten, name).default for name in names}
        self.decompositions: dict[Any, Any] = {}

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            if node.target in self.operators:
                node.meta["should_fallback"] = True

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))

    def install(self) -> None:
        """From now on, for every graph; decompositions would take the operators apart before the pass sees them."""
        config.post_grad_custom_post_pass = [*get_custom_graph_passes(config.post_grad_custom_post_pass), self]
        table = decomposition.decompositions
        self.decompositions = {name: table.pop(name) for name in self.operators if name in table}
        decomposition.fast_random_decomps.cache_clear()

    def uninstall(self) -> None:
        passes = [other for other in get_custom_graph_passes(config.post_grad_custom_post_pass) if other is not self]
        config.post_grad_custom_post_pass = passes or None
        decomposition.decompositions.update(self.decompositions)
        decomposition.fast_random_decomps.cache_clear()
