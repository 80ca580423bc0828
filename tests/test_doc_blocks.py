"""The Python blocks of pages run as they are printed, one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("page", ["tasks.md", "cutting.md", "extending.md"])
def test_a19_every_python_block_of_the_page_runs(page: str) -> None:
    if page == "cutting.md":
        pytest.importorskip("transformers")
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, Any] = {"__name__": page}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"<{page}, block {number}>", "exec"), names)
    if page == "tasks.md":
        names["task"].check()
