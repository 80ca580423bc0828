"""Frozen parameters do not travel, so what clients build must be what the server has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.errors import TrainingError
from sfl_flower.split import base_digest, base_state, dequantised

__all__ = ["Held", "check_checkpoint", "check_first_weights", "counts"]


def counts(module: nn.Module) -> tuple[int, int]:
    """Return the number of parameters of a module, and of its trained ones."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


@dataclass(frozen=True)
class Held:
    """What clients hold of a model.

    Attributes
    ----------
    modules : list of nn.Module
        The client half, or both halves; and an auxiliary head with frozen parts, the last.
    head : str
        Kind of that head, empty where there is none.
    """

    modules: list[nn.Module]
    head: str = ""

    @classmethod
    def of(
        cls, client: nn.Module, server: nn.Module, whole: bool, head: tuple[str, nn.Module] | None
    ) -> Held:
        """Return what clients hold.

        Parameters
        ----------
        client, server : nn.Module
            The halves.
        whole : bool
            Whether clients hold both.
        head : tuple of str and nn.Module, optional
            Kind and module of an auxiliary head.
        """
        modules = [client, *([server] if whole else [])]
        if head is None or not base_state(head[1]):
            return cls(modules)
        return cls([*modules, head[1]], head[0])

    @property
    def digest(self) -> str:
        """The digest of what is frozen of it, empty for nothing."""
        return base_digest(*self.modules)


def check_first_weights(state: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> None:
    """Refuse first weights that clients would not have.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        The whole model's first weights by their original names.
    modules : sequence of nn.Module
        What clients hold, as the task builds it.

    Raises
    ------
    TrainingError
        If a frozen parameter has another value than the task builds.
    """
    own = dequantised(base_state(*modules))
    apart = [k for k, value in own.items() if not torch.equal(state[k], value.cpu())]
    if apart:
        more = f" and {len(apart) - 1} more" if apart[1:] else ""
        raise TrainingError(
            f"initial_arrays give '{apart[0]}'{more} other values than the task builds, but they "
            "are frozen and never sent to clients, which take them from the task; put these values "
            "into what the task's model() returns, or train these parameters."
        )


def check_checkpoint(values: Mapping[str, Any], modules: Sequence[nn.Module]) -> None:
    """Refuse a checkpoint whose run had other frozen parameters; it does not hold them.

    Parameters
    ----------
    values : Mapping[str, Any]
        The checkpoint's plain values; ``base`` is the digest of what was frozen.
    modules : sequence of nn.Module
        What clients hold, as the task builds it.

    Raises
    ------
    TrainingError
        If the digests differ.
    """
    own = base_digest(*modules)
    if values.get("base", own) != own:
        raise TrainingError(
            "The checkpoint was made with other frozen parameters than the task builds now, and "
            "does not hold them; resume with the task, and its model(), as it was."
        )
