"""What is handed out: the source distribution is a checkout, and its page stands on its own."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from email import message_from_string
from email.message import Message
from pathlib import Path

import lazy_loader  # type: ignore[import-untyped]
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {".gitignore"}
"""Files of the repository that the distribution has in another form, or not at all."""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution from what git tracks, and unpack it."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def metadata(sdist: Path) -> Message:
    return message_from_string((sdist / "PKG-INFO").read_text(encoding="utf-8"))


def test_a14_the_source_distribution_is_a_whole_checkout(sdist: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    held = {p.relative_to(sdist).as_posix() for p in sdist.rglob("*") if p.is_file()}
    assert tracked - held - LEFT_OUT == set()
    # Without it uv would install the package and nothing it needs.
    assert (sdist / "uv.toml").read_bytes() == (ROOT / "uv.toml").read_bytes()
    assert {"Makefile", "scripts/install.sh", "constraints.txt"} <= held
    # What stands beside the checkout of whoever builds it does not get in.
    assert not [name for name in held if name.startswith((".venv", "runs/", ".git/"))]
    assert (sdist / "scripts" / "install.sh").stat().st_mode & 0o100


def test_a14_the_distribution_says_what_it_needs_and_who_made_it(metadata: Message) -> None:
    needs = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    assert {re.split(r"[\[<>=,]", entry)[0] for entry in needs} >= {"flwr", "torch", "numpy"}
    assert metadata["Author"]


def test_a14_links_of_the_long_description_work_anywhere(metadata: Message) -> None:
    text = str(metadata.get_payload())
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    assert "forward" in text


def test_the_citation_is_of_this_package_and_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert [author["name"] for author in cited["authors"]] == [
        author["name"] for author in project["authors"]
    ]
    assert {"cff-version", "message", "title", "abstract"} <= cited.keys()


PACKAGES = ["sfl_flower", "sfl_flower.split", "sfl_flower.wire", "sfl_flower.zo"]


@pytest.mark.parametrize("package", PACKAGES)
def test_names_of_a_package_are_those_that_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    _, _, stub = lazy_loader.attach_stub(package, str(module.__file__))
    assert sorted(module.__all__) == sorted(stub)
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_bundle_that_flwr_run_sends_can_be_imported(tmp_path: Path) -> None:
    """Flower bundles what `fab-include` names, of the kinds of files that it allows."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    for pattern in table["fab-include"]:
        assert Path(pattern).suffix in (".py", ".toml"), pattern
        for file in ROOT.glob(pattern):
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    apps = [reference.partition(":")[0] for reference in table["components"].values()]
    names = "".join(f"import {name}\nfrom {name} import *\n" for name in PACKAGES)
    code = names + "".join(f"import {app}\n" for app in apps) + "print(sfl_flower.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "sfl_flower" / "__init__.py")
