"""Cut Hugging Face transformers models behind a block, also with peft adapters in them."""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph.copying import copied
from sfl_flower.split.graph.equality import same
from sfl_flower.split.transformers.block_halves import (
    BlockHalf,
    ClientBlocks,
    NoPositions,
    Passed,
    ServerBlocks,
    longest,
)
from sfl_flower.split.transformers.families import Found, find, known, of_library

__all__ = [
    "Untied",
    "absent",
    "cut_blocks",
    "headless",
    "legal_blocks",
    "located",
    "verify_blocks",
]

Untied = tuple[str, str]
"""A parameter of the server half, and the one of the client half that it was tied to."""


def located(model: nn.Module) -> Found | None:
    """Return where the parts of a transformers model are; None if it is to be cut by its graph.

    Raises
    ------
    CutError
        The model reads token ids and is of no known family, or a peft adapter changes its inputs.
    """
    if not of_library(model, "transformers", "peft"):
        return None
    found = find(model)
    # By its graph a language model could be cut, but would take padding for text.
    if found is None and getattr(model, "main_input_name", "input_ids") == "input_ids":
        raise CutError(
            f"{type(model).__name__} is not among the transformers models that can be cut: "
            f"{known()}."
        )
    if found is not None:
        for config in getattr(model, "peft_config", {}).values():
            if getattr(config, "is_prompt_learning", False):
                raise CutError(
                    f"{type(config).__name__} puts learned tokens before the input, which a cut "
                    "does not pass on; use adapters inside the layers, such as LoRA."
                )
    return found


def legal_blocks(found: Found) -> list[str]:
    """List the blocks that a model may be cut after, from input to output.

    The last is one of them where something behind it is trained: a classifier, say.
    """
    names = list(found.blocks())
    return names if _trains_behind(found) else names[:-1]


def cut_blocks(
    model: nn.Module, found: Found, at: str, pad: int | None
) -> tuple[ClientBlocks, ServerBlocks, str, list[Untied]]:
    """Cut `model` after the block `at`.

    Parameters
    ----------
    model : nn.Module
        A transformers model, or a peft model around one; it is copied, never changed.
    found : Found
        Where its parts are.
    at : str
        ``block:N``, behind N blocks, or the name of a block.
    pad : int, optional
        The id of padding; by default the model's own, ``config.pad_token_id``.

    Returns
    -------
    client, server : BlockHalf
        The halves.
    at : str
        The block's full name.
    untied : list of Untied
        Trained parameters that the halves no longer share.

    Raises
    ------
    CutError
        There is no such block, none is left behind it, nothing is left to train for the server
        half, or the halves would share a parameter that cannot be untied.
    """
    names = list(found.blocks())
    count = _count(found, at)
    if pad is None:
        pad = getattr(found.model.config, "pad_token_id", None)
    family, prefix = found.family, found.prefix
    blocks = {name.removeprefix(prefix): block for name, block in found.blocks().items()}

    below = absent(found.model, [*list(blocks)[count:], *family.after], Passed)
    root = headless(model, found, below)
    client = ClientBlocks(root, root.get_submodule(prefix.rstrip(".")), family.backbone, pad)

    above = absent(found.model, [*list(blocks)[:count], *family.embeddings], Passed)
    above |= absent(found.model, list(family.positions), NoPositions)
    root = copied(model, dict(above))
    inner = root.get_submodule(prefix.rstrip("."))
    first = list(blocks)[count] if count < len(blocks) else _first_behind(inner, found)
    server = ServerBlocks(root, inner, family.backbone, first, found.output)

    at = names[count - 1]
    untied = _untied(model, found, client, server, at)
    if not any(parameter.requires_grad for parameter in server.parameters()):
        raise CutError(
            f"cannot cut at '{at}': the server half would have no trainable parameter; "
            f"{_listing(found)}."
        )
    return client, server, at, untied


def verify_blocks(
    model: nn.Module, client: ClientBlocks, server: ServerBlocks, at: str, ids: Tensor
) -> None:
    """Compare halves with the whole model on `ids` [N, T], in eval mode, bit for bit.

    The whole model is given the batch cut to its longest row, and its mask; logits at padding do
    not count.

    Raises
    ------
    CutError
        They differ.
    """
    whole = copy.deepcopy(model).eval()
    below, above = copy.deepcopy(client).eval(), copy.deepcopy(server).eval()
    with torch.no_grad():
        output = above(below(ids))
        mask = below.real(ids)
        mask = mask[:, : longest(mask)]
        expected = whole(
            input_ids=ids[:, : mask.shape[1]], attention_mask=mask.long(), use_cache=False
        ).logits.float()
    if expected.ndim == 3:
        expected = expected.masked_fill(~mask.unsqueeze(-1), 0.0)
        output = output[:, : mask.shape[1]]
    if not same(output, expected):
        raise CutError(
            f"the halves of a cut at '{at}' do not give the model's output on the example: its "
            "forward must depend on its inputs and its state alone."
        )


