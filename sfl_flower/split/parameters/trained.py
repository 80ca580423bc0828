"""Which parameters of a client half are trained: all of them, or a few chosen by kind or name.

The error of a zeroth-order estimate grows with the number of trained parameters, and only trained
ones travel; choosing few of them is what makes large models affordable on either count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from sfl_flower.errors import ConfigError

__all__ = ["TRAINED", "check_trained", "restrict"]

TRAINED = ("all", "lora", "norm", "bias", "last:N", "subspace:R", "core:R")
"""What `trained` may be, besides a pattern over parameter names."""

_LISTS = (nn.Sequential, nn.ModuleList)
_LAST = re.compile(r"last:([1-9][0-9]{0,5})")
# By name, so that the RMSNorm that every language model brings along is known too.
_NORM = re.compile(r"(?:Layer|Batch|Group|Instance|RMS)_?Norm(?:[123]d)?$")
_SHOWN = 6
_SUBSPACE = ("subspace", "core:")


def check_trained(trained: object) -> None:
    """Refuse what can be no choice of parameters, whatever the model.

    Raises
    ------
    ConfigError
        It is not a text, is empty, or is ``last:``, ``subspace`` or ``core:`` and none of their
        forms.
    """
    if not isinstance(trained, str) or not trained:
        raise ConfigError(f"trained is {trained!r}; it must be {_legal('layer2.*')}.")
    if trained.startswith("last:") and not _LAST.fullmatch(trained):
        raise ConfigError(
            f"trained is '{trained}'; last:N needs a whole number of blocks from 1, as in last:2."
        )
    if trained.startswith(_SUBSPACE):
        from sfl_flower.split.parameters.subspace import read_subspace

        read_subspace(trained)


def restrict(client: nn.Module, trained: str) -> None:
    """Freeze every parameter of a client half that is not chosen, in place.

    What the model froze stays frozen: a choice only restricts.

    Parameters
    ----------
    client : nn.Module
        The client half.
    trained : str
        ``all``: what the model has. ``lora``: parameters named ``lora_…``, as peft names adapters.
        ``norm``: those of normalisation layers. ``bias``: biases. ``last:N``: those of the last N
        blocks that have something to train; a block is an item of an ``nn.Sequential`` or
        ``nn.ModuleList``, or a layer outside such lists. ``subspace:R`` and
        ``core:R``: see `open_subspace`.
        Anything else is a pattern over parameter names, as ``fnmatch`` reads it.

    Raises
    ------
    ConfigError
        Nothing is chosen, or the half has fewer blocks.
    """
    check_trained(trained)
    if trained == "all":
        return
    if trained.startswith(_SUBSPACE):
        from sfl_flower.split.parameters.subspace import open_subspace

        open_subspace(client, trained)
        return
    last = _LAST.fullmatch(trained)
    chosen = _last(client, int(last[1])) if last else _named(client, _test(client, trained))
    open_ = {id(p) for p in client.parameters() if p.requires_grad}
    if not chosen & open_:
        raise ConfigError(_nothing(client, trained, len(chosen)))
    for parameter in client.parameters():
        if id(parameter) not in chosen:
            parameter.requires_grad_(False)


def _named(client: nn.Module, test: Callable[[str], bool]) -> set[int]:
    # Under every name it has: a tied parameter has several.
    named = client.named_parameters(remove_duplicate=False)
    return {id(parameter) for name, parameter in named if test(name)}


def _test(client: nn.Module, trained: str) -> Callable[[str], bool]:
    """Return what tells for a parameter's name whether it is chosen."""
    if trained == "lora":
        return lambda name: any(part.startswith("lora_") for part in name.split("."))
    if trained == "bias":
        return _is_bias
    if trained == "norm":
        norms = {name for name, module in client.named_modules() if _is_norm(module)}
        return lambda name: name.rpartition(".")[0] in norms
    return lambda name: fnmatchcase(name, trained)


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias") or last.startswith("bias_")


def _is_norm(module: nn.Module) -> bool:
    return any(_NORM.search(kind.__name__) for kind in type(module).__mro__)


def _last(client: nn.Module, count: int) -> set[int]:
    blocks = [
        (name, parameters)
        for name, parameters in _blocks(client, "")
        if any(parameter.requires_grad for parameter in parameters)
    ]
    if count > len(blocks):
        names = ", ".join(name for name, _ in blocks) or "none"
        raise ConfigError(
            f"trained is 'last:{count}', but the client half has {len(blocks)} blocks with "
            f"something to train ({names}); take fewer, or cut at a later layer."
        )
    return {id(parameter) for _, parameters in blocks[-count:] for parameter in parameters}


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Yield name and parameters of each block, in the order in which the model registered them."""
    if own := list(module.parameters(recurse=False)):
        yield prefix.rstrip(".") or "the model itself", own
    listed = getattr(module, "_sfl_listed", type(module) in _LISTS)  # a half of a list is one
    for name, child in module.named_children():
        if listed and type(child) not in _LISTS:
            yield prefix + name, list(child.parameters())
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def _nothing(client: nn.Module, trained: str, matching: int) -> str:
    """Return the message of a choice that leaves nothing to train."""
    open_ = [name for name, parameter in client.named_parameters() if parameter.requires_grad]
    shown = ", ".join(open_[:_SHOWN]) + (", …" if len(open_) > _SHOWN else "")
    kinds = {kind: _test(client, kind) for kind in ("lora", "norm", "bias")}
    counts = ", ".join(f"{sum(map(test, open_))} of {kind}" for kind, test in kinds.items())
    frozen = f" ({matching} match, but the model froze them)" if matching else ""
    example = f"{open_[-1].rpartition('.')[0]}.*" if open_ and "." in open_[-1] else "layer2.*"
    return (
        f"trained is '{trained}', which chooses nothing of the client half{frozen}: the model "
        f"trains {len(open_)} tensors there ({shown or 'none'}), {counts}; use {_legal(example)}."
    )


def _legal(example: str) -> str:
    return f"{', '.join(TRAINED)}, or a pattern over parameter names such as '{example}'"
