"""The guide of HERON-SFL: whose gradient it is, what a step along it is, and when there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor
from torch.nn import functional

from sfl_flower.clients.heron import _terms
from sfl_flower.data import client_key
from sfl_flower.errors import JournalError, TrainingError, WireError
from sfl_flower.server.guided import NextGuide
from sfl_flower.task import Samples, SplitTask
from sfl_flower.wire.probing import along
from sfl_flower.zo import Directions, Guide, StepRule, client_stream, run_key, step_keys
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, begin, equal, train

SHAPES = ((tiny.CUT,), (tiny.CUT, tiny.FEATURES))
"""Of the trained tensors: bias, weight."""
BASE: dict[str, Any] = {
    "guide": "public",
    "head_trainer": "server",
    "probes": 3,
    "local_steps": 1,
    "estimator": "jvp",
    "client_optimizer": "sgd",
    "client_lr": 0.5,
    "client_lr_schedule": "constant",
    "client_lr_warmup": 0,
    "clip_norm": 0.0,
    "head_lr": 0.1,
}


def problem(shares: list[Samples] | None = None, public: Samples | None = None) -> SplitTask:
    """Return a task whose client half is one linear layer."""
    x = tiny.samples(20, 7) if public is None else public
    return tiny.task(shares, cut="first", public=lambda: x)


def trained(task: SplitTask | None = None, *faults: Fault, **options: Any) -> Trial:
    return train(task or problem(), "heron", faults, **{**BASE, **options})


def asked(trial: Trial, round: int) -> list[Guide | None]:
    """Return the guide of each request of a round."""
    found = []
    for kind, _, content in trial.grid.requests:
        if kind == "local" and content["config"]["round"] == round:
            arrays = content["arrays"]
            sent = Guide.decode(values(arrays["guide"]).tobytes()) if "guide" in arrays else None
            found.append(sent)
    return found


def flat(trial: Trial) -> Tensor:
    half = trial.strategy.client_half
    named = sorted(half.named_parameters())
    return torch.cat([p.detach().reshape(-1) for _, p in named]).double()


def gradient(trial: Trial, share: Samples) -> Tensor:
    """Return the gradient of the head's loss at the client half, float64."""
    half, head = trial.strategy.client_half, trial.strategy.head
    loss = functional.cross_entropy(head(half(share.x)), share.y)
    named = sorted(half.named_parameters())
    return torch.cat(
        [part.reshape(-1) for part in torch.autograd.grad(loss, [p for _, p in named])]
    ).double()


