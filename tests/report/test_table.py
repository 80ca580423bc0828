from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from sfl_flower.report import CATEGORIES, Summary, print_tables
from sfl_flower.report.table import human_bytes, markdown_part, narrow, print_all, rich_part

HO = Summary(
    "ho_sfl",
    {"accuracy": 0.91234, "loss": 0.3},
    samples=12800,
    ledger={"smashed": {"up": 3 * 2**20, "down": 0}, "scalars": {"up": 160, "down": 2048}},
    exchanges=800,
    client_peak_bytes=1536,
    seconds=12.34,
)
FROZEN = Summary("frozen_client", {}, samples=12800, ledger={"smashed": {"up": 2**20, "down": 0}})


def printed(summaries: list[Summary], metric: str = "accuracy") -> str:
    out = io.StringIO()
    print_tables(summaries, metric, console=Console(file=out, width=100))
    return out.getvalue()


def rows(text: str) -> list[list[str]]:
    """Return the cells of each line of a table."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "–"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (3 * 2**20, "3.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_bytes_for_people(count: int | None, text: str) -> None:
    assert human_bytes(count) == text


def test_the_tables_have_every_number() -> None:
    lines = rows(printed([HO, FROZEN]))
    for line in (
        ["method", "accuracy", "samples", "up", "down", "exchanges", "client peak", "seconds"],
        ["ho_sfl", "0.9123", "12,800", "3.0 MiB", "2.0 KiB", "800", "1.5 KiB", "12.3"],
        ["frozen_client", "–", "12,800", "1.0 MiB", "–", "–", "–", "0.0"],
        ["bytes", "ho_sfl", "frozen_client"],
    ):
        assert line in lines
    assert lines[-5:] == [
        ["smashed up", "3.0 MiB", "1.0 MiB"],
        ["scalars up", "160 B", "–"],
        ["scalars down", "2.0 KiB", "–"],
        ["total up", "3.0 MiB", "1.0 MiB"],
        ["total down", "2.0 KiB", "–"],
    ]


def test_a_table_as_markdown() -> None:
    part = ("Bytes", ["bytes", "a"], [["smashed up", "3 B"]])
    assert markdown_part(part) == (
        "**Bytes**\n\n| bytes | a |\n| :-- | --: |\n| smashed up | 3 B |\n"
    )


def test_the_metric_can_be_chosen() -> None:
    assert ["ho_sfl", "0.3000"] in [line[:2] for line in rows(printed([HO], "loss"))]


def test_a_category_outside_the_known_ones_is_shown_not_hidden() -> None:
    odd = Summary("x", {}, 1, {"other": {"up": 5, "down": 0}})
    assert ["other up", "5 B"] in rows(printed([odd]))


def test_large_numbers_and_many_methods_fit_100_columns() -> None:
    ledger = {name: {"up": 1010 * 2**20, "down": 1010 * 2**10} for name in CATEGORIES}
    summaries = [
        Summary(f"method_name_{i:02}", {"accuracy": 1.0}, 10**8, ledger, 10**7, 1010 * 2**20, 9e4)
        for i in range(7)
    ]
    text = printed(summaries)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for summary in summaries:
        assert text.count(summary.method) == 2
    results = [line for line in text.splitlines() if "100,000,000" in line]
    assert len(results) == 7
    assert all(line.split()[0].startswith("method_name_") for line in results)


def test_a_name_with_brackets_is_not_markup() -> None:
    assert "[red]x" in printed([Summary("[red]x", {}, 1)])


def test_a19_wide_tables_go_on_below_with_their_first_column() -> None:
    rows = [["layer1.0", *("x" * 12 for _ in range(8))], ["fc", *("y" for _ in range(8))]]
    part = ("Title", ["cut", *(f"column {i}" for i in range(8))], rows)
    pieces = narrow(part, 80)
    assert [piece[0] for piece in pieces] == ["Title", ""]
    assert [name for piece in pieces for name in piece[1][1:]] == part[1][1:]
    assert all(piece[2][1][0] == "fc" for piece in pieces)
    console = Console(width=200, file=io.StringIO())
    print_all([rich_part(piece) for piece in pieces], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert narrow(part, 500) == [part]
