"""A task tried before anything is trained: data, model, cut, loss and metrics together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flwr.app import Context

from sfl_flower.data.repeats import check_augment, check_same, check_transform
from sfl_flower.split import read_subspace
from sfl_flower.task.own_data import first_node
from sfl_flower.training.trial import Trial

if TYPE_CHECKING:
    from sfl_flower.task.task import Split, SplitTask

__all__ = ["SETS", "check_task"]

SETS: dict[Split, str] = {
    "train": "the training set", "test": "the test set", "public": "the public set",
}  # fmt: skip


def check_task(task: SplitTask, seed: int, clients: int) -> None:
    """Try a few samples of each set on the halves, and ask for the data twice.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    seed : int
        The model's seed.
    clients : int
        Its clients; of data of their own, the first one's are tried.

    Raises
    ------
    CutError, DataError, ConfigError
        What does not fit together, and what to do.
    """
    chosen = read_subspace(task.trained)
    halves = task.build(seed)
    trial = Trial(
        task.name, halves.at, halves.client.eval(), halves.server.eval(), task.loss, task.metrics,
        task.classes,
    )  # fmt: skip
    fed: dict[str, tuple[int, ...]] = {}
    node = first_node(clients) if task.own_data else None
    for split, where in SETS.items():
        if split == "public" and (task.public is None or chosen is None):
            continue
        samples = task.samples(split, node)
        for rows in (slice(0, 2), slice(0, 3)):
            batch = partial(task.batch, samples, rows)
            if split == "train":
                batch = partial(task.training_batch, samples, rows, seed)
            trial.run(batch, samples.x[rows], where, fed, warn=not fed and rows.stop == 2)
        fed[where] = tuple(samples.x.shape[1:])
        task.memo(("repeats", split), partial(_repeats, task, split, node))


def _repeats(task: SplitTask, split: Split, node: Context | None) -> bool:
    samples = task.samples(split, node)
    check_same(f"{split}() of task {task.name!r}", samples, task.load(split, node))
    if task.augment is not None and split == "train":
        check_augment(task.name, task.augment, samples.x)
    if task.transform is not None:
        check_transform(task.name, task.transform, samples.x)
    return True
