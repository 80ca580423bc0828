"""Texts with labels, of a file in the user's folder or of Hugging Face datasets, as token ids."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from sfl_flower.data import Samples
from sfl_flower.errors import DataError
from sfl_flower.training.measures import IGNORED

__all__ = ["SETS", "Split", "TextSet", "continued", "padded", "pairs", "prompted", "samples"]

Split = Literal["train", "test", "public"]
SETS: dict[Split, str] = {"train": "training", "test": "test", "public": "public"}
"""What the sets are called in an error."""
PUBLIC = 64
"""How many of the training rows, the last, are public where nothing else is asked for."""
Ids = list[int]


@dataclass(frozen=True)
class TextSet:
    """Where the rows of a data set are.

    Parameters
    ----------
    title : str
        What to call it in an error.
    columns : tuple of str
        Columns of its files.
    files : mapping of str to str
        The ``.csv.gz`` file of each split.
    hub : tuple
        Arguments of ``datasets.load_dataset``.
    hub_columns : tuple of str
        What the columns are called there, in the same order.
    hub_splits : mapping of str to str
        What the splits are called there.
    revision : str, optional
        Which revision of it.
    public : int
        How many of the training rows, the last, are public.
    """

    title: str
    columns: tuple[str, ...]
    files: Mapping[str, str]
    hub: tuple[str, ...]
    hub_columns: tuple[str, ...]
    hub_splits: Mapping[str, str]
    revision: str | None = None
    public: int = PUBLIC

    def load(self, root: Path, split: Split, size: int | None) -> list[tuple[str, ...]]:
        """Return the first rows of a split, each with one text a column.

        Parameters
        ----------
        root : Path
            The folder.
        split : {"train", "test", "public"}
            Which set; the public one is the last training rows.
        size : int, optional
            How many rows, all there are by default; for the public set, how many are trained on.

        Raises
        ------
        DataError
            There are no such rows, or too few.
        """
        if split == "public":
            return self._public(self.load(root, "train", None), size)
        path = root / self.files[split]
        rows = self._file(path, size) if path.exists() else self._hub(path, split, size)
        if len(rows) < (size or 1):
            raise DataError(
                f"The {split} set of {self.title} has {len(rows)} rows, {size or 1} were asked "
                "for; ask for fewer with task.train_size or task.test_size."
            )
        return rows

    def _public(self, rows: list[tuple[str, ...]], used: int | None) -> list[tuple[str, ...]]:
        most = len(rows) - self.public
        if used is None or used > most:
            raise DataError(
                f"No training row of {self.title} is left for public samples: {used or 'all'} of "
                f"{len(rows)} are trained on; set task.train_size to at most {max(most, 0)}, and "
                f"the last {self.public} are public."
            )
        return rows[-self.public :]

    def _file(self, path: Path, size: int | None) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if size is not None and len(rows) == size:
                        break
                    rows.append(tuple(row[name] or "" for name in self.columns))
        except KeyError as missing:
            raise DataError(
                f"{path} has no column {missing}; {self.title} needs {', '.join(self.columns)}."
            ) from None
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise DataError(
                f"{path} cannot be read: {error}. It must be a gzipped CSV file in UTF-8 with the "
                f"columns {', '.join(self.columns)}."
            ) from error
        return rows

    def _hub(self, path: Path, split: Split, size: int | None) -> list[tuple[str, ...]]:
        from datasets import load_dataset

        called = ", ".join(map(repr, self.hub))
        try:
            split_there = self.hub_splits[split]
            found = load_dataset(*self.hub, split=split_there, revision=self.revision)
            found = found.select(range(min(size or len(found), len(found))))
            columns = [found[name] for name in self.hub_columns]
        except Exception as error:  # whatever a hub client raises: none of it is ours to list
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise DataError(
                f"{self.title} was not found and cannot be downloaded: there is no {path}, and "
                f"datasets.load_dataset({called}) said: {type(error).__name__}: {reason}. Put "
                f"{path.name} (columns {', '.join(self.columns)}) into a folder and name it in the "
                "environment variable SFL_DATA_DIR; or connect to the internet."
            ) from error
        return [tuple(map(str, row)) for row in zip(*columns, strict=True)]


def padded(
    rows: Sequence[Ids], length: int, pad: int, vocabulary: int, where: str
) -> npt.NDArray[np.int64]:
    """Lay token ids out as one array, padded on the right.

    Parameters
    ----------
    rows : sequence of list of int
        Ids of each text, at most `length`.
    length, pad : int
        T, and the id that fills up.
    vocabulary : int
        Ids that the model knows.
    where : str
        What to call the set in an error.

    Returns
    -------
    ndarray of int64
        Shape [N, T].

    Raises
    ------
    DataError
        A text is empty, holds the id of padding, or one that the model does not know.
    """
    x = np.full((len(rows), length), pad, np.int64)
    for number, ids in enumerate(rows):
        if not ids:
            raise DataError(f"Row {number} of {where} has no token; remove empty texts.")
        if pad in ids:
            raise DataError(
                f"Row {number} of {where} holds the token of padding (id {pad}) in its text, where "
                "it would be taken for padding; use a checkpoint whose tokenizer has a pad_token "
                "of its own."
            )
        if max(ids) >= vocabulary:
            raise DataError(
                f"Row {number} of {where} holds the token id {max(ids)}, but the model knows only "
                f"0 to {vocabulary - 1}: its tokenizer is larger than the model; use the tokenizer "
                "that belongs to it."
            )
        x[number, : len(ids)] = ids
    return x


def pairs(tokenizer: Any, texts: Sequence[Sequence[str]], length: int, where: str) -> list[Ids]:
    """Return ids of texts, or of pairs of them, with the special tokens of an encoder, cut short.

    Parameters
    ----------
    tokenizer
        Of transformers.
    texts : sequence of sequence of str
        One or two columns of N texts.
    length : int
        Most ids of a row.
    where : str
        What to call the set in an error.

    Raises
    ------
    DataError
        A text is empty.
    """
    _filled(texts, where)
    found: list[Ids] = tokenizer(
        *[list(column) for column in texts], truncation=True, max_length=length, padding=False
    )["input_ids"]
    return found


def prompted(
    tokenizer: Any, bodies: Sequence[str], ends: Sequence[str], length: int, where: str
) -> list[Ids]:
    """Return ids of texts and what follows each; of a row that is too long, the text is cut short.

    Raises
    ------
    DataError
        A text is empty, or what follows leaves no room for it.
    """
    _filled([bodies], where)
    start = _start(tokenizer)
    rows = []
    both = zip(_plain(tokenizer, bodies), _plain(tokenizer, ends), strict=True)
    for number, (body, end) in enumerate(both):
        room = length - len(start) - len(end)
        if room < 1:
            raise DataError(
                f"Row {number} of {where} needs {len(start) + len(end)} tokens for its prompt "
                f"alone, but max_length is {length}; raise task.max_length."
            )
        rows.append([*start, *body[:room], *end])
    return rows


def continued(
    tokenizer: Any, prompts: Sequence[str], texts: Sequence[str], length: int, where: str
) -> tuple[list[Ids], npt.NDArray[np.int64]]:
    """Return ids of prompts with their continuations, and the next token at each position of these.

    Returns
    -------
    list of list of int
        Ids of each row without the token that ends it, at most `length`.
    ndarray of int64
        Labels [N, `length`]: the next token where it is one of the continuation, or its end;
        elsewhere `IGNORED`.

    Raises
    ------
    DataError
        A prompt or a text is empty, or a prompt leaves no room for its text.
    """
    _filled([prompts, texts], where)
    end = tokenizer.eos_token_id
    start = _start(tokenizer)
    rows, y = [], np.full((len(prompts), length), IGNORED, np.int64)
    both = zip(_plain(tokenizer, prompts), _plain(tokenizer, texts), strict=True)
    for number, (prompt, text) in enumerate(both):
        first = len(start) + len(prompt)
        ids = [*start, *prompt, *text, *([] if end is None else [end])]
        if first > length:
            raise DataError(
                f"Row {number} of {where} has no label: its prompt alone has {first} tokens, and "
                f"max_length is {length}; raise task.max_length."
            )
        following = ids[first : length + 1]
        y[number, first - 1 : first - 1 + len(following)] = following
        rows.append(ids[:-1][:length])
    return rows, y


def samples(x: npt.NDArray[np.int64], y: npt.ArrayLike) -> Samples:
    """Return arrays as the tensors of a task."""
    return Samples(torch.from_numpy(x), torch.from_numpy(np.asarray(y, np.int64)))


def _start(tokenizer: Any) -> Ids:
    """Return what the tokenizer puts before every text: the token that begins one, or nothing."""
    first = tokenizer.bos_token_id
    return [first] if first is not None and tokenizer("a")["input_ids"][:1] == [first] else []


def _plain(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    found: list[Ids] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found


def _filled(columns: Sequence[Sequence[str]], where: str) -> None:
    for column in columns:
        for number, text in enumerate(column):
            if not text.strip():
                raise DataError(f"Row {number} of {where} has an empty text; remove it.")
