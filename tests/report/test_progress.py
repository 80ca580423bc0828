from __future__ import annotations

import io
import math
import re

from rich.console import Console

from sfl_flower.report import RoundRecord, RunProgress
from sfl_flower.report.panel import Shown


def record(number: int, accuracy: float | None = None, failures: int = 0) -> RoundRecord:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return RoundRecord(
        number, 0, 0, 0.5 * number, 0.25, metrics, 1024 * number, 1024 * number, failures=failures
    )


def run(console: Console, rounds: int) -> None:
    with RunProgress(console) as progress:
        for label in ("ho_sfl", "[frozen]"):
            progress.start(label, rounds)
            for number in range(1, rounds + 1):
                progress(record(number, 0.5 if number == 10 else None, failures=number == 15))


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=40), out


def test_a_log_gets_one_line_every_tenth_of_each_run() -> None:
    console, out = plain()
    run(console, 25)
    lines = out.getvalue().splitlines()
    numbers = [int(line.split("round ")[1].split("/")[0]) for line in lines]
    assert numbers == [3, 6, 9, 12, 15, 18, 21, 24, 25] * 2
    assert lines[0] == "ho_sfl: round 3/25  loss 0.250  6.0 KiB  2.0 rounds/s"
    last = "round 25/25  accuracy 0.500  loss 0.250  50.0 KiB  2.0 rounds/s  1 replies lost"
    assert lines[8] == f"ho_sfl: {last}"
    assert lines[17] == f"[frozen]: {last}"


def test_a_resumed_run_goes_on_from_where_it_was() -> None:
    console, out = plain()
    with RunProgress(console) as progress:
        progress.start("x", 20, done=18)
        progress.update(record(19))
        progress.update(record(20))
    assert [line.split()[2] for line in out.getvalue().splitlines()] == ["20/20"]


def test_runs_side_by_side_are_shown_apart() -> None:
    console, out = plain()
    with RunProgress(console, keep=False) as progress:
        one, two = progress.start("one", 2), progress.start("two", 1)
        one(record(1))
        two(record(1, 0.5))
        one(record(2))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "one: round 1/2",
        "two: round 1/1",
        "one: round 2/2",
    ]
    assert ["accuracy" in line for line in lines] == [False, True, False]


def terminal(width: int = 110) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, color_system=None), out


def test_a_panel_that_is_not_kept_becomes_a_line() -> None:
    console, out = terminal()
    with RunProgress(console, keep=False) as progress:
        show = progress.start("x", 2)
        show(record(1))
        show(record(2))
    shown = out.getvalue()
    assert "x: round 2/2" in shown and "x: round 1/2" not in shown
    # What stands on the screen is what follows the last erased line.
    assert "2/2" not in shown.rpartition("\x1b[2K")[2]


def test_an_update_without_a_start_and_without_numbers_does_not_fail() -> None:
    console, out = plain()
    with RunProgress(console) as progress:
        progress.update(RoundRecord(0, 0, 0, 0.0, None, {"accuracy": math.nan}))
        progress.update(RoundRecord(1, 0, 0, 0.0))
    assert out.getvalue() == "run: round 1/1  –\n"


def last_frame(shown: str) -> list[str]:
    """Return the lines that stand on the screen at the end."""
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.rpartition("\x1b[2K")[2]).splitlines()
    return [line.strip("│ ").rstrip() for line in lines if line.strip()]


def test_a_terminal_gets_a_panel_for_each_run() -> None:
    console, out = terminal()
    run(console, 25)
    lines = last_frame(out.getvalue())
    assert len(lines) == 2 * 6
    for label, panel in zip(("ho_sfl", "[frozen]"), (lines[:6], lines[6:]), strict=True):
        assert panel[0].startswith(f"╭─ {label} ─")
        assert panel[1].startswith("round 25/25") and panel[1].endswith("0:00:00 left")
        assert panel[2] == "loss 0.250   accuracy 0.500"
        assert panel[3] == "up 25.0 KiB   down 25.0 KiB"
        assert panel[4] == "clients 0 in, 0 out   1 replies lost so far"
    assert ": round" not in out.getvalue()  # no lines beside them


def test_what_a_panel_says_of_a_round() -> None:
    """Rounds of 2 s, of which 98 are left."""
    console, out = terminal(80)
    with RunProgress(console) as progress:
        progress.start("digits", 100)
        progress(RoundRecord(0, 0, 0, 0.0, None, {"accuracy": 0.125}))
        progress(RoundRecord(1, 0, 0, 2.0, 2.5, {}, 2048, 512, 5, client_peak_bytes=3072))
        progress(RoundRecord(2, 0, 0, 4.0, 1.5, {}, 4096, 1024, 3, 1, 1, client_peak_bytes=3072))
    lines = last_frame(out.getvalue())
    assert lines[1].startswith("round 2/100") and lines[1].endswith("0:03:16 left")
    assert lines[2:5] == [
        "loss 1.500   accuracy 0.125",
        "up 4.0 KiB   down 1.0 KiB   client memory 3.0 KiB",
        "clients 3 in, 2 out   2 replies lost so far",
    ]


def test_a_panel_before_the_first_round_and_on_a_narrow_terminal() -> None:
    console, out = terminal(40)
    with RunProgress(console) as progress:
        progress.start("a [name] in brackets", 7)
    lines = last_frame(out.getvalue())
    assert len(lines) == 3 and lines[1].startswith("round 0/7")
    assert "a [name] in brackets" in lines[0]
    assert all(len(line) <= 40 for line in lines)


def test_time_left_is_that_of_the_last_rounds() -> None:
    """The first ones were slow: 20 rounds of 1 s say what the 60 that are left take."""
    run = Shown("x", 100)
    for number in range(41):
        run.add(record_at(number, 10.0 * min(number, 20) + max(0, number - 20)), "accuracy")
    assert run.seconds_left == 60.0
    run.add(record_at(20, 200.0), "accuracy")  # it was resumed there
    assert run.seconds_left is None


def record_at(number: int, seconds: float) -> RoundRecord:
    return RoundRecord(number, 0, 0, seconds)


def test_what_was_lost_is_counted_anew_where_a_run_is_told_anew() -> None:
    run = Shown("x", 100)
    for number in (1, 2, 1, 2):  # a history that is read from its beginning again
        run.add(RoundRecord(number, 1, 1, 1.0, failures=1), "accuracy")
    assert run.lost == 2
