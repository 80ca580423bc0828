"""Who may import whom: the layers of the package, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sfl_flower"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))

# Flower's public names; everything else in flwr moves between releases.
PUBLIC_FLOWER = (
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
)
PRIVATE_FLOWER_ALLOWED = {"sfl_flower/_compat.py"}

# layer -> what it must not import, from the ground up
FORBIDDEN = {
    "sfl_flower/split": ("flwr", "sfl_flower.zo", "sfl_flower.wire", "sfl_flower.clients",
                         "sfl_flower.strategies", "sfl_flower.app", "sfl_flower.cli",
                         "sfl_flower.tasks", "sfl_flower.report"),
    "sfl_flower/zo": ("flwr", "sfl_flower.split", "sfl_flower.wire", "sfl_flower.clients",
                      "sfl_flower.strategies", "sfl_flower.app", "sfl_flower.cli",
                      "sfl_flower.tasks", "sfl_flower.report"),
    "sfl_flower/wire": ("sfl_flower.clients", "sfl_flower.strategies", "sfl_flower.app",
                        "sfl_flower.cli", "sfl_flower.tasks", "sfl_flower.report"),
    "sfl_flower/clients": ("sfl_flower.strategies", "sfl_flower.app", "sfl_flower.cli",
                           "sfl_flower.tasks", "sfl_flower.report"),
    "sfl_flower/strategies": ("sfl_flower.clients", "sfl_flower.app", "sfl_flower.cli",
                              "sfl_flower.tasks"),
    "sfl_flower/errors.py": ("flwr", "torch", "numpy", "sfl_flower"),
}  # fmt: skip


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(source: str, path: str) -> set[str]:
    """Return every module that a source file imports, anywhere in it, by absolute name."""
    package = list(Path(path).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.add(origin)
            # `from sfl_flower import wire` names a module too.
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return found


def offences(source: str, path: str) -> list[str]:
    """Return what a file imports against the layers."""
    found = imports(source, path)
    wrong = [
        f"{path} imports {name}"
        for layer, banned in FORBIDDEN.items()
        if path == layer or path.startswith(layer + "/")
        for name in sorted(found)
        if any(_within(name, other) for other in banned)
    ]
    if path not in PRIVATE_FLOWER_ALLOWED:
        wrong += [
            f"{path} imports {name}, which Flower does not promise to keep"
            for name in sorted(found)
            if _within(name, "flwr")
            and name != "flwr"
            and not any(_within(name, public) for public in PUBLIC_FLOWER)
            and name not in {"flwr.__version__"}
        ]
    return wrong


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_to_its_layer(module: Path) -> None:
    path = module.relative_to(ROOT).as_posix()
    assert offences(module.read_text(encoding="utf-8"), path) == []


def test_every_layer_is_there() -> None:
    assert MODULES
    assert [layer for layer in FORBIDDEN if not (ROOT / layer).exists()] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sfl_flower/zo/a.py", "import flwr"),
        ("sfl_flower/zo/a.py", "def f():\n    from flwr.app import Message"),
        ("sfl_flower/split/a.py", "from sfl_flower import wire"),
        ("sfl_flower/clients/a.py", "from ..strategies.ho_sfl import HoSfl"),
        ("sfl_flower/clients/a.py", "from .. import strategies"),
        ("sfl_flower/strategies/a.py", "import sfl_flower.clients.ho_sfl as c"),
        ("sfl_flower/app.py", "from flwr.common import serde"),
        ("sfl_flower/app.py", "import flwr.server"),
        ("sfl_flower/app.py", "from flwr import supercore"),
    ],
)
def test_an_offence_is_found(path: str, source: str) -> None:
    assert offences(source, path) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sfl_flower/zo/a.py", "import torch\nfrom sfl_flower.errors import ConfigError"),
        ("sfl_flower/clients/a.py", "from ..wire.messages import Forward\nimport flwr.clientapp"),
        ("sfl_flower/strategies/a.py", "from flwr.serverapp.strategy import Strategy"),
        ("sfl_flower/_compat.py", "from flwr.common import serde"),
        ("sfl_flower/app.py", "from flwr import __version__"),
    ],
)
def test_a_legal_import_passes(path: str, source: str) -> None:
    assert offences(source, path) == []
