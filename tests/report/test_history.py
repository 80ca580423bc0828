from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import DataError
from sfl_flower.report import History, RoundRecord

counts = st.integers(0, 2**60)
floats = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.dictionaries(st.text(max_size=5), floats, max_size=3)
records = st.builds(
    RoundRecord,
    round=counts,
    samples=counts,
    exchanges=counts,
    seconds=floats,
    loss=st.none() | floats,
    metrics=numbers,
    bytes_up=counts,
    bytes_down=counts,
    replies=counts,
    failures=counts,
    rejected=counts,
    notes=st.lists(st.text(max_size=10), max_size=3).map(tuple),
    version=counts,
    digest=st.text("0123456789abcdef", max_size=8),
    extra=numbers,
    client_peak_bytes=counts,
)


def record(number: int, accuracy: float | None = None) -> RoundRecord:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return RoundRecord(
        round=number,
        samples=100 * number,
        exchanges=2 * number,
        seconds=0.5 * number,
        loss=1 / number,
        metrics=metrics,
        bytes_up=10 * number,
        bytes_down=30 * number,
    )


@settings(max_examples=50, deadline=None)
@given(records)
def test_a_record_survives_json_exactly(value: RoundRecord) -> None:
    line = value.to_json()
    assert "\n" not in line
    back = RoundRecord.from_json(line)
    assert back == value
    assert back.client_peak_bytes == value.client_peak_bytes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_written_as_null(bad: float) -> None:
    value = RoundRecord(1, 2, 3, 4.0, loss=bad, metrics={"accuracy": bad}, extra={"norm": bad})
    raw = json.loads(value.to_json())
    assert raw["loss"] is None
    assert raw["metrics"] == {"accuracy": None}
    assert raw["extra"] == {"norm": None}
    back = RoundRecord.from_json(value.to_json())
    assert back.loss is None
    assert math.isnan(back.metrics["accuracy"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 99_999, "not JSON"),
        ("[1]", "not a round record"),
        ('{"round": 1}', "not a round record"),
        ('{"round": 1, "samples": 2, "exchanges": 3, "seconds": 4, "other": 5}', "allows only"),
        ('{"round": 1.5, "samples": 2, "exchanges": 3, "seconds": 4}', "round is 1.5"),
        ('{"round": true, "samples": 2, "exchanges": 3, "seconds": 4}', "round is True"),
        ('{"round": 1, "samples": 2, "exchanges": 3, "seconds": "x"}', "wrong type"),
        ('{"round": 1, "samples": 2, "exchanges": 3, "seconds": 4, "metrics": 5}', "wrong type"),
    ],
)
def test_a_line_that_is_no_record_is_refused(line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RoundRecord.from_json(line)


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    whole = record(1).to_json() + "\n" + record(2).to_json() + "\n"
    path.write_text(whole + record(3).to_json()[:40], encoding="utf-8")
    assert [r.round for r in History.load(path)] == [1, 2]


def test_a_complete_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(record(1).to_json(), encoding="utf-8")
    assert list(History.load(path)) == [record(1)]


def test_a_damaged_line_elsewhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{record(1).to_json()}\noops\n{record(3).to_json()}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        History.load(path)
    with pytest.raises(DataError, match="cannot read"):
        History.load(tmp_path / "absent.jsonl")


def test_a_note_may_hold_any_character(tmp_path: Path) -> None:
    value = RoundRecord(1, 2, 3, 4.0, notes=("a\nb\u2028c\x85d",))
    path = tmp_path / "history.jsonl"
    path.write_text(value.to_json() + "\n", encoding="utf-8")
    assert list(History.load(path)) == [value]


def test_series_has_the_evaluated_rounds() -> None:
    history = History([record(1, 0.1), record(2), record(3, 0.3), record(4, math.nan)])
    assert history.series() == ([100.0, 300.0], [0.1, 0.3])
    assert history.series("bytes") == ([40.0, 120.0], [0.1, 0.3])
    assert history.series("bytes_up") == ([10.0, 30.0], [0.1, 0.3])
    assert history.series("seconds") == ([0.5, 1.5], [0.1, 0.3])
    assert history.series("exchanges") == ([2.0, 6.0], [0.1, 0.3])
    assert history.series("round", "loss") == ([1.0, 2.0, 3.0, 4.0], [1.0, 0.5, 1 / 3, 0.25])
    assert history.series(metric="f1") == ([], [])
    with pytest.raises(DataError, match="choose one of samples"):
        history.series("epochs")


def test_a_history_reads_like_a_list() -> None:
    history = History([record(1), record(2)])
    history.append(record(3))
    assert len(history) == 3
    assert history[-1] == record(3)
    assert history[1:] == History([record(2), record(3)])
    assert record(2) in history
