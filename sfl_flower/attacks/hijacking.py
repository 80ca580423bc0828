"""Runs whose server answers with a pilot's gradient in place of the loss's.

The clients are those of the package, and so are messages, probes, journal and averages: only what
trains the server half is another.  A SplitFed client leads λ back through its half; a client of
HO-SFL projects its probes on λ and answers with scalars, along which the server moves every half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.attacks.pilot import Pilot
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.methods import METHODS, Method
from sfl_flower.node.postprocess import Postprocess
from sfl_flower.run.simulation import simulate
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.trainer import Batch, Gradients, Trainer
from sfl_flower.split import cut
from sfl_flower.task import SplitTask

__all__ = ["HIJACKED", "hijacked_half"]

HIJACKED = {"splitfed_v2": "λ", "ho_sfl": "scalars"}
"""The methods whose clients are led, and through what."""


def hijacked_half(
    task: SplitTask,
    method: str,
    pilot: Pilot,
    settings: AttackSettings,
    postprocess: Postprocess | None = None,
) -> nn.Module:
    """Return the client half after a run in which the server led it.

    Parameters
    ----------
    task : SplitTask
        What clients are told to train, with the samples that they hold.
    method : str
        One of `HIJACKED`.
    pilot : Pilot
        Where to.
    settings : AttackSettings
        Clients, rounds, mini-batches, rate and probes of the run.
    postprocess : callable, optional
        What clients do to their replies.
    """
    own: dict[str, Any] = {"probes": settings.probes} if method == "ho_sfl" else {}
    found = simulate(
        task,
        _led(method, pilot),
        backend="inline",
        postprocess=postprocess,
        seed=settings.seed,
        rounds=settings.rounds,
        clients=settings.clients,
        batch_size=settings.batch,
        eval_every=settings.rounds,
        partition="iid",
        client_lr=settings.rate,
        outlier_factor=0.0,
        **own,
    )
    whole = task.whole(0)
    whole.load_state_dict(found.model)
    return cut(whole, task.cut).client.eval().requires_grad_(False)


class _Leading(Trainer):
    """Takes the place of what trains the server half, which stays as it is."""

    def __init__(self, pilot: Pilot, *own: Any) -> None:
        super().__init__(*own)
        self._pilot = pilot

    def together(
        self, batches: Sequence[Batch], shares: Sequence[float] = (1.0,)
    ) -> tuple[list[Gradients], list[Tensor]]:
        """Return a pilot's λ for each mini-batch, and gradients of 0 for the server half."""
        found = []
        for z, y, (round, _, _) in batches:
            self.check_labels(y)
            given, left = torch.from_numpy(np.array(z)), 1 - (round - 1) / self._config.rounds
            lam, loss = self._pilot.answer(given, torch.from_numpy(np.array(y)), left)
            found.append(Gradients(lam.numpy(), loss, []))
        return found, [torch.zeros_like(p) for p in self._parameters]


def _led(name: str, pilot: Pilot) -> Method:
    """Return a method that no client can tell from the one of this name."""
    method = METHODS[name]

    def new_trainer(strategy: SplitStrategy, module: nn.Module) -> Trainer:
        task = strategy.task
        own = (module, task.loss, task.classes, strategy.config, task.ignore_label)
        return _Leading(pilot, *own)

    server = type(
        f"Hijacked{method.server.__name__}", (method.server,), {"new_trainer": new_trainer}
    )
    return replace(method, strategy=server)
