"""The report: what stands on it, numbers a person can check, and what is refused."""

from __future__ import annotations

import inspect
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sfl_flower import simulate
from sfl_flower.cli.main import main
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.reporting.figures import bars
from sfl_flower.reporting.gather import gather
from sfl_flower.reporting.page import write_report
from sfl_flower.reporting.parts import Bar
from sfl_flower.reporting.people import said_of_clients
from sfl_flower.server import exchange
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from tests.report.runs import finished

CONFIG = {"task": "digits", "method": "ho_sfl", "rounds": 9, "clients": 4, "seed": 0}


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self.open[-2:]}:
            self.tables[-1][-1][-1] += data
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, first: str, column: str) -> str:
        """Return the cell of the first table that has this column and this row."""
        for header, *rows in self.tables:
            for row in rows:
                if row[0] == first and column in header:
                    return row[header.index(column)]
        raise KeyError((first, column))


def going(path: Path, *records: RoundRecord, **more: Any) -> RunDirectory:
    """Return a run that is open, with these rounds behind it."""
    run = RunDirectory.create(path, {**CONFIG, **more}, tensorboard=False)
    for record in records:
        run.append(record)
    return run


def test_the_numbers_of_a_run_stand_on_its_page(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "ho_sfl", 0.75)
    page = Page(write_report(run.path))
    assert (tmp_path / "run" / "report.html").is_file()
    assert page.row("ho_sfl", "accuracy") == "0.7500"
    assert page.row("ho_sfl", "samples") == "1,000"
    assert (page.row("ho_sfl", "up"), page.row("ho_sfl", "down")) == ("2.0 KiB", "1.0 KiB")
    assert page.row("ho_sfl", "client memory") == "4.0 KiB"
    assert page.row("ho_sfl", "client FLOPs a sample") == "1.0 M"
    assert page.row("ho_sfl", "state") == "complete"
    assert page.row("smashed up", "ho_sfl") == "2.0 KiB"
    assert page.row("weights down", "ho_sfl") == "1.0 KiB"
    assert page.row("ho_sfl", "FLOPs a sample") == "1.0 M"
    captions = [said for said in page.words if said.startswith("accuracy against")]
    assert captions == [
        *(f"accuracy against {what}" for what in ("rounds", "rounds")),
        *(f"accuracy against {what}" for what in ("training samples", "training samples")),
        *(f"accuracy against {what}" for what in ("bytes", "bytes")),
        *(f"accuracy against {what}" for what in ("client operations", "client operations")),
        *(f"accuracy against {what}" for what in ("time", "time")),
    ]
    # 1 000 samples of a million operations each.
    assert (
        "client operations, all clients (GFLOP). ho_sfl: 0.0% at the first point, 75.0% at 1."
        in (page.text)
    )


def test_a_page_needs_nothing_else_and_names_all_its_parts(compared: Path) -> None:
    page = Page(write_report(compared))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    for tag, given in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (given.get(name) or "#").startswith(("#", "data:")), (tag, given)
        assert tag != "th" or given["scope"] in ("row", "col")
        assert tag != "img" or given["alt"]
    assert "url(" not in re.sub(r"url\(#", "", write_report(compared).read_text())
    names = [given["id"] for _, given in page.tags if given.get("id")]
    assert len(names) == len({*names})
    shown = {key for _, given in page.tags for key in (given.get("aria-labelledby") or "").split()}
    linked = {(given.get("href") or "#x")[1:] for tag, given in page.tags if tag == "a"}
    assert shown | linked <= {*names}
    charts = [given for tag, given in page.tags if tag == "svg" and "role" in given]
    assert len(charts) == 5 == [tag for tag, _ in page.tags].count("desc")
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and {*headings[1:]} == {"h2"}


