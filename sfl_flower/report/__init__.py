"""What a run leaves behind and what a person sees of it: history, files, plots, tables."""

from __future__ import annotations

from sfl_flower.report.comparison import CEILING, CONTROL, Comparison, Row, assemble, make_row
from sfl_flower.report.comparison_files import (
    markdown_comparison,
    print_comparison,
    write_comparison,
)
from sfl_flower.report.finished import FinishedRun
from sfl_flower.report.history import History, RoundRecord
from sfl_flower.report.plots import accuracy_plot
from sfl_flower.report.progress import RunProgress
from sfl_flower.report.run_directory import RunDirectory
from sfl_flower.report.table import CATEGORIES, Summary, markdown_tables, print_tables, rich_tables

__all__ = [
    "CATEGORIES",
    "CEILING",
    "CONTROL",
    "Comparison",
    "FinishedRun",
    "History",
    "RoundRecord",
    "Row",
    "RunDirectory",
    "RunProgress",
    "Summary",
    "accuracy_plot",
    "assemble",
    "make_row",
    "markdown_comparison",
    "markdown_tables",
    "print_comparison",
    "print_tables",
    "rich_tables",
    "write_comparison",
]
