"""What a model is worth: on the test set, and on training samples that are held back."""

from __future__ import annotations

from torch import Tensor, nn

from sfl_flower.config import RunConfig
from sfl_flower.data import PartitionSpec, Samples, hold_back
from sfl_flower.data.labels import row_labels
from sfl_flower.task import SplitTask
from sfl_flower.training.device import device_of
from sfl_flower.training.modes import eval_mode, torch_threads

__all__ = ["VALIDATION", "evaluate_halves", "held_back"]

VALIDATION = "validation_"
"""What the names of results on held back samples begin with."""


def held_back(task: SplitTask, spec: PartitionSpec) -> Samples:
    """Return the training samples that no client is given; taken once a process.

    Parameters
    ----------
    task : SplitTask
        Whose training set is divided.
    spec : PartitionSpec
        Its `validation`, above 0, says how many, its `seed` which.

    Raises
    ------
    DataError
        The share comes to none.
    """

    def take() -> Samples:
        # By the labels that the division goes by, so that the two never overlap.
        samples = task.samples("train")
        labels = row_labels(samples.y.numpy(), task.ignore_label, spec.by_class)
        return samples.take(hold_back(labels, spec.validation, spec.seed)[1])

    return task.memo(("held back", spec), take)


def evaluate_halves(
    task: SplitTask, config: RunConfig, client: nn.Module, server: nn.Module
) -> dict[str, float]:
    """Return loss and metrics of the whole model in eval mode.

    Parameters
    ----------
    task : SplitTask
        Brings the test set, loss and metrics.
    config : RunConfig
        Says what is held back.
    client, server : nn.Module
        The halves.

    Returns
    -------
    dict of str to float
        As `SplitTask.evaluate` of the test set; and, where the run holds training samples back, the
        same of those under names that begin with `VALIDATION`.
    """
    device = device_of(client)

    def forward(x: Tensor) -> Tensor:
        output: Tensor = server(client(x.to(device)))
        return output

    with torch_threads(config.server_threads), eval_mode(client, server):
        found = task.evaluate(forward)
        spec = config.partition_spec()
        if spec is None or not spec.validation:
            return found
        held = task.evaluate(forward, samples=held_back(task, spec))
    return found | {f"{VALIDATION}{name}": value for name, value in held.items()}