def _count(found: Found, at: str) -> int:
    """Return how many blocks lie before the cut `at`."""
    names, legal = list(found.blocks()), legal_blocks(found)
    if not isinstance(at, str):
        raise CutError(f"a block is named by a string, not {at!r}; {_listing(found)}.")
    needs = "the server half needs one, or something that is trained behind the last"
    numbered = re.fullmatch(r"block:(-?\d+)", at)
    if numbered:
        count = int(numbered[1])
        if not 1 <= count <= len(legal):
            raise CutError(
                f"cannot cut at '{at}': the model has {len(names)} blocks, the client half needs "
                f"one and {needs}; {_listing(found)}."
            )
        return count
    for index, name in enumerate(names):
        if at in (name, name.removeprefix(found.prefix)):
            if index >= len(legal):
                raise CutError(
                    f"cannot cut at '{at}': it is the last block, and {needs}; {_listing(found)}."
                )
            return index + 1
    there = {name for name, _ in found.model.named_modules()}
    if at.removeprefix(found.prefix) in there:
        raise CutError(
            f"cannot cut at '{at}': {found.family.name} is cut behind whole blocks; "
            f"{_listing(found)}."
        )
    raise CutError(f"the model has no block named '{at}'; {_listing(found)}.")


def _listing(found: Found) -> str:
    legal = legal_blocks(found)
    if not legal:
        return "this model has no legal cut"
    if len(legal) == 1:
        return f"the legal cut is: block:1 ('{legal[0]}')"
    last = len(legal)
    return f"the legal cuts are: block:1 to block:{last}, or by name '{legal[0]}' to '{legal[-1]}'"


def _trains_behind(found: Found) -> bool:
    """Tell whether a parameter behind the last block is trained, one tied to the input's too."""
    family = found.family
    before = tuple(f"{path}." for path in (family.blocks, *family.embeddings, *family.positions))
    named = found.model.named_parameters(remove_duplicate=False)
    return any(p.requires_grad and not name.startswith(before) for name, p in named)


def _first_behind(model: nn.Module, found: Found) -> str:
    """Return the path of what reads the last block's output: norm, pooler or the half itself."""
    there = dict(model.named_modules())
    after = (path for path in found.family.after if path in there)
    return next((path for path in after if any(True for _ in there[path].parameters())), "")


def headless(model: nn.Module, found: Found, stand_in: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of `model` that ends with its backbone, with what stands for some modules.

    Parameters
    ----------
    model, found : nn.Module, Found
        As for `cut_blocks`.
    stand_in : dict of int to nn.Module
        By the identity of a module, what the copy has in its place; see `absent`.
    """
    beside = _outside(model, found.prefix + found.family.backbone)
    root = copied(model, stand_in | {id(module): Passed() for module in beside.values()})
    for name in beside:
        path, _, last = name.rpartition(".")
        del root.get_submodule(path)._modules[last]
    return root


def absent(model: nn.Module, paths: list[str], stand_in: type[nn.Module]) -> dict[int, nn.Module]:
    """Map the identity of each module at `paths`, where there is one, to what stands for it."""
    there = dict(model.named_modules())
    return {id(there[path]): stand_in() for path in paths if path in there}


def _outside(model: nn.Module, backbone: str) -> dict[str, nn.Module]:
    """Return what lies beside the way to the backbone: the head, and what belongs to it."""
    found, path = {}, ""
    for part in backbone.split("."):
        for name, child in model.get_submodule(path).named_children():
            if name != part:
                found[f"{path}.{name}" if path else name] = child
        path = f"{path}.{part}" if path else part
    return found


def _untied(
    model: nn.Module, found: Found, client: BlockHalf, server: BlockHalf, at: str
) -> list[Untied]:
    """Return which trained parameters the halves no longer share; refuse what cannot be untied."""
    below, above = (
        dict(half.named_parameters(remove_duplicate=False)) for half in (client, server)
    )
    owners: dict[int, str] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in named:
        if name in below:
            owners.setdefault(id(parameter), name)
    before = tuple(
        f"{found.prefix}{p}" for p in (*found.family.embeddings, *found.family.positions)
    )
    untied = []
    for name, parameter in named:
        other = owners.get(id(parameter))
        if other is None or name not in above or not parameter.requires_grad:
            continue
        if not other.startswith(before):
            raise CutError(
                f"cannot cut at '{at}': the parameters '{other}' and '{name}' are tied across it; "
                "cut elsewhere, or give each its own."
            )
        untied.append((name, other))
    return untied
