"""Which modules of a half are called, and hold parameters that nothing else reads."""

from __future__ import annotations

from torch import nn

from sfl_flower.split.graph.half import Half
from sfl_flower.split.transformers.block_halves import BlockHalf, Passed
from sfl_flower.split.transformers.families import find
from sfl_flower.split.whole import Whole

__all__ = ["called_layers"]

_KNOWN = ("torch.nn.", "sfl_flower.split.parameters.")


def called_layers(module: nn.Module) -> list[nn.Module]:
    """Return modules whose parameters are read in calls of them and nowhere else.

    Parameters
    ----------
    module : nn.Module
        A half as `cut` gives it, or a whole model of two halves; of any other module nothing is
        known.

    Returns
    -------
    list of nn.Module
        The layers of torch that a recorded half calls, none where it calls other modules too;
        embeddings and blocks of a transformers model. In the order of their first calls.
    """
    if isinstance(module, Whole):
        return [*called_layers(module.client), *called_layers(module.server)]
    if isinstance(module, Half):
        return _of_graph(module)
    return _of_blocks(module) if isinstance(module, BlockHalf) else []


def _of_graph(half: Half) -> list[nn.Module]:
    nodes = half._sfl_graph.nodes
    named = dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module")
    called = [half.get_submodule(name) for name in named]
    if not all(map(_is_known, called)):  # it may read another layer, or give its own parameter
        return []
    # A parameter, or a module whose parameters a function reads.
    read = tuple(str(node.target) for node in nodes if node.op == "get_attr")
    below = tuple(f"{name}." for name in read)
    own = half.named_parameters(remove_duplicate=False)
    apart = {id(p) for name, p in own if name in read or name.startswith(below)}
    return [layer for layer in called if not any(id(p) in apart for p in layer.parameters())]


def _is_known(layer: nn.Module) -> bool:
    """Tell whether a layer is one of torch's or ours, and runs the same with hooks on it."""
    return all(
        type(part).__module__.startswith(_KNOWN)
        and not isinstance(part, nn.TransformerEncoderLayer | nn.TransformerEncoder)
        for part in layer.modules()
    )


def _of_blocks(half: BlockHalf) -> list[nn.Module]:
    found = find(half._sfl_model[0])
    if found is None:
        return []
    there = dict(found.model.named_modules())
    first = [there[path] for path in found.family.embeddings if path in there]
    inside = {id(module) for outer in first for module in outer.modules()}
    places = [there[path] for path in found.family.positions if path in there]
    layers = [*first, *(m for m in places if id(m) not in inside), *found.blocks().values()]
    return [layer for layer in layers if not isinstance(layer, Passed)]