@pytest.mark.parametrize(("rest", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_the_first_round_has_no_guide_and_goes_the_rest_of_what_probes_tell(
    rest: float, share: float
) -> None:
    start, plain = begin(problem(), "heron", **BASE), trained(guide_rest=1.0, rounds=1)
    found = trained(guide_rest=rest, rounds=1)
    assert asked(found, 1) and set(asked(found, 1)) == {None}
    whole = flat(plain) - flat(start)
    assert float(whole.norm()) > 0.1
    torch.testing.assert_close(flat(found) - flat(start), share * whole, rtol=1e-4, atol=1e-6)


def test_it_is_the_gradient_of_the_clients_mean_losses_where_their_inputs_are_public() -> None:
    """Of one batch, of three, and of two: each client counts once, its batches by their samples."""
    shares = [tiny.samples(n, n) for n in (4, 12, 6, 8)]
    x, y = torch.cat([share.x for share in shares]), torch.cat([share.y for share in shares])
    options = {"rounds": 1, "local_steps": 0, "client_lr": 0.0, "mean": "uniform"}
    trial = trained(problem(shares, Samples(x, y)), **options)
    exact = sum(
        (gradient(trial, share) for share in shares), torch.zeros(tiny.CLIENT_SIZE).double()
    )
    expected, found = Guide.towards(exact.float().numpy(), SHAPES), trial.strategy.next.guide
    assert expected is not None and found.signs == expected.signs
    assert np.allclose(found.factors, expected.factors, rtol=1e-4)


@pytest.mark.parametrize("rest", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("walk", [False, True])
def test_a_step_is_the_estimate_by_hand(rest: float, walk: bool) -> None:
    """g = v_a q / |a| + rest (I - q q') (1/P) sum v u, with the exact derivatives of `jvp`."""
    share = tiny.samples(4)
    options = {"clients": 1, "guide_rest": rest, "walk": walk}
    before = trained(problem([share]), rounds=1, **options)
    after = trained(problem([share]), rounds=2, **options)
    (guide,) = asked(after, 2)
    assert guide is not None and asked(after, 1) == [None]
    assert equal_guides(guide, before.strategy.next.guide)
    key = run_key("heron", client_key(0, 0))
    directions = Directions(key, "rademacher", SHAPES)
    keys = step_keys(2, 0, client_stream(0), 3)
    us = [directions.of(each).values().double() for each in keys]
    a = directions.along(guide).values().double()
    assert float(a @ a) == pytest.approx(tiny.CLIENT_SIZE, rel=1e-5)
    true = gradient(before, share)
    told = torch.stack([true @ u for u in [*us, a]])
    sent = [values(c["arrays"]["scalars"]) for kind, _, c in after.grid.replies if kind == "local"]
    assert [scalars.shape for scalars in sent] == [(1, 3), (1, 4)]
    assert np.allclose(sent[1][0], told.numpy(), rtol=1e-4, atol=1e-5)
    step = (flat(before) - flat(after)) / 0.5
    if walk:  # |v| stays; each of the four signs is drawn: one choice of them is what was done
        ways = [torch.tensor([1.0 - 2.0 * (n >> i & 1) for i in range(4)]) for n in range(16)]
    else:
        ways = [torch.ones(4)]
    estimates = [estimate(told * signs.double(), us, a, rest) for signs in ways]
    assert min(float((step - g).norm()) for g in estimates) < 1e-5
    if rest == 0.0 and not walk:  # nothing but the gradient's part along the guide
        q = a / a.norm()
        assert torch.allclose(step, q * (q @ true), atol=1e-5)
    if not walk:  # along the guide nothing is noise, whatever the rest
        assert float(step @ a) == pytest.approx(float(true @ a), rel=1e-3)


def estimate(told: Tensor, us: list[Tensor], a: Tensor, rest: float) -> Tensor:
    q = a / a.norm()
    drawn = sum((v * u for v, u in zip(told[:3], us, strict=True)), torch.zeros_like(a)) / 3
    found: Tensor = told[3] / a.norm() * q + rest * (drawn - (q @ drawn) * q)
    return found


def equal_guides(one: Guide, two: Guide) -> bool:
    return one.encode() == two.encode()


def test_one_guide_for_all_clients_of_a_round_and_none_in_the_first() -> None:
    trial = trained(rounds=3, local_steps=3)
    assert asked(trial, 1) == [None] * 4
    for round in (2, 3):
        first, *others = asked(trial, round)
        assert first is not None and all(other == first for other in others)
    assert asked(trial, 2)[0] != asked(trial, 3)[0]


def test_a_round_without_replies_leaves_the_guide_as_it_leaves_the_weights() -> None:
    trial = trained(None, Fault("mute", types="local", rounds={2}), rounds=3)
    assert asked(trial, 2) == asked(trial, 3) != [None] * 4


def test_a_reply_that_is_refused_has_no_part_in_the_guide() -> None:
    def lie(content: RecordDict) -> RecordDict:
        return changed(content, arrays={"z": values(content.array_records["arrays"]["z"]) * 1e20})

    bad = trained(None, Fault("change", {1}, {2}, "local", 1, lie))
    lost = trained(None, Fault("mute", {1}, {2}, "local", 1))
    assert bad.total("rejected") == 1
    assert asked(bad, 3) == asked(lost, 3) != [None] * 4


@pytest.mark.parametrize("column", [0, -1])
def test_scalars_that_cannot_be_are_left_out(column: int) -> None:
    def lie(content: RecordDict) -> RecordDict:
        scalars = values(content.array_records["arrays"]["scalars"]).copy()
        scalars[:, column] = 1e30
        return changed(content, arrays={"scalars": scalars})

    def shorten(content: RecordDict) -> RecordDict:
        scalars = values(content.array_records["arrays"]["scalars"])
        return changed(content, arrays={"scalars": np.ascontiguousarray(scalars[:, :3])})

    lost = trained(None, Fault("mute", {1}, {2}, "local", 1))
    for change, more in ((lie, {}), (lie, {"scalar_limit": 1e40, "outlier_factor": 0})):
        bad = trained(None, Fault("change", {1}, {2}, "local", 1, change), **more)
        assert bad.total("rejected") == 1 and equal(bad.model, lost.model)
    bad = trained(None, Fault("change", {1}, {2}, "local", 1, shorten))
    assert bad.total("rejected") == 1 and equal(bad.model, lost.model)


def test_a_client_skips_a_step_that_no_guide_can_be_multiplied_by() -> None:
    guide = Guide(2, b"\0", np.ones(3, np.float32))
    directions = Directions(run_key("a", 0), "rademacher", ((1, 2),))
    rule, keys = StepRule(1e-12), step_keys(1, 0, 1, 1)
    large = np.array([1.0, 1e3], np.float32)
    with pytest.raises(JournalError, match="beyond ±1e"):
        rule.terms(large, keys, directions, guide)
    assert _terms(rule, large, keys, directions, guide) is None
    assert _terms(StepRule(1.0), large, keys, directions, guide) is not None
    assert _terms(StepRule(1.0), large * np.nan, keys, directions, guide) is None


def test_a_guide_over_other_parameters_is_refused() -> None:
    directions = Directions(run_key("a", 0), "rademacher", ((1, 2),))
    guide = Guide(3, b"\0", np.ones(4, np.float32))
    with pytest.raises(WireError, match="other parameters than this client trains"):
        along(directions, guide)
    assert along(directions, None) == []
    kept = NextGuide(None, None, "uniform")
    with pytest.raises(TrainingError, match=r"checkpoint's guide .* resume with the task"):
        kept.load_tensors({"guide": torch.tensor(list(guide.encode()), dtype=torch.uint8)}, ((2,),))


def test_a_client_whose_loss_the_head_cannot_take_is_left_out_and_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = begin(problem(), "heron", **BASE)

    def fail(*given: Any) -> Any:
        raise WireError("its loss is not finite.")

    monkeypatch.setattr(trial.strategy.trainer, "gradients", fail)
    notes: list[str] = []
    replies = _replies()
    tally: Any = type("Tally", (), {"note": staticmethod(notes.append)})
    trial.strategy.next.make(2, replies, 1, tally)
    assert trial.strategy.next.guide is None
    assert notes == ["The guide does without client 3: its loss is not finite."]


def _replies() -> Any:
    member = type("Member", (), {"partition": 3})()
    reply = type(
        "Reply",
        (),
        {"round": 1, "y": np.zeros(2), "batches": lambda self: [(np.zeros((2, 5)), np.zeros(2))]},
    )()
    return {member: reply}


def test_the_forward_along_a_guide_counts() -> None:
    kind = begin(problem(), "heron", **BASE).strategy.settings
    assert kind.client_passes == (1 + 3 + 1, 0)
