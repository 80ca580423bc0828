"""A run as others read it: a page of its figures, and its model as a folder of files."""

from __future__ import annotations

from sfl_flower.reporting.page import report_page, write_report

__all__ = ["report_page", "write_report"]
