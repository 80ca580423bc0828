"""What a run leaves behind and what a person sees of it: history, files, plots, tables."""

from __future__ import annotations

from sfl_flower.report.history import History, RoundRecord
from sfl_flower.report.plots import accuracy_plot
from sfl_flower.report.progress import RunProgress
from sfl_flower.report.run_directory import RunDirectory
from sfl_flower.report.table import CATEGORIES, Summary, print_tables, rich_tables

__all__ = [
    "CATEGORIES",
    "History",
    "RoundRecord",
    "RunDirectory",
    "RunProgress",
    "Summary",
    "accuracy_plot",
    "print_tables",
    "rich_tables",
]
