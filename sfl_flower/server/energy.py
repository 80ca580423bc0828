"""What the gradients of a client half are on a few labelled batches, and what a choice holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfl_flower.split import held_energy, plain_gradients, with_gradients
from sfl_flower.task import Split, SplitTask
from sfl_flower.training.modes import eval_mode, torch_threads

__all__ = ["EnergyShare", "energy", "energy_share", "labelled", "mean_gradient", "sample_gradients"]

Gradients = dict[str, Tensor]
"""The gradient of each weight of a client half, by name."""


@dataclass(frozen=True)
class EnergyShare:
    """The share of the gradient's energy that a choice of trained parameters holds.

    Attributes
    ----------
    mean : float
        Of the mean gradient ḡ over all batches: ‖projection of ḡ‖² / ‖ḡ‖².
    batches : float
        Of the batches' own: Σ ‖projection of g_b‖² / Σ ‖g_b‖².
    trained, parameters : int
        Parameters that the client half trains, and those of the model itself in it.
    """

    mean: float
    batches: float
    trained: int
    parameters: int

    @property
    def size(self) -> float:
        """Trained parameters over those of the half."""
        return self.trained / self.parameters


def labelled(task: SplitTask) -> Split:
    """Return which samples a server has with labels: the public ones, or those of the test.

    Public samples need no labels, so all of one label count as having none.
    """
    if task.public is None:
        return "test"
    classes = task.samples("public").y.unique()
    if task.ignore_label is not None:
        classes = classes[classes != task.ignore_label]
    return "public" if len(classes) > 1 else "test"


def sample_gradients(
    task: SplitTask,
    seed: int,
    batches: int = 8,
    batch_size: int = 32,
    whole: bool = False,
    split: Split = "test",
) -> list[Gradients]:
    """Return the gradient by every weight of the client half of each of the first batches.

    Parameters
    ----------
    task : SplitTask
        The learning problem; whatever it trains, all weights count.
    seed : int
        The model's seed.
    batches, batch_size : int
        How many batches, as far as there are samples, and of how many samples.
    whole : bool
        Whether to give those of the server half too.
    split : {"test", "public", "train"}
        Of which samples.  Directions come from public ones, so the share that they hold of
        gradients on the test's is the one on samples that they have not seen.
    """
    halves, samples = task.with_trained("all").build(seed), task.samples(split)
    client, server = with_gradients(halves.client), with_gradients(halves.server)
    held = [client, server] if whole else [client]
    found = []
    with torch_threads(1), eval_mode(client, server), torch.enable_grad():
        for low in range(0, min(len(samples), batches * batch_size), batch_size):
            x, y = task.batch(samples, slice(low, low + batch_size))
            found.append(plain_gradients(held, task.loss(server(client(x)), y)))
    return found


def energy_share(client: nn.Module, gradients: Sequence[Gradients]) -> EnergyShare:
    """Return the share of the gradients' energy that a client half holds in what it trains.

    Weights that are not trained count in the whole.

    Parameters
    ----------
    client : nn.Module
        The client half, restricted, its directions set.
    gradients : sequence of dict
        `sample_gradients` of the same half.
    """
    mean = mean_gradient(gradients)
    held = [held_energy(client, each) for each in (mean, *gradients)]
    whole = [energy(each) for each in (mean, *gradients)]
    return EnergyShare(
        held[0] / whole[0],
        sum(held[1:]) / sum(whole[1:]),
        sum(p.numel() for p in client.parameters() if p.requires_grad),
        sum(g.numel() for g in mean.values()),
    )


def mean_gradient(gradients: Sequence[Gradients]) -> Gradients:
    """Return the mean of gradients, weight by weight."""
    return {name: torch.stack([g[name] for g in gradients]).mean(dim=0) for name in gradients[0]}


def energy(gradient: Mapping[str, Tensor]) -> float:
    """Return ‖g‖²."""
    return sum(float(value.double().square().sum()) for value in gradient.values())