def test_a_comparison_shows_control_walk_and_equal_memory(compared: Path) -> None:
    page = Page(write_report(compared))
    assert page.row("ho_sfl", "accuracy") == "0.7000 ± 0.1414"  # of 0.6 and 0.8
    assert page.row("ho_sfl", "over the control") == "+0.2000"  # over 0.5
    assert page.row("ho_sfl", "its walk") == "0.5500"
    assert page.row("ho_sfl", "margin") == "+0.1500"
    assert page.row("ho_sfl", "gap closed") == "0.50"  # of 0.5 to 0.9
    assert page.row("frozen (server_steps=batch)", "what it is") == "control"
    assert page.row("splitfed_v2 (micro_batch=4)", "what it is") == "first order, equal memory"
    assert page.row("splitfed_v2 (micro_batch=4)", "samples at once") == "4"
    assert page.row("splitfed_v2 (micro_batch=all)", "what it is") == "first order"
    assert "splitfed_v2 (micro_batch=4) (4.0 KiB on a client)" in page.text
    assert "a walk has a best rate of its own" in page.text  # a remark of the comparison


def test_seeds_of_a_method_are_one_curve_and_problems_are_held_apart(tmp_path: Path) -> None:
    one = finished(tmp_path / "a", "ho_sfl", 0.5, seed=0)
    other = finished(tmp_path / "b", "ho_sfl", 0.7, seed=1)
    control = finished(tmp_path / "c", "frozen", 0.4, seed=0)
    found = gather([one.path, other.path])
    assert [(g.label, len(g.runs)) for g in found.groups] == [("ho_sfl", 2)]
    mean, spread = found.groups[0].score("accuracy")
    assert mean == pytest.approx(0.6) and spread == pytest.approx(0.2 / 2**0.5)
    both = gather([one.path, control.path])
    assert both.apart == () and both.control == pytest.approx(0.4)
    assert gather([one.path, other.path, control.path]).apart == ("seeds",)
    fewer = finished(tmp_path / "d", "frozen", 0.4, samples=500, clients=3)
    apart = gather([one.path, fewer.path])
    assert apart.control is None
    assert apart.apart == ("clients: 10, 3", "training samples: 500 to 1,000")
    page = Page(write_report(one.path, fewer.path, out=tmp_path / "new" / "page.html"))
    assert "cannot be held against each other. They differ in clients: 10, 3;" in page.text


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, "ho_sfl", 0.5).path for name in ("x", "y")]
    assert [group.label for group in gather(runs).groups] == ["ho_sfl [x]", "ho_sfl [y]"]
    finer = finished(tmp_path / "z", "ho_sfl", 0.5, probes=9)
    labels = [group.label for group in gather([runs[0], finer.path]).groups]
    assert labels[1] == "ho_sfl (probes=9)"


def test_a_run_that_is_going_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    records = [RoundRecord(n, 32 * n, 4 * n, 0.5 * n, 1.0, {"accuracy": 0.1 * n}) for n in (0, 1)]
    with going(tmp_path / "run", *records) as run:
        page = Page(write_report(run.path))
        assert page.row("ho_sfl", "state") == "going, 1 of 9 rounds"
        assert page.row("ho_sfl", "accuracy") == "0.1000"
        assert "No bytes by category were written yet" in page.text
        assert "so there is no chart of them" in page.text
    assert Page(write_report(run.path)).row("ho_sfl", "state") == "not complete, 1 of 9 rounds"


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_run_without_evaluation_has_a_page(tmp_path: Path, rounds: int) -> None:
    records = [RoundRecord(n, 32 * n, 4 * n, 0.5 * n) for n in range(rounds)]
    with going(tmp_path / "run", *records) as run:
        page = Page(write_report(run.path))
    assert "No round was evaluated yet, so there is no accuracy to show." in page.text
    assert "desc" not in [tag for tag, _ in page.tags]


def test_other_results_than_accuracy_are_shown(tmp_path: Path) -> None:
    record = RoundRecord(1, 32, 4, 0.5, metrics={"loss": 1.25, "error": 12.5})
    with going(tmp_path / "run", record) as run:
        assert Page(write_report(run.path)).row("ho_sfl", "error") == "12.5"


