"""The run configuration of the app: declared keys, and how they are read."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.run import app
from sfl_flower.run.client_app import client_app
from sfl_flower.run.inline import InlineGrid
from sfl_flower.run.run_config import read_run_config, task_from_context

pytestmark = pytest.mark.flower

ROOT = Path(__file__).resolve().parents[2]
OF_THE_APP = {"options": "", "callbacks": "", "out": "", "resume": False, "clients": 0}
"""Keys that only the app has, and clients: as many as are online."""


def declared() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text()
    return dict(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


def test_every_shared_setting_is_declared_at_its_default() -> None:
    found = {key.replace("-", "_"): value for key, value in declared().items()}
    assert found == {**RunConfig().to_dict(), **OF_THE_APP}
    # An int where a float is meant could never be overridden with 0.5.
    assert all(type(found[k]) is type(v) for k, v in RunConfig().to_dict().items())


def test_options_are_of_the_method_and_the_task_and_win() -> None:
    text = "probes=8 client-lr=0.5 task.train-size=40 rounds=7"
    found = read_run_config({**declared(), "clients": 3, "options": text})
    config, _, settings, task = read_options(found)
    assert (config.rounds, config.clients) == (7, 3)
    assert settings.to_dict()["probes"] == 8
    assert settings.to_dict()["client_lr"] == 0.5
    assert task == {"train_size": "40"}
    assert not found.keys() & {"callbacks", "options", "out", "resume"}


@pytest.mark.parametrize("text", ["probes", "=3", "probes=8, mu"])
def test_options_that_are_no_pairs(text: str) -> None:
    with pytest.raises(ConfigError, match="takes pairs with spaces between them"):
        read_run_config({"options": text})


def test_an_open_quote_in_options() -> None:
    with pytest.raises(ConfigError, match="cannot be read: No closing quotation"):
        read_run_config({"options": "task.data-dir='a"})


def context(**run_config: Any) -> Context:
    return Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=run_config)


def test_a_client_finds_the_task_whatever_the_server_decides() -> None:
    found = task_from_context(context(task="digits", clients=0, sampled=5, rounds=1))
    assert found.name == "digits"
    assert task_from_context(context(task="digits", method="frozen")) is found


class Growing(InlineGrid):
    """A grid where nodes come online one by one, as in Flower's simulation."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(client_app, max(sizes))
        self.left: Iterator[int] = iter(sizes)
        self.last = 0

    def get_node_ids(self) -> list[int]:
        self.last = next(self.left, self.last)
        return self.nodes[: self.last]


def test_no_clients_named_takes_all_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_SETTLED_S", 0.05)
    monkeypatch.setattr(app, "_POLL_S", 0.001)
    plan = app._plan(Growing([0, 0, 1, 2, 4, 4]), {"clients": 0}, None, None)
    assert plan.config.clients == 4
    assert app._plan(Growing([1]), {"clients": 3}, None, None).config.clients == 3


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_POLL_S", 0.001)
    with pytest.raises(ConfigError, match=r"No client is online after 0\.01 s"):
        app._plan(Growing([0]), {"clients": 0, "join-timeout": 0.01}, None, None)


def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    grid = Growing([1])
    assert app._plan(grid, {"clients": 1}, None, None).out is None
    assert app._plan(grid, {"clients": 1, "out": "~/a"}, None, None).out == tmp_path / "a"
    with pytest.raises(ConfigError, match="out is 'runs/a'; it must be an absolute path"):
        app._plan(grid, {"clients": 1, "out": "runs/a"}, None, None)


def test_a_task_of_the_users_own_gives_its_name() -> None:
    assert (
        app._plan(Growing([1]), {"clients": 1, "task": "digits"}, "mine", None).config.task
        == "mine"
    )
