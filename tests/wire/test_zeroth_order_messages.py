"""What messages of zeroth-order methods refuse beyond what every message does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sfl_flower.errors import WireError
from sfl_flower.wire.heron import HERONRequest
from sfl_flower.wire.probing import NO_DCOR
from sfl_flower.zo import Probing
from tests.local_grid import changed
from tests.wire.contents import MESSAGES, Z, booked

NO_WEIGHTS = {"weights.float32": None, "weights.int64": None}


@pytest.mark.parametrize(
    ("name", "says", "change"),
    [
        ("first zo step", "weights at step 0 and scalars at later", {"arrays": NO_WEIGHTS}),
        ("later zo step", "weights at step 0 and scalars at later", {"arrays": {"scalars": None}}),
        ("later zo step", r"'scalars' of shape \(3,\), expected \(2,\)", {"config": {"probes": 2}}),
        ("later zo step", r"step=3, expected .* \[0, 2\]", {"config": {"step": 3}}),
        ("later zo step", "mu=0.0, expected a number", {"config": {"mu": 0.0}}),
        ("zo step reply", "labels of shape", {"arrays": {"y": np.zeros(3, np.int64)}}),
        ("zo step reply", "labels of shape", {"arrays": {"y": np.zeros(0, np.int64)}}),
        ("zo step reply", "labels of shape", {"arrays": {"y": np.array(1)}}),
        ("zo step reply", "labels of shape", {"arrays": {"z": np.zeros(4, np.float32)}}),
        ("three forwards reply", "must be equal", {"arrays": {"minus": Z[:3]}}),
        ("three forwards reply", "labels of shape", {"arrays": {"y": np.array(1)}}),
        ("one scalar", r"expected \(1,\)", {"arrays": {"scalar": np.ones(2, np.float32)}}),
        ("one scalar", "not finite", {"arrays": {"scalar": np.array([np.inf], np.float32)}}),
        ("one scalar reply", "brings no weights", {"arrays": NO_WEIGHTS}),
    ],
)
def test_what_does_not_fit_is_refused(name: str, says: str, change: Any) -> None:
    message = MESSAGES[name]
    with pytest.raises(WireError, match=says):
        type(message).from_content(changed(message.to_content(), **change))


@pytest.mark.parametrize("name", ["probe, private", "probe, bounded", "walk, private"])
@pytest.mark.parametrize("lost", [("clip",), ("noise",), ("clip", "noise"), ("estimator",)])
def test_a_request_that_lost_how_samples_are_bounded_is_not_answered(
    name: str, lost: tuple[str, ...]
) -> None:
    message = MESSAGES[name]
    content = changed(message.to_content(), config=dict.fromkeys(lost))
    with pytest.raises(WireError, match=f"lacks the setting '{lost[0]}'"):
        type(message).from_content(content)


@pytest.mark.parametrize("name", ["walk, none", "first zo step", "three forwards", "one scalar"])
def test_a_client_without_nopeeks_term_refuses_its_weight_and_no_server_sends_it(name: str) -> None:
    message = MESSAGES[name]
    given = changed(message.to_content(), config={"nopeek": 0.5, "beside": "dcor"})
    with pytest.raises(WireError, match="unknown entries: beside, nopeek"):
        type(message).from_content(given)
    with pytest.raises(WireError, match=r"know nothing of nopeek=0.5; it must be 0\."):
        replace(message, probing=replace(message.probing, nopeek=0.5)).to_content()


def test_a_reply_says_a_distance_correlation_or_that_there_is_none() -> None:
    reply = replace(MESSAGES["probe reply, nopeek"], dcor=NO_DCOR)
    assert type(reply).from_content(reply.to_content()).dcor == NO_DCOR
    with pytest.raises(WireError, match=r"dcor=-0.5, expected -1 or a number in \[0, 1\]"):
        type(reply).from_content(changed(reply.to_content(), config={"dcor": -0.5}))


def test_payloads_are_the_bytes_of_the_arrays() -> None:
    expected: dict[str, dict[str, int]] = {
        "three forwards": {"weights": 28},
        "three forwards reply": {"smashed": 3 * 48, "labels": 4},
        "one scalar": {"scalars": 4},
        "one scalar reply": {"weights": 28},
        "first zo step": {"weights": 28},
        "later zo step": {"scalars": 12},
        "zo step reply": {"smashed": 48, "labels": 2},
        "last zo step reply": {"weights": 28},
    }
    assert {name: booked(MESSAGES[name]) for name in expected} == expected


def test_a_request_for_a_loss_of_the_clients_own_knows_no_channel() -> None:
    request = replace(MESSAGES["heron"], probing=Probing(5, channel=1))
    with pytest.raises(WireError, match="know nothing of channel=1"):
        request.draft()
    content = MESSAGES["heron"].to_content()
    content["config"]["channel"] = 1
    with pytest.raises(WireError, match="channel"):
        HERONRequest.from_content(content)
