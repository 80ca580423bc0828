"""The `sfl new` command: a Flower app of one's own, ready to be run, tested and published."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from sfl_flower.errors import ConfigError

__all__ = ["TEMPLATES", "add_new", "write_app"]

_ROOT = Path(__file__).resolve().parents[1] / "templates"
_LONGEST = 32  # characters that Flower allows a name


class Template(NamedTuple):
    """A kind of app.

    Attributes
    ----------
    about : str
        What it is, for the help.
    description : str
        What its `pyproject.toml` says it is.
    options : str
        Settings of the run and of HO-SFL with which it learns.
    layers : tuple of str
        Folders of templates; a file of a later one takes the place of an earlier one's.
    """

    about: str
    description: str
    options: str
    layers: tuple[str, ...]


_TABLE = Template(
    "rows of numbers",
    "Split federated learning on a table, with clients that only run forwards.",
    "probes=8 client-lr=0.05 server-lr=0.05 server-steps=batch",
    ("shared", "table"),
)
TEMPLATES: Mapping[str, Template] = {
    "vision": Template(
        "images, on a convolutional net",
        "Split federated learning on images, with clients that only run forwards.",
        "probes=8 client-lr=0.02 server-lr=0.05 server-steps=batch",
        ("shared", "vision"),
    ),
    "text": Template(
        "sentences of a CSV file with labels",
        "Split federated learning on sentences, with clients that only run forwards.",
        "probes=8 client-lr=0.1 server-lr=0.05 server-steps=batch",
        ("shared", "text"),
    ),
    "table": _TABLE,
    "deployment": _TABLE._replace(
        about="a table on every node, with the commands for a network",
        options=f"{_TABLE.options} partition=local",
        layers=(*_TABLE.layers, "deployment"),
    ),
}
"""What `sfl new` can write, by name."""


def add_new(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    kinds = "\n".join(f"  {name:12}{each.about}" for name, each in TEMPLATES.items())
    new = commands.add_parser(
        "new",
        help="write a Flower app of your own to start from",
        description="Write a Flower app to start from into a new directory. It runs with\n"
        "'flwr run .', has tests of its own, and can be published on the Flower Hub.",
        epilog=f"templates:\n{kinds}\n\nThen: cd flower-shop && flwr run . --stream\n"
        "Example: sfl new flower-shop --template text",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    new.add_argument(
        "name", metavar="NAME", help="of the app and its directory: letters, digits and hyphens"
    )
    new.add_argument(
        "--template", choices=TEMPLATES, default="vision", help="what it learns from (vision)"
    )
    new.set_defaults(action=_new)


def _new(parsed: argparse.Namespace) -> None:
    app = write_app(parsed.name, parsed.template)
    package = parsed.name.replace("-", "_")
    network = ", DEPLOYMENT.md those of a network" if parsed.template == "deployment" else ""
    own = ", ".join(f"{package}/{file}.py" for file in ("model", "data"))
    lines = [
        f"Wrote {app}: an app that trains as it is.",
        "",
        f"  cd {app}",
        "  python -m pytest                    # its own tests",
        "  flwr run . --stream                 # trains in Flower's simulation",
        "  flwr ls                             # says how that ended",
        "",
        f"Then put in what is yours: {own}, and the cut in {package}/task.py.",
        f"README.md has the commands{network}.",
    ]
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def write_app(name: str, template: str = "vision", parent: Path | None = None) -> Path:
    """Write an app.

    Parameters
    ----------
    name : str
        Of the app and of its directory.
    template : str
        A key of `TEMPLATES`.
    parent : Path, optional
        Where the directory is made; the current directory when left out.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    ConfigError
        The name is none that Flower and Python take, something of this name is there, or it cannot
        be written.
    """
    package = _package(name)
    app = (parent or Path()) / name
    if app.exists() or app.is_symlink():
        raise ConfigError(f"{app} exists; give the app another name, or remove what is there.")
    chosen = TEMPLATES[template]
    words = {
        "my_app": package,
        "MY_APP": package.upper(),
        "my-app": name,
        "THE_DESCRIPTION": chosen.description,
        "THE_OPTIONS": chosen.options,
        "THE_SETTINGS": " ".join(f"--set {pair}" for pair in chosen.options.split()),
        'flwr-version-target = "1.26.1"': f'flwr-version-target = "{version("flwr")}"',
    }
    files = {_said(path, words): _said(text, words) for path, text in _texts(chosen.layers).items()}
    try:
        for path, text in files.items():
            (app / path).parent.mkdir(parents=True, exist_ok=True)
            (app / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The app cannot be written to {app}: {error}.") from error
    return app


def _package(name: str) -> str:
    """Return the name of the app's package, if that of the app is good for all that bear it."""
    package = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?", name) or len(name) > _LONGEST:
        raise ConfigError(
            f"NAME is '{name}'; it must be letters, digits and hyphens, at most {_LONGEST}, with a "
            "letter first and no hyphen last, as the Flower Hub asks: my-app."
        )
    spec = importlib.util.find_spec(package)
    # A folder without code is found too, but in nobody's way.
    installed = spec is not None and spec.origin is not None
    reserved = package in ("tests", *sys.stdlib_module_names) or keyword.iskeyword(package)
    if installed or reserved:
        raise ConfigError(
            f"NAME is '{name}', which is a name of Python's own or of a package that is installed; "
            f"take another, such as my-{name}."
        )
    return package


def _texts(layers: tuple[str, ...]) -> dict[str, str]:
    """Return the files of these folders, by their paths in the app."""
    found = {}
    for layer in layers:
        for path in sorted((_ROOT / layer).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                place = path.relative_to(_ROOT / layer).as_posix()
                # Kept without the dot, or it would rule over this package's own files.
                place = ".gitignore" if place == "gitignore" else place
                found[place] = path.read_text(encoding="utf-8")
    return found


def _said(text: str, words: Mapping[str, str]) -> str:
    """Return a text with the app's own words in it, in one pass."""
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], text)
