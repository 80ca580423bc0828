"""Every reply is held against its request, in one place, with one wording for each difference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sfl_flower.errors import WireError
from sfl_flower.wire import StaleReply, check_answer
from sfl_flower.zo import Probing
from tests.wire.contents import MESSAGES, Y, Z

HELD = 20
"""Training samples of the client: at batches of 8 an epoch is 8, 8 and 4."""

PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "forward reply": ("forward, none", {}),
    "forward reply, texts": ("forward, none", {}),
    "probe reply": ("probe", {}),
    "step reply": ("later step", {}),
    "last step reply": ("later step", {"step": 2}),
    "full reply": ("full", {}),
    "walk reply": ("walk, none", {}),
    "three forwards reply": ("three forwards", {}),
    "one scalar reply": ("one scalar", {}),
    "zo step reply": ("later zo step", {"probing": Probing(1)}),
    "last zo step reply": ("later zo step", {"step": 2}),
    "local reply, weights": ("cse-fsl", {}),
    "local reply, scalars": ("heron", {}),
}
"""Which request of the examples a reply answers, and what of the request to change first."""


def pair(name: str) -> tuple[Any, Any]:
    """Return a request and the reply to it."""
    asked, changes = PAIRS[name]
    return replace(MESSAGES[asked], **changes), MESSAGES[name]


@pytest.mark.parametrize("name", PAIRS)
def test_an_answer_is_accepted(name: str) -> None:
    request, reply = pair(name)
    check_answer(reply, request, HELD)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"round": 9}, "it answers round 9, asked was round 4.") for name in PAIRS),
    *(
        (name, {"step": 0}, rf"it answers step 0, asked was step {step}.")
        for name, step in (
            ("step reply", 1),
            ("last step reply", 2),
            ("zo step reply", 1),
            ("last zo step reply", 2),
        )
    ),
    *(
        (name, {"scalars": np.ones((2, 5), np.float32)}, "it has scalars of shape (2, 5), asked")
        for name in ("probe reply", "walk reply", "local reply, scalars")
    ),
    ("local reply, scalars", {"scalars": None}, "it has scalars of shape none, asked was (3, 5)."),
    ("local reply, scalars", {"taken": np.ones(2, np.uint8)}, "it has 2 local steps, asked were 3"),
    *(
        (name, {"samples": 19}, "it says 19 samples; 3 steps of this client are 20.")
        for name in ("full reply", "walk reply", "local reply, weights", "local reply, scalars")
    ),
    (
        "forward reply",
        {"sizes": np.array([4], np.int64)},
        "it has smashed data of 1 mini-batches, asked were 2.",
    ),
    (
        "local reply, weights",
        {"sizes": np.array([1, 1, 2], np.int64)},
        "it has smashed data of 3 mini-batches, asked were 2.",
    ),
    *(
        (name, {"y": np.tile(Y, 3)}, "it has a mini-batch of 12 samples, asked were at most 8.")
        for name in ("step reply", "zo step reply", "three forwards reply")
    ),
    ("forward reply", {"sizes": np.array([9, 1])}, "it has a mini-batch of 9 samples, asked were"),
    ("step reply", {"weights": {"float32": Z}}, "it brings weights before its last step, or none"),
    ("last step reply", {"weights": {}}, "it brings weights before its last step, or none after"),
    ("last zo step reply", {"weights": {}}, "it brings weights before its last step, or none"),
    ("zo step reply", {"z": Z[:3]}, "it has 3 rows of smashed data for 2 samples, asked were 2"),
]


@pytest.mark.parametrize(("name", "change", "says"), WRONG)
def test_an_answer_to_something_else_is_refused(
    name: str, change: dict[str, Any], says: str
) -> None:
    request, reply = pair(name)
    with pytest.raises(WireError) as error:
        check_answer(replace(reply, **change), request, HELD)
    assert str(error.value).startswith(says)


def test_step_0_sent_ahead_is_not_asked_for_again() -> None:
    request = replace(MESSAGES["fsl-sage, held"], ahead=True)
    reply = replace(MESSAGES["local reply, weights"], sizes=np.array([4], np.int64))
    check_answer(reply, request, HELD)
    with pytest.raises(WireError, match="of 1 mini-batches, asked were 2"):
        check_answer(reply, replace(request, ahead=False), HELD)
    upload = MESSAGES["fsl-sage upload"]
    check_answer(replace(MESSAGES["forward reply"], sizes=np.array([4])), upload, HELD)
    with pytest.raises(WireError, match="of 2 mini-batches, asked were 1"):
        check_answer(MESSAGES["forward reply"], upload, HELD)


def test_a_stale_client_answers_whatever_was_asked() -> None:
    for name in ("probe", "forward, none", "walk, none", "fsl-sage, held"):
        check_answer(StaleReply(-1, ""), MESSAGES[name], HELD)
