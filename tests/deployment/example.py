"""What `examples/deployment` starts: the commands in its files, with names and places of a test."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.deployment.federation import REPOSITORY, free_ports, listening, program, wait_for

EXAMPLE = REPOSITORY / "examples" / "deployment"
UNITS = EXAMPLE / "systemd"
NODES = 3
CLIENT_HALF_BYTES = 4 * 520
"""Of the weights of the digits' client half."""
PROGRAMS = ("sfl", "flower-superlink", "flower-supernode", "python")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _load("certificates")


def certificates(*arguments: str) -> int:
    """Run `certificates.py`; returns its exit status."""
    status: int = SCRIPT.main(arguments)
    return status


@dataclass(frozen=True)
class Command:
    """A command of the example, and the environment that it names."""

    arguments: list[str]
    environment: dict[str, str]

    def option(self, name: str) -> str:
        """Return the value of an option."""
        (found,) = [each for each in self.arguments if each.startswith(f"{name}=")]
        return found.partition("=")[2]

    def at(self, places: dict[str, str], ports: dict[str, int]) -> Command:
        """Return the command with other folders, and on other ports of this machine.

        Parameters
        ----------
        places : dict of str to str
            What to write for the beginning of a path, an address or a program.
        ports : dict of str to int
            The port of its own, ``--port``, and that of the SuperLink, ``--superlink``.
        """
        given = [f"--port={ports['--port']}", "--host=127.0.0.1"]
        if "--superlink" in ports:
            given.append(f"--superlink=localhost:{ports['--superlink']}")
        names = tuple(each.partition("=")[0] + "=" for each in given)
        kept = [_moved(each, places) for each in self.arguments if not each.startswith(names)]
        kept = [program(each) if each in PROGRAMS else each for each in kept]
        environment = {name: _moved(value, places) for name, value in self.environment.items()}
        environment.pop("PATH", None)  # that of the tests has the programs
        return Command([*kept, *given], environment)


def _moved(text: str, places: dict[str, str]) -> str:
    option, equals, path = text.rpartition("=")
    for old, new in places.items():
        if path == old or path.startswith(f"{old}/"):
            return option + equals + new + path.removeprefix(old)
    return text


def compose() -> dict[str, Any]:
    """Return the compose file, with the defaults of its variables."""
    text = (EXAMPLE / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)))


def service(name: str) -> Command:
    """Return what a service of the compose file runs."""
    found = compose()["services"][name]
    return Command([*found["entrypoint"], *found["command"]], dict(found["environment"]))


def mounts(name: str) -> dict[str, str]:
    """Return what a service sees of the example's folder, by where it sees it."""
    pairs = [each.split(":")[:2] for each in compose()["services"][name]["volumes"]]
    return {there: here for here, there in pairs}


def unit(name: str, instance: str = "") -> dict[str, list[str]]:
    """Return the settings of a unit file, each with its values in order.

    Parameters
    ----------
    name : str
        The file.
    instance : str
        What stands after the @.
    """
    text = (UNITS / name).read_text(encoding="utf-8").replace("\\\n", " ").replace("%i", instance)
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#[;":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def unit_command(name: str, instance: str = "", key: str = "ExecStart") -> Command:
    """Return what a unit runs."""
    settings = unit(name, instance)
    environment = dict(each.split("=", 1) for each in settings["Environment"])
    (line,) = settings[key]
    for variable, value in environment.items():
        line = line.replace(f"${{{variable}}}", value)
    first, *rest = shlex.split(line)
    return Command([Path(first).name, *rest], environment)


@dataclass
class Deployment:
    """The example on localhost: its secrets and states below one folder."""

    start: Callable[..., subprocess.Popen[str]]
    folder: Path
    port: int
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def run(self, name: str, command: Command) -> None:
        """Start a command of the example."""
        self.running[name] = self.start(
            *command.arguments,
            name=name,
            cwd=self.folder,
            # Flower's own settings are those of the tests.
            env={**os.environ, **command.environment, "HOME": os.environ["HOME"],
                 "FLWR_HOME": os.environ["FLWR_HOME"]},
        )  # fmt: skip

    def superlink(self, command: Command, places: dict[str, str]) -> None:
        self.run("superlink", command.at(places, {"--port": self.port}))
        wait_for("the SuperLink", lambda: listening(self.port))

    def supernode(self, node: int, command: Command, places: dict[str, str]) -> None:
        (port,) = free_ports(1)
        ports = {"--port": port, "--superlink": self.port}
        self.run(f"node-{node}", command.at(places, ports))
        wait_for(f"SuperNode {node}", lambda: listening(port))

    def contained(self, name: str) -> dict[str, str]:
        """Return where things are that a container sees, and make its state."""
        seen = {there: str(self.folder / here) for there, here in mounts(name).items()}
        Path(seen["/state"]).mkdir(mode=0o700, parents=True, exist_ok=True)
        return seen

    def installed(self, name: str) -> dict[str, str]:
        """Return where things are that a unit names; its state is that of the container."""
        return {
            "/etc/sfl_flower": str(self.folder / "secrets"),
            f"/var/lib/sfl_flower/{name}": str(self.folder / "state" / name),
        }
