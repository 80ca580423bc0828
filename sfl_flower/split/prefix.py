"""What no probe of a client moves, and the rest: once a mini-batch, and once a probe.

Often only the last layers of a client half are trained. Everything before the first trained
parameter gives the same values in every forward of a mini-batch, so a client keeps the values at
the boundary and runs what follows alone: the same operations in the same order, the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from sfl_flower.split.graph.half import Half
from sfl_flower.split.graph.parting import Parted, Values, part_graph
from sfl_flower.split.transformers.block_halves import ClientBlocks
from sfl_flower.split.transformers.parting import part_blocks
from sfl_flower.split.whole import Whole

__all__ = ["CROSSING_SHARE", "Parted", "Values", "parted"]

CROSSING_SHARE = 4
"""A client keeps what crosses between two messages where it has at most so many bytes of z."""


def parted(module: nn.Module, trained: Iterable[Tensor]) -> Parted | None:
    """Part a module before its first trained parameter.

    Parameters
    ----------
    module : nn.Module
        A client half as `cut` gives it, or a whole model of two halves; it stays as it is, and both
        parts run its own layers, hooks included.
    trained : iterable of Tensor
        The parameters that move; other values of these very tensors are seen.

    Returns
    -------
    Parted or None
        None where nothing that has weights comes before, or where it cannot be told what does.

    Notes
    -----
    Both parts run without a graph, in the modes that the module has. BatchNorm in train mode moves
    its running statistics whenever its part runs. Dropout goes on drawing where it stands: whoever
    wants the same masks in every forward puts the generator where `first` left it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sfl_flower.split import cut, parted
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> half = cut(model, "2").client
    >>> parts = parted(half, half.get_submodule("2").parameters())
    >>> x = torch.ones(3, 4)
    >>> torch.equal(parts.rest(parts.first(x)), half(x))
    True
    """
    return _part(module, {id(parameter) for parameter in trained})


def _part(module: nn.Module, trained: Collection[int]) -> Parted | None:
    weights = {id(parameter) for parameter in module.parameters()}
    if not weights & set(trained):  # nothing of it moves
        return _all(module) if weights else None
    if isinstance(module, Whole):
        return _in_turn(module.client, module.server, trained)
    if isinstance(module, Half):
        return part_graph(module, trained)
    return part_blocks(module, trained) if isinstance(module, ClientBlocks) else None


def _all(module: nn.Module) -> Parted:
    return Parted(torch.no_grad()(lambda x: [module(x)]), lambda values: values[0])


def _in_turn(below: nn.Module, above: nn.Module, trained: Collection[int]) -> Parted | None:
    """Part two modules of which the second runs on the output of the first."""
    one = _part(below, trained)
    if one is None:
        return None
    start, end = one.first, one.rest
    moves = {id(parameter) for parameter in below.parameters()} & set(trained)
    if not moves and (other := _part(above, trained)) is not None:
        return Parted(lambda x: other.first(end(start(x))), other.rest)
    return Parted(start, torch.no_grad()(lambda values: above(end(values))))
