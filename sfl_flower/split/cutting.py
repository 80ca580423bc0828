"""Cut a model after a named layer into a client half and a server half."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph.copying import copied
from sfl_flower.split.graph.equality import run, same
from sfl_flower.split.graph.half import Half
from sfl_flower.split.graph.plans import Plans
from sfl_flower.split.graph.tracing import Traced, trace
from sfl_flower.split.transformers.blocks import (
    Untied,
    cut_blocks,
    legal_blocks,
    located,
    verify_blocks,
)
from sfl_flower.split.transformers.families import Found

__all__ = ["Halves", "cut", "every_cut", "legal_cuts"]

_log = getLogger("flwr")


@dataclass(frozen=True)
class Halves:
    """The two halves of a model, which share nothing with each other or with the model.

    Attributes
    ----------
    client : nn.Module
        From the model's inputs to the smashed data ``z``.
    server : nn.Module
        From ``z`` to the model's output; ``server(client(x))`` is ``model(x)``.
    at : str
        The layer whose output is ``z``.
    """

    client: nn.Module
    server: nn.Module
    at: str


def cut(
    model: nn.Module,
    at: str,
    example: tuple[Tensor, ...] | None = None,
    *,
    pad: int | None = None,
) -> Halves:
    """Cut ``model`` after the layer ``at``.

    Parameters
    ----------
    model : nn.Module
        Any model whose forward torch.fx can record, or a Hugging Face transformers model of a
        known family, with or without peft adapters; it is copied, never changed.
    at : str
        Qualified name of a module, as in ``model.named_modules()``; its output is ``z``. In a
        transformers model, a block: its name, or ``block:N`` for the cut behind N blocks.
    example : tuple of Tensor, optional
        A batch of inputs. With it, the halves are also checked to give the whole model's output
        bit for bit, in eval mode.
    pad : int, optional
        For a transformers model, the token id of padding; ``config.pad_token_id`` by default.

    Returns
    -------
    Halves
        Halves with the parameter names, values, devices and train/eval modes of ``model``.

    Raises
    ------
    CutError
        If there is no such layer, the cut there is not legal, or the forward cannot be recorded.
    """
    found = located(model)
    if found is not None:
        halves, untied = _blocks(model, found, at, example, pad)
        _warn(untied, f"The cut at '{halves.at}'")
        return halves
    return _recorded(model, Plans(_traced(model, example)), at, example)


def legal_cuts(model: nn.Module, example: tuple[Tensor, ...] | None = None) -> list[str]:
    """List the layers that ``model`` may be cut after, from input to output.

    Parameters
    ----------
    model : nn.Module
        The model.
    example : tuple of Tensor, optional
        A batch of inputs. With it, the model is run once, and layers whose output is not one
        float32 tensor with the samples first are left out; what a layer that is kept whole gives
        shows in no recording.

    Raises
    ------
    CutError
        If the outermost forward cannot be recorded.
    """
    found = located(model)
    if found is not None:
        return legal_blocks(found)
    plans = Plans(_traced(model, example))
    return _legal(model, plans, example)


def every_cut(
    model: nn.Module,
    example: tuple[Tensor, ...] | None = None,
    *,
    cuts: Sequence[str] | None = None,
    quiet: bool = False,
) -> Iterator[Halves]:
    """Yield the halves of ``model`` at each legal cut, from input to output.

    The same as ``cut`` at each of ``legal_cuts``, but the forward is recorded only once, and which
    parameters a cut unties is said once.

    Parameters
    ----------
    model, example
        As of ``cut``.
    cuts : sequence of str, optional
        These layers instead, in this order.
    quiet : bool
        Whether to leave out which parameters a cut unties.

    Raises
    ------
    CutError
        As ``cut`` does.
    """
    found = located(model)
    if found is None:
        plans = Plans(_traced(model, example))
        for at in _legal(model, plans, example) if cuts is None else cuts:
            yield _recorded(model, plans, at, example)
        return
    said: set[Untied] = set()
    for at in legal_blocks(found) if cuts is None else cuts:
        halves, untied = _blocks(model, found, at, example, None)
        if not quiet:
            _warn([pair for pair in untied if pair not in said], "Cutting this model")
        said.update(untied)
        yield halves


def _legal(model: nn.Module, plans: Plans, example: tuple[Tensor, ...] | None) -> list[str]:
    """Return the legal cuts; those that can cross, where an example shows what layers give."""
    names = plans.legal()
    if example is None:
        return names
    whole = copied(model).eval()
    given: dict[str, Any] = {}
    for name in names:
        whole.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: given.__setitem__(name, output)
        )
    try:
        run(whole, example)
    except Exception as error:
        raise CutError(f"the model does not run on the example batch: {error}") from error
    return [name for name in names if can_cross(given.get(name), len(example[0]))]


def can_cross(value: Any, samples: int) -> bool:
    """Tell whether a layer's output is one float32 tensor [samples, ...]."""
    tensor = isinstance(value, Tensor) and value.dtype == torch.float32 and value.ndim >= 2
    return tensor and value.shape[0] == samples


def _blocks(
    model: nn.Module, found: Found, at: str, example: tuple[Tensor, ...] | None, pad: int | None
) -> tuple[Halves, list[Untied]]:
    client, server, block, untied = cut_blocks(model, found, at, pad)
    if example is not None:
        verify_blocks(model, client, server, block, example[0])
    return Halves(client, server, block), untied


def _warn(untied: Sequence[Untied], what: str) -> None:
    for name, other in untied:
        _log.warning(
            "%s unties '%s' on the server from '%s' on the clients: they start equal and are "
            "trained apart.",
            what, name, other,
        )  # fmt: skip


def _recorded(
    model: nn.Module, plans: Plans, at: str, example: tuple[Tensor, ...] | None
) -> Halves:
    plan, constants = plans.at(at), plans.traced.constants
    halves = Halves(
        Half(copied(model), plan.client(), constants),
        Half(copied(model), plan.server(), constants),
        at,
    )
    if example is not None:
        _verify(model, halves, example)
    return halves


def _traced(model: nn.Module, example: tuple[Tensor, ...] | None) -> Traced:
    if not isinstance(model, nn.Module):
        raise CutError(f"only a torch.nn.Module can be cut, not {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CutError(f"'{name}' has no shape yet; run the model once on a batch first.")
    return trace(model, None if example is None else len(example))


def _verify(model: nn.Module, halves: Halves, example: tuple[Tensor, ...]) -> None:
    """Compare the halves with the whole on ``example``, in eval mode, bit for bit."""
    whole, client, server = (
        copy.deepcopy(module).eval() for module in (model, halves.client, halves.server)
    )
    try:
        expected = run(whole, example)
    except Exception as error:
        raise CutError(f"the model does not run on the example batch: {error}") from error
    z = run(client, example)
    if not isinstance(z, torch.Tensor):
        raise CutError(
            f"cannot cut at '{halves.at}': it returns a {type(z).__name__}, and only one tensor "
            "can cross; cut after the layer that picks one tensor out of it."
        )
    if not same(run(server, (z,)), expected):
        raise CutError(
            f"the halves of a cut at '{halves.at}' do not give the model's output on the example: "
            "its forward must depend on its inputs and its state alone."
        )
