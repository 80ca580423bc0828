"""What a comparison computes from its runs, by hand, and what it shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.pages import markdown_comparison, print_comparison, write_comparison
from sfl_flower.comparison.rows import Comparison, assemble, make_row
from tests.report.runs import finished


def runs(
    path: Path, method: str, scores: list[float], server_lr: float = 0.05
) -> list[FinishedRun]:
    return [
        finished(path / f"{method}-{server_lr}-{seed}", method, s, seed=seed, server_lr=server_lr)
        for seed, s in enumerate(scores)
    ]


def three(path: Path, low: list[float], middle: list[float], high: list[float]) -> Comparison:
    seeds = range(len(low))
    named = {"frozen": low, "ho_sfl": middle, "splitfed_v2": high}
    rows = [make_row(n, runs(path, n, scores), seeds, "accuracy") for n, scores in named.items()]
    return assemble(rows, seeds, "accuracy")


def test_mean_spread_and_gap(tmp_path: Path) -> None:
    found = three(tmp_path, [0.5, 0.6, 0.7], [0.7, 0.8, 0.9], [0.9, 0.9, 0.9])
    row = found["ho_sfl"]
    assert row.mean == pytest.approx(0.8)
    assert row.spread == pytest.approx(0.1)
    assert row.gap_closed == pytest.approx(0.2 / 0.3)
    assert found["frozen"].gap_closed == 0 and found["splitfed_v2"].gap_closed == 1
    assert found.notes == ()


def test_the_best_rate_is_that_of_the_highest_mean_over_all_seeds(tmp_path: Path) -> None:
    tried = [
        *runs(tmp_path, "ho_sfl", [0.2, 0.4], 0.1),
        *runs(tmp_path, "ho_sfl", [0.5, 0.3], 0.2),
        *runs(tmp_path, "ho_sfl", [0.9], 0.4),  # no run with the other seed
    ]
    row = make_row("ho_sfl", tried, [0, 1], "accuracy")
    assert row.server_lr == 0.2
    assert row.rates == {0.1: pytest.approx(0.3), 0.2: pytest.approx(0.4)}
    assert [run.score("accuracy") for run in row.runs] == [0.5, 0.3]


def test_a_ceiling_that_is_not_above_the_control_leaves_no_gap(tmp_path: Path) -> None:
    found = three(tmp_path, [0.6, 0.6], [0.7, 0.7], [0.6, 0.5])
    assert [row.gap_closed for row in found.rows] == [None] * 3
    assert "splitfed_v2 (0.5500) is not above frozen (0.6000)" in found.notes[0]
    assert "| frozen | 0.6000 | 0.0000 | 0.05 | – | 1,000 | 2.0 |" in markdown_comparison(found)


@pytest.mark.parametrize(
    ("middle", "sentence"),
    [
        ([0.3, 0.4], "ho_sfl (0.3500) does not beat the frozen control (0.4500)."),
        (
            [0.5, 0.5],
            (
                "ho_sfl (0.5000) does not beat the frozen control (0.4500) by more than the spread "
                "over the seeds (0.0707)."
            ),
        ),
        ([0.6, 0.6], None),
    ],
)
def test_a_method_that_adds_nothing_is_said_to(
    tmp_path: Path, middle: list[float], sentence: str | None
) -> None:
    found = three(tmp_path, [0.4, 0.5], middle, [0.9, 0.9])
    assert list(found.notes) == ([sentence] if sentence else [])


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    found = three(tmp_path, [0.4], [0.5], [0.9])
    assert found["ho_sfl"].spread is None
    assert found.notes == ("With one seed there is no spread, so small differences may be chance.",)


def test_what_is_written_and_printed(tmp_path: Path) -> None:
    found = three(tmp_path / "runs", [0.5, 0.6], [0.7, 0.8], [0.9, 0.9])
    found = assemble(found.rows, found.seeds, "accuracy", {"heron": "it is late."})
    written = write_comparison(found, tmp_path)
    assert written.out == tmp_path
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| ho_sfl | 2.0 KiB | 1.0 KiB | 4 | 4.0 KiB | 1.0 M |" in table
    assert "| smashed up | 2.0 KiB | 2.0 KiB | 2.0 KiB |" in table
    assert "- heron is not in the table: it is late." in table
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    row = results["rows"][1]
    assert (row["label"], row["mean_by_server_lr"]) == ("ho_sfl", {"0.05": pytest.approx(0.75)})
    assert row["client_flops"] == 1e6 and row["ledger"]["smashed"]["up"] == 2048
    assert row["runs"][0]["directory"] == "runs/ho_sfl-0.05-0"
    for axis in ("samples", "bytes", "seconds"):
        assert (tmp_path / f"accuracy-{axis}.png").stat().st_size > 10_000
    out = io.StringIO()
    print_comparison(found, Console(file=out, width=100))
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    assert "gap closed" in shown and "heron is not in the table: it is late." in shown