def test_what_is_known_of_each_client_is_counted() -> None:
    tally = Tally()
    tally.fail(Member(3, 7), "it was too late")
    tally.mark("outlying", 2)
    record = RoundRecord(
        1, 0, 0, 0.0, notes=tally.told(), clients={k: tuple(v) for k, v in tally.marks.items()}
    )
    again = RoundRecord(2, 0, 0, 0.0, notes=("Client 3 is asked again: it died", "Client 3 is"))
    assert said_of_clients([record, record, again]) == {
        2: {"outlying": 2}, 3: {"failed": 2, "asked again": 1},
    }  # fmt: skip
    assert 'f"Client {member.partition} is asked again: ' in inspect.getsource(exchange)


def test_lost_replies_are_counted_and_drawn(tmp_path: Path) -> None:
    notes = ("Client 1 is left out of this round: <b>late</b>",)
    records = [
        RoundRecord(1, 32, 4, 0.5, replies=3, failures=1, notes=notes, extra={"rate": 0.5}),
        RoundRecord(2, 64, 8, 1.0, replies=0, failures=1, rejected=3, extra={"rate": 0.25}),
    ]
    with going(tmp_path / "run", *records) as run:
        page = Page(write_report(run.path))
    used, lost = page.row("ho_sfl", "replies used"), page.row("ho_sfl", "lost")
    assert (used, lost, page.row("ho_sfl", "rounds without a reply")) == ("3", "62.5%", "1")
    assert page.row("client 1", "failed") == "1"
    assert "failed or refused over round. ho_sfl: 1 at the first point, 5 at 2." in page.text
    assert page.row("ho_sfl", "note") == notes[0]  # as it was said, not as markup
    assert page.row("ho_sfl", "mean") == "0.375"


def test_epsilon_is_drawn_round_by_round(tmp_path: Path) -> None:
    records = [RoundRecord(n, 32, 4, 0.5, extra={"epsilon": 1.5 * n}) for n in (1, 2)]
    with going(tmp_path / "run", *records, dp_clip=2.0, dp_delta=1e-5) as run:
        page = Page(write_report(run.path))
    assert (page.row("ho_sfl", "epsilon"), page.row("ho_sfl", "clip")) == ("3", "2.0")
    assert "epsilon over round. ho_sfl: 0 at the first point, 3 at 2." in page.text


ATTACK = {
    "task": "digits", "weights": "the weights of run", "metric": "accuracy",
    "cuts": [
        {
            "cut": "<tanh>", "notes": ["a note"], "findings": [
                {"attack": "decoder", "defence": "none", "kind": "inputs", "failed": False,
                 "reached": {"mse": 0.25, "ssim": 0.5}, "guess": {"mse": 0.5, "ssim": 0.25},
                 "class_guess": {"mse": 0.5, "ssim": None}, "share_of_guess": 0.5},
                {"attack": "norms", "defence": "none", "kind": "labels", "failed": False,
                 "reached": {"accuracy": 0.75}, "guess": {"accuracy": 0.1}, "class_guess": {}},
            ],
        }
    ],
    "notes": [], "pictures": {"<tanh>": "../tanh.png"},
}  # fmt: skip


@pytest.mark.parametrize("inside", [True, False])
def test_results_of_attacks_are_found(tmp_path: Path, inside: bool) -> None:
    run = finished(tmp_path / "run", "ho_sfl", 0.5)
    at = run.path / "attack" if inside else tmp_path / "attack"
    at.mkdir()
    (at / "attack.json").write_text(json.dumps(ATTACK))
    (at / "tanh.png").write_bytes(b"\x89PNG rest")
    page = Page(write_report(run.path, *([] if inside else [at]), out=tmp_path / "page.html"))
    assert page.row("<tanh>, none, decoder", "error (MSE)") == "0.25"
    assert page.row("<tanh>, none, decoder", "share of guess's error") == "0.5"
    assert page.row("<tanh>, none, norms", "accuracy") == "0.75"
    (image,) = [given for tag, given in page.tags if tag == "img"]
    assert str(image["src"]).startswith("data:image/png;base64,")
    (at / "attack.json").write_text('{"cuts": 3}')
    with pytest.raises(DataError, match="no result of sfl attack"):
        write_report(run.path, *([] if inside else [at]), out=tmp_path / "page.html")


