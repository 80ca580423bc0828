"""Texts of one's own, with any number of labels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from sfl_flower import simulate
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.tasks.own_text import text_task
from tests.tasks.language import WORDS, checkpoint

KINDS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
ROWS = [(f"{WORDS[i % len(WORDS)]} film", KINDS[i % 6]) for i in range(36)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("opt"), "opt")


def _small(model: str, train: Any = lambda: ROWS, **options: Any) -> Any:
    fields: dict[str, Any] = {"labels": KINDS, "model": model, "max_length": 8, "lora_rank": 2}
    return text_task("questions", train, lambda: ROWS[:12], **{**fields, **options})


def test_a10_six_classes_of_questions_are_a_task_in_one_call(bert: str) -> None:
    task = _small(bert)
    task.check()
    assert task.classes == 6
    assert task.samples("train").y.tolist() == [i % 6 for i in range(36)]
    result = simulate(task, "ho_sfl", backend="inline", clients=2, rounds=1, partition="iid")
    assert result.history[-1].samples > 0


def test_public_texts_of_ones_own(bert: str) -> None:
    assert _small(bert).public is None
    task = _small(bert, public=lambda: ROWS[6:9])
    assert task.samples("public").y.tolist() == [0, 1, 2]


def _csv(path: Path) -> None:
    path.write_text("text,label\n" + "".join(f'"{t}",{k}\n' for t, k in ROWS), encoding="utf-8")


def _zipped(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("text,label\n" + "".join(f'"{t}",{k}\n' for t, k in ROWS))


def _json(path: Path) -> None:
    rows = [{"text": t, "label": k} for t, k in ROWS]
    lines = "\n".join(map(json.dumps, rows))
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", _csv), ("a.csv.gz", _zipped), ("a.json", _json), ("a.jsonl", _json)],
)
def test_a10_rows_come_from_a_file_of_any_of_these_kinds(
    name: str, write: Callable[[Path], None], tmp_path: Path, bert: str
) -> None:
    write(tmp_path / name)
    found = _small(bert, tmp_path / name).samples("train")
    assert found.x.equal(_small(bert).samples("train").x)
    assert found.y.tolist() == [i % 6 for i in range(36)]


def test_a10_a_causal_model_is_asked_for_one_word_a_label(opt: str) -> None:
    words = ["good", "bad", "great"]
    rows = [("a film", i % 3) for i in range(6)]
    task = text_task(
        "moods", lambda: rows, lambda: rows, range(3), model=opt, max_length=8, prompt=" it was",
        words=words, lora_rank=2,
    )  # fmt: skip
    task.check()
    y = task.samples("train").y
    assert y[y >= 0].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a film", "OTHER")], "Row 0 of the training set .* has the label 'OTHER'; it must be A"),
        (["a film"], "Row 0 of the train set is a text; it must be 2: text, label"),
        ([("a", "b", "LOC")], "Row 0 of the train set is 3 values"),
        ([], "The train set has 0 rows"),
    ],
)
def test_a10_rows_that_cannot_be_used_are_named(rows: Any, message: str, bert: str) -> None:
    with pytest.raises(DataError, match=message):
        _small(bert, lambda: rows).samples("train")


def test_a10_files_and_labels_that_cannot_be_used_are_named(tmp_path: Path, bert: str) -> None:
    (tmp_path / "a.csv").write_text("sentence,label\na film,LOC\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv has no column 'text'; .*text, label"):
        _small(bert, tmp_path / "a.csv").samples("train")
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    for name in ("a.json", "none.csv"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            _small(bert, tmp_path / name).samples("train")
    with pytest.raises(ConfigError, match="has the labels LOC; it needs at least two"):
        _small(bert, labels=["LOC"])
    with pytest.raises(ConfigError, match="1 words for 6 labels"):
        _small(bert, words=["good"])
