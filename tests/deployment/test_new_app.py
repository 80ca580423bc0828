"""`sfl new --template deployment`: the commands of its page train on a SuperLink and SuperNodes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sfl_flower.cli.new import write_app
from sfl_flower.report import RunDirectory
from tests.deployment.federation import (
    HTTP,
    flwr,
    free_ports,
    listening,
    program,
    statuses,
    wait_for,
)

pytestmark = pytest.mark.deployment

PORTS = ("8000", "9094", "9095")
"""Those of the page: of the SuperLink and of two SuperNodes."""


@pytest.mark.skipif(not HTTP, reason="the commands are for Flower 1.36 and later")
def test_the_commands_of_the_page_train(
    tmp_path: Path, flwr_home: Path, start_process: Callable[..., subprocess.Popen[str]]
) -> None:
    app = write_app("flower-shop", "deployment", tmp_path)
    ports = dict(zip(PORTS, free_ports(3), strict=True))

    def here(text: str) -> str:
        """Put ports of the test in, and the directory that the shell would put in."""
        text = re.sub(r"\b(8000|9094|9095)\b", lambda match: str(ports[match[0]]), text)
        return text.replace("$PWD", str(app))

    page = (app / "DEPLOYMENT.md").read_text(encoding="utf-8")
    text = "".join(re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(here(line), comments=True) for line in text.splitlines()]
    commands = [line for line in lines if line]
    assert [line[0] for line in commands] == [
        "flower-superlink", "export", "sfl", "sfl", "cat", "flwr", "flwr",
    ]  # fmt: skip
    superlink, export, *nodes, cat, run, ls = commands
    assert export[1].startswith("FLOWER_SHOP_DATA=")
    start_process(program(superlink[0]), *superlink[1:], name="superlink")
    wait_for("the SuperLink", lambda: listening(ports["8000"]))
    for number, command in enumerate(nodes):
        # `sfl` of this checkout.
        called = [sys.executable, "-m", "sfl_flower.cli.main", *command[1:]]
        start_process(*called, name=f"supernode-{number}")
    wait_for("the SuperNodes", lambda: all(listening(ports[port]) for port in PORTS[1:]))
    assert cat == ["cat", "deployment/config.toml", ">>", "~/.flwr/config.toml"]
    connection = (app / cat[1]).read_text(encoding="utf-8")
    (flwr_home / "config.toml").write_text(here(connection), encoding="utf-8")
    flwr(*run[1:], cwd=app)
    assert ls == ["flwr", "ls", "flower-shop", "--format", "json"]
    assert statuses(ls[2], cwd=app) == ["finished:completed"]
    found = RunDirectory(app / "runs" / "first")
    assert [record.replies for record in found.history] == [0, 2, 2, 2, 2, 2]
    assert found.config["partition"] == "local"