def test_what_people_name_is_never_markup(tmp_path: Path) -> None:
    record = RoundRecord(1, 32, 4, 0.5, metrics={"accuracy": 0.5})
    run = going(tmp_path / "<i>run", record, method="<script>alert(1)</script> $x$", task="<b>")
    with run:
        page = Page(write_report(run.path))
    assert not {"script", "i", "b"} & {tag for tag, _ in page.tags}
    assert page.row("<script>alert(1)</script> $x$", "accuracy") == "0.5000"


def test_the_same_runs_give_the_same_page(compared: Path, tmp_path: Path) -> None:
    first = write_report(compared).read_bytes()
    assert write_report(compared, out=tmp_path / "again.html").read_bytes() == first


def test_a_bar_is_as_long_as_its_number() -> None:
    assert bars([1.0, 4.0, None, 0], list("abcd")) == [Bar("a", 0.25), Bar("b", 1.0), "c", "d"]
    assert (Bar("a", 0.25).length, Bar("a", 1.5).length) == ("0.250", "1.000")


DAMAGE = {
    "config.json": "is damaged",
    "summary.json": "is damaged",
    "history.jsonl": "line 1",
    "results.json": "is no result of a comparison",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_in_one_sentence(
    compared: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = compared if name == "results.json" else compared / "runs" / "seed0" / "ho"
    text = (path / name).read_text()
    old, new = ('"rows"', '"lines"') if name == "results.json" else ("0", "7")
    (path / name).write_text("{" + text if name == "history.jsonl" else text.replace(old, new))
    assert main(["report", str(path), "--out", str(tmp_path / "page.html")]) == 1
    said = capsys.readouterr().err
    assert DAMAGE[name] in said and str(path / name) in said and "Traceback" not in said
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    with going(tmp_path / "run") as run:
        (run.path / "ledger.json").write_text('{"bytes": {"smashed": 3}}')
        with pytest.raises(DataError, match="no ledger"):
            write_report(run.path)


def test_what_is_no_run_is_refused(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "empty is no run directory: it has no config.json" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is no directory" in capsys.readouterr().err
    assert main(["report", str(compared), str(compared / "runs/seed0/ho")]) == 2
    assert "is a comparison, which fills a page of its own" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is a directory; name a file"):
        write_report(compared, out=tmp_path)
    with pytest.raises(ConfigError, match="no run to report on"):
        write_report(out=tmp_path / "page.html")
    (compared / "runs/seed0/ho").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="which is not there"):
        write_report(compared)


def test_a_comparison_that_is_going_is_shown(tmp_path: Path) -> None:
    at = tmp_path / "out"
    finished(at / "frozen-batch" / "lr0.05-seed0", "frozen", 0.4)
    with going(at / "ho_sfl" / "lr0.05-seed0"):
        found = gather([at])
    assert [run.state for run in found.runs] == ["complete", "going, 0 of 9 rounds"]


def test_help_fits_a_screen_and_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    said = capsys.readouterr().out
    assert "Example: sfl report runs/ho_sfl runs/frozen --out both.html" in said
    assert len(said.splitlines()) <= 24


def test_a_folder_of_runs_is_reported_as_its_runs(tmp_path: Path) -> None:
    for name in ("first", "second"):
        simulate("digits", "frozen", backend="inline", rounds=1, clients=2, out=tmp_path / name)
    (tmp_path / "notes").mkdir()
    found = gather([tmp_path])
    assert [run.path.name for group in found.groups for run in group.runs] == ["first", "second"]


def test_hidden_labels_have_their_place_on_the_page(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rounds": 1, "clients": 2, "label_epsilon": 2.0}
    simulate("digits", "frozen", backend="inline", out=tmp_path / "run", **options)
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "label_epsilon = 2.0 for each" in text and "Labels are hidden" in text
