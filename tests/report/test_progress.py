from __future__ import annotations

import io
import math

from rich.console import Console

from sfl_flower.report import RoundRecord, RunProgress


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


def test_a_bar_that_is_not_kept_becomes_a_line() -> None:
    out = io.StringIO()
    with RunProgress(
        Console(file=out, force_terminal=True, width=110, color_system=None), keep=False
    ) as progress:
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


def test_a_terminal_gets_a_bar_for_each_run() -> None:
    out = io.StringIO()
    run(Console(file=out, force_terminal=True, width=110, color_system=None), 25)
    final = [line for line in out.getvalue().splitlines() if "━" in line][-2:]
    for label, line in zip(("ho_sfl", "[frozen]"), final, strict=True):
        assert label in line
        assert "25/25 accuracy 0.500" in line
    assert "round 3/25" not in out.getvalue()
