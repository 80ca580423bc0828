"""`examples/from_quickstart`: a quickstart before and after; few lines differ, and both train."""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from sfl_flower.run.inline import InlineGrid
from sfl_flower.wire.flower import SUPERLINK, identity

pytestmark = pytest.mark.flower

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "from_quickstart"
MOST = 30


def files(app: Path) -> dict[str, list[str]]:
    return {
        path.relative_to(app).as_posix(): path.read_text(encoding="utf-8").splitlines()
        for path in sorted(app.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def changes() -> list[str]:
    """Return the lines of a unified diff of both apps, with one line of context."""
    before, after = files(EXAMPLE / "before"), files(EXAMPLE / "after")
    assert list(before) == list(after)
    return [
        line
        for name in before
        for line in difflib.unified_diff(before[name], after[name], name, name, n=1, lineterm="")
    ]


def test_few_lines_change() -> None:
    counted = [line for line in changes() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len(counted) <= MOST
    pages = (EXAMPLE / "README.md", ROOT / "README.md", ROOT / "docs" / "launching.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    said = re.findall(r"\*\*(\d+) lines\*\*|(\d+) changed lines|(\d+) lines differ", text)
    assert ["".join(number) for number in said] == [str(len(counted))] * len(pages)


def test_the_page_shows_what_changes() -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL)
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in changes()]


@pytest.fixture
def without_quickstart() -> Iterator[None]:
    """Both apps have a package of one name: no trace of one is left for the other."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        del sys.modules[name]


def load(which: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return both apps of one state, and the settings that it declares."""
    forget()
    sys.path.insert(0, str(EXAMPLE / which))
    table = tomllib.loads((EXAMPLE / which / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    references = (table["components"][name].split(":") for name in ("serverapp", "clientapp"))
    server, client = (getattr(import_module(module), name) for module, name in references)
    sys.path.remove(str(EXAMPLE / which))
    return server, client, table["config"]


def accuracy(server: Any, client: Any, config: dict[str, Any], text: Any) -> float:
    grid = InlineGrid(client, 2)
    for context in grid.contexts.values():
        context.run_config.update(config)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    with identity(1, SUPERLINK):
        server(grid, context)
    (found,) = re.findall(r"Accuracy: ([\d.]+)", text.readouterr().out)
    return float(found)


@pytest.mark.usefixtures("without_quickstart")
def test_both_learn_and_the_client_of_the_second_answers_the_first(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    averaging, _, settings = load("before")
    server, client, own = load("after")
    assert settings.items() <= own.items()  # nothing else has another value
    # Ten classes in equal shares: 0.1 is chance.
    assert accuracy(server, client, {**own, "num-server-rounds": 12}, capfd) > 0.3
    assert accuracy(averaging, client, {**settings, "num-server-rounds": 4}, capfd) > 0.3
