"""What a comparison computes from its runs, by hand, and what it shows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sfl_flower.comparison.assembled import assemble
from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.pages import markdown_comparison, print_comparison, write_comparison
from sfl_flower.comparison.rows import Comparison, Row, make_row
from tests.report.runs import finished


def runs(
    path: Path, method: str, scores: list[float], server_lr: float = 0.05, **options: Any
) -> list[FinishedRun]:
    named = "-".join([method, str(server_lr), *map(str, options.values())])
    return [
        finished(path / f"{named}-{seed}", method, s, seed=seed, server_lr=server_lr, **options)
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
    table = markdown_comparison(found)
    assert "| frozen | 0.6000 | 0.0000 | – | – | 2 + 1 back | 1.0 M |" in table
    assert "| frozen | 0.05 | 1 | 300 | batch | constant | constant | – | 1 |" in table


@pytest.mark.parametrize(
    ("middle", "sentence"),
    [
        ([0.3, 0.4], "ho_sfl (0.3500) does not beat the control frozen (0.4500)."),
        (
            [0.5, 0.5],
            (
                "ho_sfl (0.5000) does not beat the control frozen (0.4500) by more than the spread "
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
    assert "| ho_sfl | 1,000 | 2.0 KiB | 1.0 KiB | 4 | 4.0 KiB | 2.0 |" in table
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


def test_a1_the_gap_is_measured_from_the_higher_control(tmp_path: Path) -> None:
    """The frozen client with a step a round has 0.4, with a step a batch 0.7."""
    made = {
        "frozen (round)": runs(tmp_path, "frozen", [0.4], server_steps="round"),
        "frozen (batch)": runs(tmp_path, "frozen", [0.7], server_steps="batch"),
        "ho_sfl": runs(tmp_path, "ho_sfl", [0.6]),
        "splitfed_v2": runs(tmp_path, "splitfed_v2", [0.9]),
    }
    rows = [make_row(label, found, [0], "accuracy") for label, found in made.items()]
    found = assemble(rows, [0], "accuracy")
    assert found["ho_sfl"].gap_closed == pytest.approx(-0.1 / 0.2)
    assert found["frozen (round)"].gap_closed == pytest.approx(-0.3 / 0.2)
    assert "ho_sfl (0.6000) does not beat the control frozen (batch) (0.7000)." in found.notes


ZEROTH: dict[str, Any] = {"client": "zeroth order", "client_forwards": 5, "client_backprops": 0}


def test_d1_what_is_claimed_is_the_margin_over_the_same_at_a_client_rate_of_0(
    tmp_path: Path,
) -> None:
    """HERON has 0.39 where the control has 0.36; at a client rate of 0 it has 0.40."""
    rows = [
        make_row("frozen", runs(tmp_path, "frozen", [0.36, 0.37]), [0, 1], "accuracy"),
        make_row("heron", runs(tmp_path, "heron", [0.39, 0.40], terms=ZEROTH), [0, 1], "accuracy"),
    ]
    stands = runs(tmp_path, "heron", [0.40, 0.41], 0.1, client_lr=0.0, terms=ZEROTH)
    still = make_row("heron 0", stands, [0, 1], "accuracy")
    found = assemble(rows, [0, 1], "accuracy", twins={"heron": [still]})
    row = found["heron"]
    assert row.at_rate_0 == pytest.approx(0.405) and row.margin == pytest.approx(-0.01)
    assert "heron (0.3950) is not above its own run at a client rate of 0 (0.4050)." in found.notes
    assert "| heron | 0.3950 | 0.0071 | – | 0.4050 | -0.0100 | 5 | 1.0 M |" in (
        markdown_comparison(found)
    )
    alone = assemble(rows, [0, 1], "accuracy")
    assert alone["heron"].margin is None
    assert any("heron has no walk and no run at a client rate of 0" in n for n in alone.notes)


def walked(path: Path, scores: list[float], client_lr: float, held: float | None = None) -> Row:
    """Return HERON's walk at a client rate."""
    found = [
        finished(
            path / f"walk-{client_lr}-{seed}", "heron", score, seed=seed, client_lr=client_lr,
            walk=True, terms=ZEROTH, validation_accuracy=held,
        )
        for seed, score in enumerate(scores)
    ]  # fmt: skip
    return make_row("heron walk", found, range(len(scores)), "accuracy")


@pytest.mark.parametrize(("walk", "margin"), [([0.40, 0.42], 0.02), ([0.44, 0.45], -0.005)])
def test_the_margin_is_over_the_higher_of_control_and_walk(
    tmp_path: Path, walk: list[float], margin: float
) -> None:
    """HERON has 0.44 where the control has 0.42."""
    own = runs(tmp_path, "heron", [0.43, 0.45], client_lr=0.1, terms=ZEROTH)
    rows = [
        make_row("frozen", runs(tmp_path, "frozen", [0.42, 0.42]), [0, 1], "accuracy"),
        make_row("heron", own, [0, 1], "accuracy"),
    ]
    found = assemble(rows, [0, 1], "accuracy", twins={"heron": [walked(tmp_path, walk, 0.1)]})
    row = found["heron"]
    assert row.walk == pytest.approx(sum(walk) / 2) and row.at_rate_0 is None
    assert row.margin == pytest.approx(margin) and found["frozen"].margin is None
    table = markdown_comparison(found)
    assert "| gap closed | walk | margin |" in table
    assert f"| heron | 0.4400 | 0.0141 | – | {row.walk:.4f} | {margin:+.4f} |" in table
    below = [note for note in found.notes if "is not above its own walk" in note]
    assert len(below) == (margin < 0)
    (said,) = (note for note in found.notes if note.startswith("The walk of heron"))
    assert "at the row's own client rate alone (0.1); a walk has a best rate of its own" in said


