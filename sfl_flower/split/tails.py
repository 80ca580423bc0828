"""Cut a model twice, for clients that keep its last layers to themselves: half, body and tail.

Where labels stay on a client, so does what makes a loss of them.  The server half is then two
parts: the body, which the server runs, gives features, and the tail turns features into the model's
output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sfl_flower.errors import CutError
from sfl_flower.split.cutting import cut, legal_cuts
from sfl_flower.split.transformers.blocks import legal_blocks, located
from sfl_flower.split.transformers.middle import middle_blocks

__all__ = ["Tailed", "adopt", "cut_tail"]


@dataclass(frozen=True)
class Tailed:
    """The two parts of a server half, which share nothing with each other or with the model.

    Attributes
    ----------
    body : nn.Module
        From smashed data z to features h.
    tail : nn.Module
        From h to the model's output; ``tail(body(z))`` is ``server(z)``.
    at : str
        The layer whose output is h.
    """

    body: nn.Module
    tail: nn.Module
    at: str


def cut_tail(model: nn.Module, lower: str, upper: str = "", *, pad: int | None = None) -> Tailed:
    """Cut the server half of a cut of ``model`` once more.

    Parameters
    ----------
    model : nn.Module
        What `cut` takes; it is copied, never changed.
    lower : str
        The layer whose output is z.
    upper : str
        The layer whose output is h, behind `lower`; empty for the last after which something is
        trained, so that the tail is as short as can be.
    pad : int, optional
        As of `cut`.

    Raises
    ------
    CutError
        If there is no such layer, it does not lie behind the cut, or the body would have nothing to
        train.
    """
    found = located(model)
    if found is None:
        server = cut(model, lower).server
        names = legal_cuts(server)
    else:
        every = legal_blocks(found)
        first = cut(model, lower, pad=pad).at
        names = every[every.index(first) + 1 :]
    if not names:
        raise CutError(
            f"the server half behind '{lower}' has no layer at which a tail could begin; cut the "
            "model earlier."
        )
    if upper.startswith("block:") and found is not None:
        upper = cut(model, upper, pad=pad).at
    chosen = upper or names[-1]
    if chosen not in names:
        raise CutError(
            f"the tail cannot begin behind '{chosen}': it must be one of {', '.join(names)}, which "
            f"lie behind the cut at '{lower}'."
        )
    if found is None:
        halves = cut(server, chosen)
        tailed = Tailed(halves.client, halves.server, chosen)
    else:
        body = middle_blocks(model, found, lower=first, upper=chosen)
        tailed = Tailed(body, cut(model, chosen, pad=pad).server, chosen)
    if not any(parameter.requires_grad for parameter in tailed.body.parameters()):
        raise CutError(
            f"between the cut at '{lower}' and a tail behind '{chosen}' nothing is trained, so the "
            "server would have nothing to do; cut the model earlier."
        )
    return tailed


def adopt(part: nn.Module, whole: nn.Module) -> None:
    """Let a part use the parameters and buffers of a whole that have its names.

    Raises
    ------
    CutError
        If the whole lacks one.
    """
    own = dict(_tensors(whole))
    for name, (module, key, store) in list(_tensors(part)):
        if name not in own:
            raise CutError(f"'{name}' belongs to a part of the model and not to the whole.")
        held, other, kind = own[name]
        getattr(module, store)[key] = getattr(held, kind)[other]


def _tensors(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str, str]]]:
    """Yield the name of each parameter and buffer, and where it is held."""
    for path, part in module.named_modules(remove_duplicate=False):
        for store in ("_parameters", "_buffers"):
            for key, value in getattr(part, store).items():
                if value is not None:
                    yield f"{path}.{key}" if path else key, (part, key, store)
