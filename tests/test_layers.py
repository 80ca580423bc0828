"""Who may import whom: every module stands on a floor, and imports from lower floors only."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts" / "structure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


structure = _structure()
MODULES = dict(structure.modules(ROOT))
PLACES = [name for floor in structure.FLOORS for name in floor if name != "__init__"]

# Flower's public names; everything else in flwr moves between releases.
PUBLIC_FLOWER = (
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
)
PRIVATE_FLOWER_ALLOWED = {"sfl_flower/wire/flower.py"}
WITHOUT_FLOWER = ("data", "errors", "privacy", "split", "training", "zo")


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def flower_offences(source: str, path: str) -> list[str]:
    """Return what a file imports of Flower that it must not."""
    found = {n for n in structure.imports(source, path) if _within(n, "flwr")}
    if structure.place(structure.module_name(path)) in WITHOUT_FLOWER:
        return [f"{path} imports {name}" for name in sorted(found)]
    if path in PRIVATE_FLOWER_ALLOWED:
        return []
    return [
        f"{path} imports {name}, which Flower does not promise to keep"
        for name in sorted(found)
        if name not in ("flwr", "flwr.__version__")
        and not any(_within(name, public) for public in PUBLIC_FLOWER)
    ]


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_from_lower_floors_only(path: str) -> None:
    assert structure.offences(MODULES[path], path) == []
    assert flower_offences(MODULES[path], path) == []


def test_every_place_of_the_plan_is_there() -> None:
    names = {structure.place(structure.module_name(path)) for path in MODULES}
    assert names == {*PLACES, "__init__"}


@pytest.mark.parametrize("upper", PLACES)
@pytest.mark.parametrize("lower", PLACES)
def test_b1_every_upward_import_is_an_offence(lower: str, upper: str) -> None:
    path = f"sfl_flower/{lower}.py" if lower == "errors" else f"sfl_flower/{lower}/a.py"
    wrong = structure.floor_of(upper) >= structure.floor_of(lower) and upper != lower
    for source in (
        f"from sfl_flower.{upper} import x",
        f"import sfl_flower.{upper}.y",
        f"from sfl_flower import {upper}",
        f"def f():\n    from sfl_flower.{upper}.y import z",
        f"LATER = 'sfl_flower.{upper}.y:z'",
    ):
        assert bool(structure.offences(source, path)) == wrong, source


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sfl_flower/new.py", ""),
        ("sfl_flower/room/a.py", "import torch"),
        ("sfl_flower/clients/a.py", "from ..strategies.ho_sfl import HOSFL"),
        ("sfl_flower/split/graph/a.py", "from sfl_flower.split.cutting import cut"),
        ("sfl_flower/split/graph/a.py", "from sfl_flower.split import cut"),
        ("sfl_flower/split/parameters/a.py", "from sfl_flower.split.graph.half import Half"),
        ("sfl_flower/split/checks/a.py", "import sfl_flower.split.transformers.blocks"),
    ],
)
def test_an_offence_is_found(path: str, source: str) -> None:
    assert structure.offences(source, path) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sfl_flower/zo/a.py", "import flwr"),
        ("sfl_flower/split/a.py", "def f():\n    from flwr.app import Message"),
        ("sfl_flower/run/app.py", "from flwr.common import serde"),
        ("sfl_flower/run/app.py", "import flwr.server"),
        ("sfl_flower/run/app.py", "from flwr import supercore"),
    ],
)
def test_an_offence_against_flower_is_found(path: str, source: str) -> None:
    assert flower_offences(source, path) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sfl_flower/zo/a.py", "import torch\nfrom sfl_flower.errors import ConfigError"),
        ("sfl_flower/clients/a.py", "from ..wire.common import Setup\nimport flwr.clientapp"),
        ("sfl_flower/strategies/a.py", "from flwr.serverapp.strategy import Strategy"),
        ("sfl_flower/wire/flower.py", "from flwr.common import serde"),
        ("sfl_flower/run/app.py", "from flwr import __version__"),
        ("sfl_flower/split/cutting.py", "from sfl_flower.split.graph.half import Half"),
    ],
)
def test_a_legal_import_passes(path: str, source: str) -> None:
    assert structure.offences(source, path) == []
    assert flower_offences(source, path) == []


def test_the_house_stays_as_small_as_planned() -> None:
    found = structure.measure(ROOT)
    assert found["rooms"] <= 26
    assert found["floors"] <= 11
    assert found["arrows_up"] == 0
    assert found["top_level_modules"] <= 5
