"""What is imported when: a client app loads what a client needs, a name when it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sfl_flower
from sfl_flower.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]


def loaded(code: str) -> set[str]:
    """Return the modules that a new process holds after some code."""
    script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(found.stdout.split())


def own(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "sfl_flower"}


def test_b5_a_client_app_imports_what_a_client_needs() -> None:
    modules = loaded("import sfl_flower.run.client_app")
    assert len(own(modules)) <= 70
    rooms = {name.split(".")[1] for name in own(modules) if "." in name}
    assert not rooms & {"cli", "comparison", "profiling", "report", "server", "strategies"}
    heavy = {"ray", "matplotlib", "pandas", "sklearn", "tensorboard", "torchvision", "datasets"}
    heavy |= {"sympy", "triton"}
    assert not modules & heavy


@pytest.mark.parametrize("name", METHODS)
def test_a_client_of_one_method_imports_nothing_of_the_server(name: str) -> None:
    actions = list(METHODS[name].handlers)
    modules = loaded(
        "from sfl_flower.methods import METHODS\n"
        f"for action in {actions}: METHODS['{name}'].handler(action)"
    )
    rooms = {part.split(".")[1] for part in own(modules) if "." in part}
    assert not rooms & {"cli", "comparison", "profiling", "report", "run", "server", "strategies"}


def test_the_package_gives_its_names_at_first_use() -> None:
    assert own(loaded("import sfl_flower")) == {"sfl_flower"}
    for name in sfl_flower.__all__:
        assert getattr(sfl_flower, name) is not None
    assert set(sfl_flower.__all__) <= set(dir(sfl_flower))
    with pytest.raises(AttributeError):
        _ = sfl_flower.nothing  # type: ignore[attr-defined]
