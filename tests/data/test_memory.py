from __future__ import annotations

import pytest

from sfl_flower.data.memory import forget, remember


def test_made_once() -> None:
    made: list[int] = []

    def make() -> str:
        made.append(1)
        return "value"

    assert [remember("once", "a", make) for _ in range(3)] == ["value"] * 3
    assert made == [1]
    forget("once")
    remember("once", "a", make)
    assert made == [1, 1]


def test_tokens_do_not_share() -> None:
    assert remember("left", "a", lambda: 1) == 1
    assert remember("right", "a", lambda: 2) == 2


def test_a_failure_is_not_kept() -> None:
    def fail() -> int:
        raise KeyError("first time")

    with pytest.raises(KeyError):
        remember("failing", "a", fail)
    assert remember("failing", "a", lambda: 3) == 3


def test_the_least_recently_used_task_goes_first() -> None:
    remember("old", "a", lambda: 1)
    for i in range(7):
        remember(f"task {i}", "a", lambda: 1)
    assert remember("old", "a", lambda: 2) == 1  # used again: task 0 is now the oldest
    remember("one more", "a", lambda: 1)
    assert remember("old", "a", lambda: 2) == 1
    assert remember("task 0", "a", lambda: 2) == 2


def test_one_thing_may_be_made_of_another() -> None:
    def outer() -> int:
        return remember("nested", "inner", lambda: 20) + 1

    assert remember("nested", "outer", outer) == 21
