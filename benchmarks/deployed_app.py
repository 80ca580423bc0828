"""The app of `benchmarks.deployed`: the package's own, which notes when what happens.

Flower's processes import this module, one of them with every message, so what a client needs comes
in after the time is taken.  Notes are lines of JSON in the folder that ``SFL_NOTES`` names; clocks
are the machine's, so those of several processes can be held against each other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ENTERED = time.time()
"""When Flower's program began to import the app."""

from flwr.app import Context, Message  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from sfl_flower.run.client_app import make_client_app  # noqa: E402
from sfl_flower.run.run_config import read_run_config, task_from_context  # noqa: E402

IMPORTED = time.time()
"""When it had."""

__all__ = ["client_app", "note", "server_app", "spent"]


def note(kind: str, **values: Any) -> None:
    """Add a line to the notes of a kind."""
    with (Path(os.environ["SFL_NOTES"]) / f"{kind}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def spent(pid: int) -> float:
    """Return the processor seconds of a process, to 10 ms."""
    return sum(map(int, _stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


def process_began() -> float:
    """Return when this process was made, from the kernel's own count, to 10 ms."""
    ticks = int(_stat(os.getpid())[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the kernel's numbers of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _noted(message: Message, context: Context, call: Any) -> Message:
    """Note when a message is handled, as a client mod."""
    handling = time.time()
    reply: Message = call(message, context)
    note(
        "client",
        message=message.metadata.message_id,
        began=process_began(),
        entered=ENTERED,
        imported=IMPORTED,
        handling=handling,
        handled=time.time(),
    )
    return reply


class _NotedGrid(Grid):
    """Another grid; notes when a request leaves and when its reply is there."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        began = time.time()
        ids = list(self._grid.push_messages(messages))
        for identifier in ids:
            note("pushed", message=identifier, at=began, took=time.time() - began)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        began, found = time.time(), list(self._grid.pull_messages(message_ids))
        now = time.time()
        note("looked", at=began)
        for message in found:
            note("pulled", message=message.metadata.reply_to_message_id, at=now, took=now - began)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


client_app = make_client_app(task_from_context, mods=[_noted])
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train as the run configuration says, and note when rounds end."""
    from sfl_flower.report import RoundRecord  # a client needs neither
    from sfl_flower.run.run import Plan, execute

    superlink = int((Path(os.environ["SFL_NOTES"]) / "superlink").read_text())

    def on_round(record: RoundRecord) -> None:
        note("round", round=record.round, at=time.time(), superlink=spent(superlink))

    plan = Plan.read(read_run_config(context.run_config))
    execute(_NotedGrid(grid), task_from_context(context), plan, on_round)
