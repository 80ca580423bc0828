"""Requests are handed on when they are there, by whatever loop Flower has."""

from __future__ import annotations

import inspect
from queue import Queue
from threading import Event, Thread
from typing import Any

import pytest
from flwr.server.superlink.fleet.vce import vce_api

from sfl_flower.wire.flower import promptly

LONG = 60.0


def looks(looked: Queue[int], f_stop: Event) -> None:
    """Look as Flower's thread does, but hardly ever by itself."""
    number = 0
    while not f_stop.is_set():
        looked.put(number)
        number += 1
        f_stop.wait(LONG)


def test_news_end_the_wait_and_so_does_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vce_api, "add_messages_to_queue", looks)
    looked, news, ends = Queue[int](), Event(), Event()
    with promptly(news):
        run: Any = vce_api.add_messages_to_queue
        thread = Thread(target=run, args=(looked,), kwargs={"f_stop": ends}, daemon=True)
        thread.start()
        for number in range(3):
            assert looked.get(timeout=LONG / 2) == number
            assert looked.empty()
            news.set()
        assert looked.get(timeout=LONG / 2) == 3
        ends.set()
        news.set()
        thread.join(timeout=LONG / 2)
        assert not thread.is_alive()
    assert vce_api.add_messages_to_queue is looks  # type: ignore[comparison-overlap]


def test_a_release_without_that_loop_looks_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(vce_api, "add_messages_to_queue")
    with promptly(Event()):
        assert not hasattr(vce_api, "add_messages_to_queue")


def test_flower_has_the_loop_that_is_meant() -> None:
    assert "f_stop.wait(" in inspect.getsource(vce_api.add_messages_to_queue)
