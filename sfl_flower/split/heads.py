"""Auxiliary heads: a small net on the smashed data that stands in for the server half.

With one, a client has a loss of its own and needs no answer from the server (CSE-FSL,
arXiv 2302.05599; HERON-SFL; FSL-SAGE).
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split.parameters.quantised import is_quantised
from sfl_flower.split.parameters.travelling import base_state
from sfl_flower.split.transformers.block_halves import ServerBlocks
from sfl_flower.split.transformers.first_blocks import first_blocks, first_text_blocks

__all__ = ["HEADS", "make_head", "own_init"]

HEADS = ("linear", "pooled", "blocks:<layer>", "task")
"""Kinds of heads. ``linear``: flatten z, one fully connected layer. ``pooled``: average z [N, C, H,
W] over a 4x4 grid first; ``pooled:N`` over N x N; texts [N, T, H] over their real positions.
``blocks:<layer>``: the server half's first blocks, up to and including that layer, a global average
pool, one fully connected layer; of a transformers model, its own norm and output layer. ``task``:
what the task's field `head` builds. ``server``, a copy of the whole server half, is for tests.

Where the model gives an output for every position, so does ``linear``."""

_SIDE = 4  # of the grid that "pooled" averages over
_MOST = 10_000_000  # parameters to train: a head is on every client, and travels


class RealMean(nn.Module):
    """The mean of z [N, T, H] over positions that are not padding, [N, H]."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the mean over the positions whose row is not all zero."""
        real = (z.detach() != 0).any(dim=-1, keepdim=True).to(z.dtype)
        mean: Tensor = (z * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
        return mean


def own_init(kind: str) -> str:
    """Return how a client draws a head of a kind, before it is sent anything.

    Not every layer of a server half can be drawn anew; its frozen ones never are.
    """
    return "copy" if kind.startswith(("blocks:", "server")) else "random"


def make_head(
    kind: str,
    server: nn.Module,
    z_shape: tuple[int, ...],
    outputs: int | tuple[int, ...],
    *,
    init: str = "random",
    custom: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """Make an auxiliary head for a cut.

    Parameters
    ----------
    kind : str
        One of `HEADS`, or ``server``.
    server : nn.Module
        The server half; it is copied, never changed.
    z_shape : tuple of int
        Shape of one sample's smashed data, without the batch: (C, H, W), (features,), or (T, H).
    outputs : int or tuple of int
        Shape of what the server half gives for a sample: outputs, or (T, outputs).
    init : {"random", "copy"}
        ``random``: torch's default initialisation, from the default generator as the caller has
        seeded it. ``copy``: the server half's weights where the head has its layers (``blocks:``
        and ``server``); the last layer of ``blocks:`` is random even so. What the server half has
        frozen is copied in both.
    custom : callable, optional
        What ``task`` calls: returns a new module.

    Returns
    -------
    nn.Module
        From z [N, *z_shape] to [N, *outputs], in the modes its layers have, on the CPU, float32
        like the server.

    Raises
    ------
    CutError
        The kind or `init` is unknown, or the head does not fit the cut or the outputs, or is too
        large.
    """
    wanted = (outputs,) if isinstance(outputs, int) else outputs
    name, colon, detail = kind.partition(":")
    if name not in ("linear", "pooled", "blocks", "server", "task") or (
        colon and (name not in ("pooled", "blocks") or not detail)
    ):
        raise CutError(f"head is '{kind}'; it must be one of {', '.join(HEADS)} or pooled:<side>.")
    if init not in ("random", "copy"):
        raise CutError(f"head_init is '{init}'; it must be random or copy.")
    if init == "copy" and name not in ("blocks", "server"):
        raise CutError(
            f"head_init is 'copy', but head '{kind}' has no layer of the server half to copy; "
            "use head_init 'random', or head 'blocks:<layer>'."
        )
    if name == "linear":
        head: nn.Module = _linear(z_shape, wanted)
    elif name == "pooled":
        head = _pooled(kind, detail, z_shape, wanted)
    elif name == "task":
        head = _custom(custom)
    else:
        head = _of_server(kind, server, detail, z_shape, wanted, init)
    _check(kind, head, z_shape, wanted)
    return head


def _flat(shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(math.prod(shape), outputs)))


def _linear(shape: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
    if len(outputs) == 1:
        return _flat(shape, outputs[0])
    # On the meta device first: the layer of a vocabulary may be refused for its size.
    with torch.device("meta"):
        _check_size("linear", nn.Linear(shape[-1], outputs[-1]))
    return nn.Sequential(OrderedDict(fc=nn.Linear(shape[-1], outputs[-1])))


def _pooled(
    kind: str, side: str, shape: tuple[int, ...], outputs: tuple[int, ...]
) -> nn.Sequential:
    if len(shape) == 2 and not side and len(outputs) == 1:
        fc = nn.Linear(shape[1], outputs[0])
        return nn.Sequential(OrderedDict(pool=RealMean(), fc=fc))
    if len(outputs) > 1:
        raise CutError(
            f"head '{kind}' gives one output a sample, but the model gives one for each of "
            f"{outputs[0]} positions; use head 'linear' or 'blocks:<block>'."
        )
    if len(shape) != 3:
        raise CutError(
            f"head '{kind}' needs smashed data [N, C, H, W], but here they are "
            f"{_with_batch(shape)}; use head 'linear'."
        )
    most = min(shape[1:])
    cells = int(side) if side.isdecimal() else 0 if side else _SIDE
    if not 1 <= cells <= most:
        asked = f"'{side}'" if side else f"{_SIDE} by default"
        raise CutError(
            f"head '{kind}' pools to a side of {asked}; for smashed data {_with_batch(shape)} it "
            f"must be a whole number from 1 to {most}, as in pooled:{min(most, _SIDE)}."
        )
    flat = _flat((shape[0], cells, cells), outputs[0])
    return nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(cells), **dict(flat._modules)))


