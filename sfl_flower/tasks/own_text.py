"""Texts of one's own with any number of labels, as a task."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import MINILM, Checkpoint
from sfl_flower.tasks.classification import Sentences, classification
from sfl_flower.tasks.text import Split

__all__ = ["OwnTexts", "text_task"]

Source = Callable[[], Iterable[Sequence[Any]]] | str | Path
"""A function that gives rows (text, label), or a file of them."""


@dataclass(frozen=True)
class OwnTexts:
    """Where rows of texts and labels are.

    Parameters
    ----------
    train, test : callable or path
        ``train()`` gives rows, each a text (or several) and a label; or a file: CSV, JSON (a list
        of objects) or JSON lines, gzipped where its name ends in ``.gz``.
    columns : tuple of str
        What a file calls them, the label last.
    public : callable or path, optional
        The same of the public set.
    """

    train: Source
    test: Source
    columns: tuple[str, ...]
    public: Source | None = None

    def load(self, root: Path, split: Split, size: int | None) -> list[tuple[str, ...]]:
        """Return the first rows of a split, each with one text a column; see `TextSet.load`."""
        source: Source = getattr(self, split)
        size = None if split == "public" else size
        rows = list(self._file(root / source) if isinstance(source, str | Path) else source())
        for number, row in enumerate(rows):
            if isinstance(row, str) or len(row) != len(self.columns):
                what = "a text" if isinstance(row, str) else f"{len(row)} values"
                raise DataError(
                    f"Row {number} of the {split} set is {what}; it must be "
                    f"{len(self.columns)}: {', '.join(self.columns)}."
                )
        if len(rows) < (size or 1):
            raise DataError(f"The {split} set has {len(rows)} rows, {size or 1} were asked for.")
        return [tuple(map(str, row)) for row in rows[:size]]

    def _file(self, path: Path) -> list[tuple[Any, ...]]:
        name = path.name.removesuffix(".gz")
        opened: Callable[..., TextIO] = gzip.open if name != path.name else open
        try:
            with opened(path, "rt", encoding="utf-8", newline="") as file:
                rows = list(self._rows(file, name))
            return [tuple(row[column] for column in self.columns) for row in rows]
        except KeyError as missing:
            raise DataError(
                f"{path} has no column {missing}; its columns must be {', '.join(self.columns)}."
            ) from None
        except (OSError, EOFError, ValueError, TypeError, csv.Error, zlib.error) as error:
            raise DataError(
                f"{path} cannot be read: {error}. It must be CSV with a first line of names, a "
                "JSON list of objects, or JSON lines (.jsonl), in UTF-8."
            ) from error

    def _rows(self, file: TextIO, name: str) -> Iterable[Mapping[str, Any]]:
        if name.endswith(".json"):
            found: list[Mapping[str, Any]] = json.load(file)
            return found
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in file if line.strip()]
        return csv.DictReader(file)


def text_task(
    name: str,
    train: Source,
    test: Source,
    labels: Sequence[Any],
    *,
    public: Source | None = None,
    columns: tuple[str, ...] = ("text", "label"),
    model: str = MINILM,
    cut: str = "block:2",
    max_length: int = 64,
    prompt: str = "",
    words: Sequence[str] = (),
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_targets: str = "",
    lora_init: str = "default",
    base_dtype: str = "float32",
    dropout: float = 0.0,
    attention: str = "auto",
    trained: str = "all",
) -> SplitTask:
    """Return a task of texts with labels, on a transformer with LoRA adapters.

    Parameters
    ----------
    name : str
        Of the task.
    train, test : callable or path
        ``train()`` gives rows (text, label); or a file of them: CSV, JSON or JSON lines.
    labels : sequence
        The labels as the rows have them, ``["cat", "dog"]`` or ``range(6)``; class i is the i-th.
    public : callable or path, optional
        Rows that are nobody's secret, labels not used; the directions of a subspace are theirs.
    columns : tuple of str
        What a file calls text and label; three for pairs of texts, the label last.
    model, cut, max_length, lora_rank, lora_alpha, lora_targets, lora_init, base_dtype, dropout
        As for the task ``sst2``.
    prompt, words : str and sequence of str
        With one word a label, a causal model is asked for the word behind the text and the prompt;
        without, a classifier is trained.
    attention : str
        As for the task ``sst2``.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it.

    Raises
    ------
    ConfigError
        An option is out of its range, or there are fewer than two labels, or not one word a label.
    """
    found = tuple(str(label) for label in labels)
    if len(set(found)) < max(2, len(found)):
        raise ConfigError(
            f"Task {name!r} has the labels {', '.join(found[:8]) or 'none'}; it needs at least "
            "two, each once."
        )
    if words and len(words) != len(found):
        raise ConfigError(
            f"Task {name!r} has {len(words)} words for {len(found)} labels; give one word a label."
        )
    ends = (prompt, *words) if words else ()
    checkpoint = Checkpoint(
        name, model, "verbaliser" if words else "classifier", max_length, ends, lora_rank,
        lora_alpha, lora_targets, base_dtype, dropout, attention, len(found), lora_init,
    )  # fmt: skip
    end = _Prompt(prompt)
    texts = OwnTexts(train, test, columns, public)
    data = Sentences(name, texts, end, ends, None, found, public is not None)
    return classification(data, Path(), None, None, cut, checkpoint, trained)


@dataclass(frozen=True)
class _Prompt:
    """What follows the first text of a row: its other texts, and the prompt."""

    prompt: str

    def __call__(self, _first: str, *others: str) -> str:
        return "".join(f" {other}" for other in others) + self.prompt
