"""The client half of a transformers model in two parts: blocks that nothing moves, and the rest.

The model's own code runs in both parts, masks, positions and rotary tables included; what a part
leaves out gives the output of the last block before the parting in place of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.split.graph.parting import Parted, Values
from sfl_flower.split.transformers.block_halves import ClientBlocks, Passed
from sfl_flower.split.transformers.families import find

__all__ = ["part_blocks"]


def part_blocks(half: ClientBlocks, trained: Collection[int]) -> Parted | None:
    """Part a half before the first block that holds a trained parameter.

    Parameters
    ----------
    half : ClientBlocks
        It stays as it is.
    trained : collection of int
        Identities of the trained parameters.

    Returns
    -------
    Parted or None
        None where the first block holds one, or something that is no block does.
    """
    found = find(half._sfl_model[0])
    if found is None:
        return None
    blocks = [block for block in found.blocks().values() if not isinstance(block, Passed)]
    own = [_held(block) & set(trained) for block in blocks]
    count = next((at for at, held in enumerate(own) if held), len(blocks))
    if not count or _held(half) & set(trained) != set().union(*own):
        return None
    there = dict(found.model.named_modules())
    embeddings = [there[path] for path in found.family.embeddings if path in there]
    before, behind = blocks[:count], blocks[count:]

    def first(ids: Tensor) -> Values:
        run, given = before[-1].forward, list[Any]()

        def last(*args: Any, **kwargs: Any) -> Any:
            given.append(run(*args, **kwargs))
            return given[-1]

        with _instead(before[-1:], last), _instead(behind, lambda *_, **__: given[-1]):
            half(ids)
        return [ids, given[-1]]

    def rest(values: Values) -> Tensor:
        assert isinstance(values, list)
        if values[1] is None:
            values[:] = first(values[0])
        ids, output = values
        versions = _versions(output)
        skipped = [*embeddings, *before] if isinstance(output, Tensor) else before
        with _instead(skipped, lambda *_, **__: output):
            z: Tensor = half(ids)
        if _versions(output) != versions:  # a block writes into what it is given: make it anew
            values[1] = None
        return z

    return Parted(torch.no_grad()(first), torch.no_grad()(rest))


def _held(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _versions(output: Any) -> list[int]:
    """Return how often each tensor of an output was written into."""
    values = output if isinstance(output, tuple | list) else [output]
    return [value._version for value in values if isinstance(value, Tensor)]


@contextmanager
def _instead(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Run a block in which modules have another forward; their attributes stay readable."""
    before = [(module, vars(module).get("forward")) for module in modules]
    for module, _ in before:
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before:
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