def test_of_walks_at_several_client_rates_the_one_chosen_on_held_samples_counts(
    tmp_path: Path,
) -> None:
    own = [finished(tmp_path / "own", "heron", 0.5, client_lr=0.1, terms=ZEROTH)]
    rows = [make_row("heron", own, [0], "accuracy")]
    walks = [
        walked(tmp_path, [0.3], 0.1, held=0.6),
        walked(tmp_path, [0.4], 0.05, held=0.7),
        walked(tmp_path, [0.6], 0.2, held=0.5),
    ]
    found = assemble(rows, [0], "accuracy", twins={"heron": walks})
    assert found["heron"].walk == 0.4
    assert found["heron"].margin == pytest.approx(0.1)  # without a control, over the walk
    assert "The walk of heron is at client rate 0.05, the best of 0.05, 0.1, 0.2." in found.notes


def test_d2_a_row_that_differs_in_more_than_the_method_is_marked(tmp_path: Path) -> None:
    eval_mode = {
        **ZEROTH, "client_mode": "eval", "server_pace": "round", "client_schedule": "cosine",
    }  # fmt: skip
    rows = [
        make_row("same", runs(tmp_path, "cse_fsl", [0.5]), [0], "accuracy"),
        make_row("other", runs(tmp_path, "ho_sfl", [0.5], terms=eval_mode), [0], "accuracy"),
        make_row(
            "splitfed_v2",
            runs(tmp_path, "splitfed_v2", [0.6], terms={"client_mode": "train"}),
            [0],
            "accuracy",
        ),
    ]
    found = assemble(rows, [0], "accuracy")
    assert found["same"].apart == found["splitfed_v2"].apart == ()
    assert found["other"].apart == (
        "client mode: eval, not train",
        "server steps: round, not batch",
        "client schedule: cosine, not constant",
    )
    table = markdown_comparison(found)
    assert "| other † |" in table and "| same |" in table and "| splitfed_v2 |" in table
    assert "† other differs from splitfed_v2 in more than the method; client mode: eval" in table


def test_d2_rates_tried_and_local_steps_are_terms_too(tmp_path: Path) -> None:
    tried = [*runs(tmp_path, "ho_sfl", [0.5]), *runs(tmp_path, "ho_sfl", [0.4], 0.1)]
    rows = [
        make_row("ho_sfl", tried, [0], "accuracy"),
        make_row("fedavg", runs(tmp_path, "fedavg", [0.5], rounds=9), [0], "accuracy"),
        make_row("splitfed_v2", runs(tmp_path, "splitfed_v2", [0.6]), [0], "accuracy"),
    ]
    found = assemble(rows, [0], "accuracy")
    assert found["ho_sfl"].apart == ("server rates tried: 2, not 1",)
    assert found["fedavg"].apart == ("rounds: 9, not 1",)


def test_d3_rates_are_chosen_on_what_is_held_back(tmp_path: Path) -> None:
    """0.1 is better on the samples held back, 0.2 on the test set, which is not asked."""
    tried = [
        finished(tmp_path / "a", "ho_sfl", 0.5, server_lr=0.1, validation_accuracy=0.8),
        finished(tmp_path / "b", "ho_sfl", 0.9, server_lr=0.2, validation_accuracy=0.7),
    ]
    row = make_row("ho_sfl", tried, [0], "accuracy")
    assert (row.server_lr, row.mean, row.rates) == (0.1, 0.5, {0.1: 0.8, 0.2: 0.7})
    assert not any("test set" in note for note in assemble([row], [0], "accuracy").notes)
    without = [
        finished(tmp_path / "c", "ho_sfl", 0.5, server_lr=0.1),
        finished(tmp_path / "d", "ho_sfl", 0.9, server_lr=0.2),
    ]
    row = make_row("ho_sfl", without, [0], "accuracy")
    assert row.server_lr == 0.2
    assert any("chosen on the test set" in n for n in assemble([row], [0], "accuracy").notes)


def test_d5_passes_and_operations_of_a_client_stand_beside_the_accuracy(tmp_path: Path) -> None:
    terms = {**ZEROTH, "client_forwards": 33}
    rows = [
        make_row("ho_sfl", runs(tmp_path, "ho_sfl", [0.5], terms=terms), [0], "accuracy"),
        make_row("splitfed_v2", runs(tmp_path, "splitfed_v2", [0.6]), [0], "accuracy"),
    ]
    head, *_ = markdown_comparison(assemble(rows, [0], "accuracy")).split("\n\n**")
    assert "| client passes | client FLOPs |" in head
    assert "| 33 | 1.0 M |" in head and "| 2 + 1 back | 1.0 M |" in head
