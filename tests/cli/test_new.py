"""`sfl new`: what it writes runs, passes its own tests and can be published; what it refuses."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from sfl_flower.cli.main import main, parser
from sfl_flower.cli.new import TEMPLATES, write_app
from sfl_flower.errors import ConfigError
from sfl_flower.report import RunDirectory
from tests.hub import hub_offences

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    ".gitignore", "LICENSE", "README.md", "pyproject.toml", "tests/test_app.py",
    "tests/test_data.py", *(f"flower_shop/{name}.py" for name in (
        "__init__", "client_app", "data", "model", "server_app", "task",
    )),
}  # fmt: skip
MORE = {"deployment": {"DEPLOYMENT.md", "deployment/config.toml", "tests/test_task.py"}}


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def python(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own, with this checkout's package."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def held(app: Path) -> set[str]:
    return {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}


def test_an_app_is_whole_and_has_its_own_name(tmp_path: Path, template: str) -> None:
    app = write_app("flower-shop", template, tmp_path)
    assert app == tmp_path / "flower-shop"
    assert held(app) == FILES | MORE.get(template, set())
    text = "".join((app / name).read_text(encoding="utf-8") for name in held(app))
    left = [word for word in ("my_app", "MY_APP", "my-app", "THE_") if word in text]
    assert left == []
    project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "flower-shop"
    assert project["tool"]["flwr"]["app"]["flwr-version-target"] == version("flwr")
    (entry,) = project["tool"]["uv"]["dependency-metadata"]  # or Flower installs torch again
    assert entry == {
        "name": "flower-shop", "version": project["project"]["version"], "requires-dist": [],
    }  # fmt: skip


def test_an_app_passes_its_own_tests(tmp_path: Path, template: str) -> None:
    app = write_app("flower-shop", template, tmp_path)
    done = python("pytest", "-q", "-p", "no:cacheprovider", cwd=app)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_the_commands_on_the_pages_of_an_app_are_understood(tmp_path: Path, template: str) -> None:
    app = write_app("flower-shop", template, tmp_path)
    text = "".join(path.read_text(encoding="utf-8") for path in app.glob("*.md"))
    commands = re.findall(r"^sfl (.*)", text.replace("\\\n", ""), flags=re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        parser().parse_args(shlex.split(command, comments=True))
    assert "flower_shop.task:task" in text and (app / "flower_shop" / "task.py").is_file()


def test_the_command_that_trains_without_flower_trains(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_app(f"shop-{template}", template, tmp_path)
    text = (app / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = re.findall(r"^sfl (run .*)", text, flags=re.MULTILINE)
    monkeypatch.chdir(app)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main([*shlex.split(line), "--rounds", "1", "--out", str(tmp_path / "run")]) == 0
    assert RunDirectory(tmp_path / "run").finished


def test_the_tests_of_an_app_find_what_is_wrong(tmp_path: Path) -> None:
    app = write_app("flower-shop", "table", tmp_path)
    task = app / "flower_shop" / "task.py"
    text = task.read_text(encoding="utf-8")
    task.write_text(text.replace('cut="tanh1"', 'cut="tanh9"'), encoding="utf-8")
    done = python("pytest", "-q", "-p", "no:cacheprovider", "-k", "fit_each_other", cwd=app)
    assert done.returncode == 1
    assert "tanh9" in done.stdout and "tanh1" in done.stdout  # the wrong one, and a legal one


@pytest.mark.flower
def test_an_app_may_be_published(tmp_path: Path, template: str) -> None:
    assert hub_offences(write_app("flower-shop", template, tmp_path)) == []


@pytest.mark.flower
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('license = { file = "LICENSE" }', 'license = "MIT"', "license"),
        ("flwr[simulation]>=1.26.1,<2", "flwr[simulation]<2", "from a version on"),
        ('"flwr[simulation]>=1.26.1,<2",', "", "from a version on"),
        ("flwr[simulation]>=1.26.1,<2", "flwr>=1.9999,<2", "version-target"),
        ("fab-format-version = 1", "", "fab-format-version"),
        ('name = "flower-shop"', 'name = "flower_shop"', "the project is 'flower_shop'"),
        ("server_app:app", "serverapp:app", "flower_shop.serverapp"),
        ('publisher = "me"', 'publisher = ""', "publisher"),
    ],
)
def test_what_keeps_an_app_from_being_published_is_found(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    app = write_app("flower-shop", "table", tmp_path)
    project = app / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    assert old in text
    project.write_text(text.replace(old, new), encoding="utf-8")
    assert said in " ".join(hub_offences(app))


@pytest.mark.flower
def test_files_that_the_hub_would_leave_out_are_found(tmp_path: Path) -> None:
    app = write_app("flower-shop", "table", tmp_path)
    (app / "rows.csv").write_text("1,2\n")
    (app / "README.md").unlink()
    assert len(hub_offences(app)) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_app", "letters, digits and hyphens"),
        ("9lives", "a letter first"),
        ("a-", "no hyphen last"),
        ("", "letters"),
        ("../up", "letters"),
        ("a" * 33, "at most 32"),
        ("größe", "letters"),
        ("json", "Python's own"),
        ("class", "Python's own"),
        ("torch", "installed"),
        ("sfl-flower", "installed"),
        ("tests", "take another, such as my-tests"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", name]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.count(". ") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    there = tmp_path / "flower-shop"
    if kind == "file":
        there.write_text("mine")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists; give the app another name"):
        write_app("flower-shop", parent=tmp_path)
    assert held(tmp_path) == ({"flower-shop"} if kind == "file" else set())


def test_where_nothing_can_be_written_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_app("flower-shop", parent=tmp_path / "file")


def test_it_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "flower-shop", "--template", "deployment"]) == 0
    shown = capsys.readouterr().out
    words = ("cd flower-shop", "pytest", "flwr run .", "flower_shop/model.py", "DEPLOYMENT.md")
    assert [each for each in words if each not in shown] == []


def test_the_help_fits_a_screen_and_has_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["new", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "Example: sfl new flower-shop --template text" in lines
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in TEMPLATES)


def test_templates_are_in_the_format_of_an_app_of_its_own(tmp_path: Path, template: str) -> None:
    """Imports of the app's own package stand last, as its author's ruff would have them."""
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("needs ruff")
    app = write_app("flower-shop", template, tmp_path)
    for command in (["check", "--select", "E,F,I,B,UP"], ["format", "--check"]):
        done = python("ruff", *command, "--isolated", "--line-length", "100", ".", cwd=app)
        assert done.returncode == 0, done.stdout


def test_the_licence_is_that_of_the_project() -> None:
    licence = ROOT / "sfl_flower" / "templates" / "shared" / "LICENSE"
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()
