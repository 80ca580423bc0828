"""Texts or pairs of texts with one label each, as a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from sfl_flower.data import Samples
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import CLASSIFIERS, Checkpoint, pad_id
from sfl_flower.tasks.eva import first_directions
from sfl_flower.tasks.options import whole_number
from sfl_flower.tasks.text import SETS, Split, padded, pairs, prompted, samples
from sfl_flower.training.measures import IGNORED, accuracy, token_accuracy

__all__ = ["Sentences", "classification"]


class Texts(Protocol):
    """Where rows are."""

    def load(self, root: Path, split: Split, size: int | None) -> list[tuple[str, ...]]:
        """Return the first rows of a split, each with one text a column."""


@dataclass(frozen=True)
class Sentences:
    """A data set of texts with labels, and how it is put to a causal model.

    Attributes
    ----------
    name : str
        Of the task.
    texts : Texts
        Where its rows are; the last column is the label.
    end : callable
        From the texts of a row to what follows its first text in a prompt.
    words : tuple of str
        How every prompt ends, and the word of each class.
    most : tuple of int, optional
        Rows of the training and of the test set.
    labels : tuple of str
        What the rows call the classes.
    has_public : bool
        Whether there is a public set.
    """

    name: str
    texts: Texts
    end: Callable[..., str]
    words: tuple[str, ...]
    most: tuple[int, int] | None
    labels: tuple[str, ...] = ("0", "1")
    has_public: bool = True


def classification(
    data: Sentences,
    root: Path,
    train_size: int | None,
    test_size: int | None,
    cut: str,
    checkpoint: Checkpoint,
    trained: str = "all",
) -> SplitTask:
    """Return the task.

    Parameters
    ----------
    data : Sentences
        The data set.
    root : Path
        Folder of its files.
    train_size, test_size : int, optional
        The first so many rows of each set.
    cut : str
        Where the model is cut.
    checkpoint : Checkpoint
        The model.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it.

    Raises
    ------
    ConfigError
        A size, the head or `trained` is out of its range.
    """
    sizes = {"train_size": train_size, "test_size": test_size}
    for (option, value), most in zip(sizes.items(), data.most or (None, None), strict=True):
        if value is not None and most is not None:
            whole_number(data.name, option, value, 1, most)
    _check_head(data.name, checkpoint.head)
    checkpoint.check_trained(trained)
    load = partial(_load, data, root, checkpoint)
    public = partial(load, "public", train_size) if data.has_public else None
    verbal = checkpoint.head == "verbaliser"
    return SplitTask(
        name=data.name,
        model=checkpoint.build,
        cut=cut,
        train=partial(load, "train", train_size),
        test=partial(load, "test", test_size),
        public=public,
        first_buffers=first_directions(checkpoint, public),
        classes=len(data.labels),
        metrics={"accuracy": token_accuracy if verbal else accuracy},
        ignore_label=IGNORED if verbal else None,
        trained=trained,
        # What a user's own functions give is not named by anything.
        token="" if data.most is None else f"{data.name}:{root.absolute()}",
    )


def _check_head(task: str, head: str) -> None:
    if head not in (*CLASSIFIERS, "verbaliser"):
        raise ConfigError(
            f"Option 'head' of task {task!r} is {head!r}; it must be classifier, pooled or "
            "verbaliser."
        )


def _load(
    data: Sentences, root: Path, checkpoint: Checkpoint, split: Split, size: int | None
) -> Samples:
    where = f"the {SETS[split]} set of task {data.name!r}"
    config, tokenizer = checkpoint.config(), checkpoint.tokenizer()
    *texts, labels = zip(*data.texts.load(root, split, size), strict=True)
    y = _labels(labels, data.labels, where)
    length = checkpoint.max_length
    if checkpoint.head in CLASSIFIERS:
        rows = pairs(tokenizer, texts, length, where)
    else:
        ends = [data.end(*row) for row in zip(*texts, strict=True)]
        rows = prompted(tokenizer, texts[0], ends, length, where)
    x = padded(rows, length, pad_id(tokenizer), config.vocab_size, where)
    if checkpoint.head in CLASSIFIERS:
        return samples(x, y)
    last = np.full(x.shape, IGNORED, np.int64)
    last[np.arange(len(x)), [len(row) - 1 for row in rows]] = y
    return samples(x, last)


def _labels(labels: tuple[str, ...], classes: tuple[str, ...], where: str) -> np.ndarray:
    number = {label: index for index, label in enumerate(classes)}
    for row, label in enumerate(labels):
        if label.strip() not in number:
            given = f"the label {label.strip()[:40]!r}" if label.strip() else "no label"
            raise DataError(f"Row {row} of {where} has {given}; it must be {_listed(classes)}.")
    return np.array([number[label.strip()] for label in labels], np.int64)


def _listed(classes: tuple[str, ...]) -> str:
    """Return "0 or 1", or "a, b or c"; the first ten of many."""
    if len(classes) > 10:
        return f"one of {', '.join(classes[:10])}, … ({len(classes)} in all)"
    return f"{', '.join(classes[:-1])} or {classes[-1]}"