def _custom(custom: Callable[[], nn.Module] | None) -> nn.Module:
    if custom is None:
        raise CutError(
            "head is 'task', but the task has no head of its own; give SplitTask a `head` that "
            "returns one, or use head 'linear'."
        )
    head = custom()
    if not isinstance(head, nn.Module):
        raise CutError(
            f"the task's head function returned a {type(head).__name__}; it must return a "
            "torch.nn.Module."
        )
    return head


def _of_server(
    kind: str,
    server: nn.Module,
    last: str,
    shape: tuple[int, ...],
    outputs: tuple[int, ...],
    init: str,
) -> nn.Module:
    """Copy the whole server half, or its first blocks with an output layer of their own."""
    if isinstance(server, ServerBlocks) and kind != "server" and last:
        return _of_text(kind, server, last, init)
    if kind == "server":
        blocks: nn.Module = copy.deepcopy(server)
    elif not last:
        raise CutError("head 'blocks' needs the name of a layer, as in head 'blocks:layer3'.")
    else:
        try:
            blocks = first_blocks(server, last)
        except CutError as error:
            raise CutError(f"head is '{kind}', but {error}") from None
    if init == "random":
        _reset(kind, blocks)
    if kind == "server":
        return blocks
    reached = _try(kind, blocks, shape).shape[1:]
    if len(reached) != 3:
        return nn.Sequential(
            OrderedDict(blocks=blocks, **dict(_flat(tuple(reached), outputs[0])._modules))
        )
    flat = _flat((reached[0],), outputs[0])
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(OrderedDict(blocks=blocks, pool=pool, **dict(flat._modules)))


def _of_text(kind: str, server: ServerBlocks, last: str, init: str) -> nn.Module:
    if init != "copy":
        raise CutError(
            f"head '{kind}' of a transformers model has weights that stay frozen, which must not "
            "be random; use head_init 'copy'."
        )
    try:
        return first_text_blocks(server, last)
    except CutError as error:
        raise CutError(f"head is '{kind}', but {error}") from None


def _reset(kind: str, blocks: nn.Module) -> None:
    """Draw every trained weight anew as torch does when the layer is made; frozen ones stay."""
    frozen = {name: value.clone() for name, value in base_state(blocks).items()}
    for name, module in blocks.named_modules():
        if any(is_quantised(parameter) for parameter in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if callable(reset):
            reset()
        elif any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            where = f"'{name}' ({type(module).__name__})" if name else type(module).__name__
            raise CutError(
                f"head '{kind}' cannot start from random weights: {where} has parameters and no "
                "reset_parameters(); use head_init 'copy', or give the layer that method."
            )
    with torch.no_grad():
        for name, value in base_state(blocks).items():
            value.copy_(frozen[name])


def _try(kind: str, head: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Return what a copy of ``head`` in eval mode makes of two samples of zeros."""
    try:
        with torch.no_grad():
            output = copy.deepcopy(head).eval()(torch.zeros(2, *shape))
    except Exception as error:
        raise CutError(
            f"head '{kind}' cannot be applied to smashed data {_with_batch(shape)}: {error}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise CutError(f"head '{kind}' returns a {type(output).__name__}; it must be one tensor.")
    return output


def _check(kind: str, head: nn.Module, shape: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    if len(shape) == 2:
        _check_size(kind, head)
    output = _try(kind, head, shape)
    if tuple(output.shape) != (2, *outputs):
        raise CutError(
            f"head '{kind}' gives {_with_batch(tuple(output.shape[1:]))} for smashed data "
            f"{_with_batch(shape)}; it must give {_with_batch(outputs)}, like the server half."
        )
    if not any(parameter.requires_grad for parameter in head.parameters()):
        raise CutError(f"head '{kind}' has no parameter to train.")


def _check_size(kind: str, head: nn.Module) -> None:
    size = sum(p.numel() for p in head.parameters() if p.requires_grad)
    if size > _MOST:
        raise CutError(
            f"head '{kind}' would train {size} parameters on every client, at most {_MOST} are "
            "allowed; use a smaller head, or a model whose output layer is frozen (LoRA)."
        )


def _with_batch(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(('N', *map(str, shape)))}]"
