"""FSL-SAGE: the method held against SplitFed, and what may go wrong when heads are aligned."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from sfl_flower.data import batch_indices, client_key, model_seed
from sfl_flower.errors import ConfigError, CutError, DataError
from sfl_flower.methods import read_options
from sfl_flower.presets import load_preset
from sfl_flower.server.alignment import AlignedHead, Buffer, cut_gradient, mismatch, refresh
from sfl_flower.training.optim import make_optimizer
from sfl_flower.wire import pack_state
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import CLASSES, CLIENT_NAMES, CUT, Trial, begin, equal, start, train

STILL: dict[str, Any] = {"head": "server", "head_init": "copy", "server_lr": 0.0}
BRIEF: dict[str, Any] = {"align_epochs": 5, "local_steps": 3, "upload_every": 2}
HEAD = 4 * (CUT * CLASSES + CLASSES)  # bytes
NORM_NAMES = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "norm.weight")


def sage(faults: Any = (), problem: Any = None, **options: Any) -> Trial:
    return train(problem or tiny.task(), "fsl_sage", faults, **{**BRIEF, **options})


def server_half(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.set_default_dtype(dtype)
    try:
        return tiny.task().build(model_seed(0)).server.to(dtype)
    finally:
        torch.set_default_dtype(torch.float32)


def smashed(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal((count, CUT))).to(dtype)
    return z, torch.from_numpy(rng.integers(0, CLASSES, count))


def aligned(module: nn.Module, name: str = "adam", lr: float = 1e-3) -> AlignedHead:
    return AlignedHead(module, make_optimizer(module.parameters(), name, lr))


def heads(trial: Trial, client: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = trial.strategy.bank.state(client)
    return {name: value.clone() for name, value in state.items()}


def watched(
    trial: Trial, models: list[dict[str, Tensor]] | None = None
) -> list[list[dict[str, Tensor]]]:
    """Run; return every client's head after each round, round 0 included."""
    seen: list[list[dict[str, Tensor]]] = []

    def note(record: Any) -> None:
        seen.append([heads(trial, client) for client in range(4)])
        if models is not None:
            models.append(trial.model)

    trial.strategy.account._on_round = note
    start(trial)
    return seen


# A6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a6a_a_head_equal_to_the_server_gives_the_true_cut_gradient(
    dtype: torch.dtype, tolerance: float
) -> None:
    server = server_half(dtype)
    z, y = smashed(16, dtype)
    estimate = cut_gradient(copy.deepcopy(server), cross_entropy, z, y)
    cut = z.clone().requires_grad_()
    cross_entropy(server(cut), y).backward()
    assert cut.grad is not None
    assert float((estimate - cut.grad).norm() / cut.grad.norm()) <= tolerance


@pytest.mark.parametrize("build", [tiny.model, tiny.with_batch_norm])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_a6b_with_it_and_a_still_server_clients_follow_splitfed_v2(every: int, build: Any) -> None:
    options: dict[str, Any] = {"local_steps": 4, "server_lr": 0.0, "client_lr": 0.2, "rounds": 3}
    first = train(tiny.task(build=build), "splitfed_v2", **options)
    second = sage(
        problem=tiny.task(build=build),
        **{**options, **STILL, "upload_every": every, "align_every": 2},
    )
    names = [*CLIENT_NAMES, *(NORM_NAMES if build is tiny.with_batch_norm else ())]
    for name in names:
        assert torch.equal(first.model[name], second.model[name]), name
    initial = tiny.task(build=build).build(model_seed(0)).client.state_dict()
    assert not torch.equal(first.model["first.weight"], initial["first.weight"])


def test_a_head_unlike_the_server_takes_clients_elsewhere() -> None:
    """What the test above would not see if clients did not use the head at all."""
    options: dict[str, Any] = {"local_steps": 4, "server_lr": 0.0, "rounds": 1}
    first = train(tiny.task(), "splitfed_v2", **options)
    assert not equal(first.model, sage(**options).model)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def test_a6c_the_mismatch_falls_on_a_fixed_buffer() -> None:
    z, y = smashed(60)
    gradient = refresh(server_half(), cross_entropy, z, y)
    head = aligned(nn.Linear(CUT, CLASSES).double(), lr=1e-2)
    found = head.align(cross_entropy, z, y, gradient, 60, 60, np.random.default_rng(0))
    assert len(found) == 60 and found[-1] < 0.5 * found[0]
    assert found[0] > 0


@pytest.mark.parametrize("batch", [8, 24])
def test_a6c_it_falls_with_convolutions_relu_pooling_and_batch_norm(batch: int) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        server, module, z = convolutions(), convolutions(), torch.randn(24, 2, 6, 6)
    y = torch.arange(24) % CLASSES
    gradient = refresh(server, cross_entropy, z, y)
    head = aligned(module, lr=1e-2)
    found = head.align(cross_entropy, z, y, gradient, 80, batch, np.random.default_rng(0))
    assert found[-1] < 0.7 * found[0] and head.finite()


def test_a6d_heads_differ_and_change_only_where_they_are_aligned() -> None:
    trial = begin(tiny.task(), "fsl_sage", **{**BRIEF, "align_every": 3, "rounds": 7})
    seen = watched(trial)
    assert all(equal(seen[0][0], head) for head in seen[0])
    for client in range(4):
        change = [not equal(seen[r - 1][client], seen[r][client]) for r in range(1, 8)]
        assert change == [True, False, False, True, False, False, True]
        others = [other for other in range(4) if other != client]
        assert not any(equal(seen[-1][client], seen[-1][other]) for other in others)
    noted = ["alignment_loss" in record.extra for record in trial.strategy.records[1:]]
    assert noted == [True, False, False, True, False, False, True]


def test_clients_hold_the_heads_of_the_server() -> None:
    trial = sage(align_every=2, rounds=4)
    for client, node in enumerate(trial.grid.nodes):
        held = trial.grid.contexts[node].state.array_records["head"]
        expected = pack_state(heads(trial, client))
        assert {k: v.numpy().tobytes() for k, v in held.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }


def test_a6e_no_gradient_goes_down() -> None:
    ledger = sage().strategy.ledger
    assert ledger.down["gradients"] == ledger.up["gradients"] == 0 < ledger.up["smashed"]


def test_a6f_means_over_buffer_and_batch_are_brought_to_one_scale() -> None:
    server = server_half()
    z, y = smashed(1000)
    gradient = refresh(server, cross_entropy, z, y)
    rows = torch.arange(100)
    estimate = cut_gradient(copy.deepcopy(server), cross_entropy, z[rows], y[rows])
    assert torch.allclose(estimate, 10 * gradient[rows], rtol=1e-12, atol=0)
    size = float(estimate.square().sum())
    with_it = mismatch(server, cross_entropy, z[rows], y[rows], 10 * gradient[rows])
    without = mismatch(server, cross_entropy, z[rows], y[rows], gradient[rows])
    assert float(with_it.detach()) <= 1e-24 * size
    assert float(without.detach()) == pytest.approx(0.81 * size)  # (1 - 1/10)²

    head = aligned(copy.deepcopy(server), "sgd", 0.0)
    for batch in (1000, 100, 300):  # 300: four steps of 250
        found = head.align(cross_entropy, z, y, gradient, 2, batch, np.random.default_rng(0))
        assert max(found) <= 1e-20


def test_a6g_the_buffer_keeps_the_last() -> None:
    z, y = smashed(1700, torch.float32)
    buffer, start_ = Buffer(1000), 0
    for size in (300, 300, 300, 300, 500):
        buffer.push(z[start_ : start_ + size].numpy(), y[start_ : start_ + size].numpy())
        start_ += size
        kept_z, kept_y = buffer.samples()
        low = max(0, start_ - 1000)
        assert torch.equal(kept_z, z[low:start_]) and torch.equal(kept_y, y[low:start_])
    buffer.push(z.numpy(), y.numpy())
    assert len(buffer) == 1000 and torch.equal(buffer.samples()[0], z[700:])


def test_a_run_keeps_the_last_smashed_data_of_each_client() -> None:
    trial = sage(buffer=10, align_every=2, rounds=3)
    for client in range(4):
        sent = [
            np.asarray(values(content["arrays"]["z"]))
            for kind, number, content in trial.grid.replies
            if number == client and "z" in content.array_records.get("arrays", {})
        ]
        kept, _ = trial.strategy.bank.buffer(client).samples()
        assert np.array_equal(kept.numpy(), np.concatenate(sent)[-10:])
        # Two of three steps a round; in rounds 1 and 3 the first of them ahead.
        assert [len(part) for part in sent] == [4, 4, 8, 4, 4]


# The server half in the refresh


@pytest.mark.parametrize("mode", ["batch", "running", "published"])
def test_the_refresh_leaves_running_statistics_alone(mode: str) -> None:
    server = tiny.task(build=tiny.with_batch_norm).build(model_seed(0)).server
    z, y = smashed(20, torch.float32)
    before = copy.deepcopy(server.state_dict())
    found = refresh(server, cross_entropy, z, y, mode)
    assert equal(before, dict(server.state_dict())) == (mode != "published")
    assert server.training and found.shape == z.shape
    other = refresh(server, cross_entropy, z, y, "running" if mode != "running" else "batch")
    assert not torch.allclose(found, other)


def test_a_server_with_batch_norm_is_refreshed_as_asked() -> None:
    models = {
        mode: sage(problem=tiny.task(build=tiny.with_batch_norm), refresh_mode=mode).model
        for mode in ("batch", "running", "published")
    }
    assert not equal(models["batch"], models["running"])
    name = "norm2.num_batches_tracked"
    assert int(models["published"][name]) == int(models["batch"][name]) + 4  # one alignment each


# Rounds


def test_what_is_uploaded_is_from_before_the_step_and_comes_once() -> None:
    trial = sage(rounds=1, local_steps=4, upload_every=2, client_lr=0.5)
    initial = tiny.task().build(model_seed(0)).client
    sent = [
        (kind, values(content["arrays"]["z"]))
        for kind, client, content in trial.grid.replies
        if client == 1 and kind != "join"
    ]
    assert [kind for kind, _ in sent] == ["upload", "local"]
    assert [len(z) for _, z in sent] == [4, 4]
    problem = tiny.task()
    config = trial.strategy.config
    problem.given(config)  # type: ignore[attr-defined]
    rows = problem.client_rows(config.partition_spec())[1]
    chosen = rows[batch_indices(client_key(0, 1), 1, 0, len(rows), 4)]
    with torch.no_grad():
        first = initial(problem.samples("train").x[chosen])
        assert np.array_equal(first.numpy(), sent[0][1])
        chosen = rows[batch_indices(client_key(0, 1), 1, 2, len(rows), 4)]
        later = initial(problem.samples("train").x[chosen])
    assert not np.allclose(later.numpy(), sent[1][1])  # two steps on


def test_samples_count_every_step_and_the_server_every_upload() -> None:
    trial = sage(local_steps=5, upload_every=2, align_every=2, rounds=4)
    assert trial.strategy.ledger.samples == 4 * 4 * 5 * 4
    assert trial.total("replies") == 16 and trial.notes == ""


def test_duplicated_clients_change_nothing() -> None:
    """With a still server: a moving one takes a step for every batch, so twice as many."""
    shares = [tiny.samples(12, seed) for seed in (0, 1)]
    options: dict[str, Any] = {
        "batch_size": 12,  # a batch is the whole share, whatever order it is drawn in
        "server_lr": 0.0,
        "local_steps": 3,
        "upload_every": 1,
        "align_every": 1,
        "head_optimizer": "sgd",
        "head_lr": 0.1,
    }
    one = sage(problem=tiny.task(shares), clients=2, **options)
    two = sage(problem=tiny.task(shares * 2), clients=4, **options)
    for name, value in one.model.items():
        assert torch.allclose(value, two.model[name], rtol=1e-5, atol=1e-6), name
    for client in range(4):
        for name, value in heads(one, client % 2).items():
            assert torch.allclose(value, heads(two, client)[name], rtol=1e-4, atol=1e-6), name


def test_the_mean_over_clients_is_weighted_as_asked() -> None:
    shares = [tiny.samples(12, 0), tiny.samples(3, 1)]
    options: dict[str, Any] = {"clients": 2, "rounds": 1, "local_steps": 0, "upload_every": 1}
    uniform, by_samples = (
        sage(problem=tiny.task(shares), mean=mean, **options) for mean in ("uniform", "samples")
    )
    found = []
    for _, client, content in uniform.grid.replies:
        if "weights.float32" in content.array_records.get("arrays", {}):
            found.append((client, values(content["arrays"]["weights.float32"])))
    (_, a), (_, b) = sorted(found, key=lambda item: item[0])
    for trial, weight in ((uniform, 1 / 2), (by_samples, 4 / 5)):
        own = {name: trial.model[name] for name in CLIENT_NAMES}
        mean = weight * a.astype(np.float64) + (1 - weight) * b
        assert np.allclose(pack_state(own)["float32"], mean, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_kept_client_state_is_taken_up(optimizer: str) -> None:
    options = {"client_optimizer": optimizer, "client_momentum": 0.9, "align_every": 2}
    fresh, kept = (sage(client_state=state, **options) for state in ("fresh", "kept"))
    assert kept.notes == "" and not equal(fresh.model, kept.model)


def test_the_warm_start_is_a_round_of_cse_fsl() -> None:
    options: dict[str, Any] = {
        "local_steps": 3, "upload_every": 2, "client_state": "kept", "client_momentum": 0.9
    }  # fmt: skip
    cse = train(tiny.task(), "cse_fsl", **options, rounds=1)
    trial = begin(
        tiny.task(), "fsl_sage", **{**BRIEF, **options}, warm_start=True, align_every=2, rounds=4
    )
    models: list[dict[str, Tensor]] = []
    seen = watched(trial, models)
    assert equal(models[1], cse.model)
    mean = dict(cse.strategy.head.state_dict())
    assert all(equal(mean, head) for head in seen[1])
    change = [not equal(seen[r - 1][0], seen[r][0]) for r in range(2, 5)]
    assert change == [True, False, True] and trial.notes == ""


# What goes wrong


@pytest.mark.parametrize("kind", ["drop", "mute", "raise"])
def test_a_client_that_drops_out_during_alignment_keeps_its_head(kind: str) -> None:
    faults = [Fault(kind, {2}, {3}, "upload")]
    trial = begin(tiny.task(), "fsl_sage", faults, **{**BRIEF, "align_every": 2, "rounds": 5})
    seen = watched(trial)
    records = trial.strategy.records[1:]
    assert [(r.replies, r.failures) for r in records] == [(4, 0), (4, 0), (3, 1), (4, 0), (4, 0)]
    assert [equal(seen[2][client], seen[3][client]) for client in range(4)] == [0, 0, 1, 0]
    assert not equal(seen[4][2], seen[5][2])
    assert "Client 2 is left out of this round" in trial.notes


@pytest.mark.parametrize("kind", ["drop", "mute", "raise"])
def test_one_that_drops_out_after_it_is_sent_its_head_again(kind: str) -> None:
    faults = [Fault(kind, {2}, {1}, "local")]
    trial = sage(faults, align_every=10, rounds=3)
    assert [(r.replies, r.failures) for r in trial.strategy.records[1:]] == [(3, 1), (4, 0), (4, 0)]
    assert trial.strategy.ledger.down["auxiliary"] == 5 * HEAD


def test_no_client_at_all_is_a_round_without_a_step() -> None:
    trial = sage([Fault("drop", None, {1}, "upload")], rounds=2)
    assert [(r.replies, r.failures) for r in trial.strategy.records[1:]] == [(0, 4), (4, 0)]


@pytest.mark.parametrize("type_", ["upload", "local"])
@pytest.mark.parametrize("round", [1, 2])
def test_a_client_that_lost_its_state_gets_weights_and_head_again(type_: str, round: int) -> None:
    plain = sage(align_every=3, rounds=4)
    trial = sage([Fault("forget", {1}, {round}, type_)], align_every=3, rounds=4)
    assert equal(plain.model, trial.model) and trial.notes == ""
    ledger, before = trial.strategy.ledger, plain.strategy.ledger
    # Once for what it lost, and what the first brief request brought is sent again with its terms;
    # round 2 has no upload.
    heads, weights = {"upload": {1: (2, 1), 2: (0, 0)}, "local": {1: (1, 2), 2: (1, 2)}}[type_][
        round
    ]
    assert ledger.down["auxiliary"] - before.down["auxiliary"] == heads * HEAD
    assert ledger.down["weights"] - before.down["weights"] == weights * 4 * tiny.CLIENT_SIZE


def test_a_reply_with_a_head_or_too_few_uploads_is_refused() -> None:
    extra: Any = {"head.float32": np.zeros(18, np.float32)}
    fault = Fault("change", {0}, {2}, "local", change=lambda c: changed(c, arrays=extra))
    trial = sage([fault])
    assert trial.strategy.records[2].rejected == 1
    assert "more than the weights of the client half" in trial.notes
    empty: Any = {
        "z": np.zeros((0, CUT), np.float32),
        "y": np.zeros(0, np.int64),
        "sizes": np.zeros(0, np.int64),
    }
    fault = Fault("change", {0}, {2}, "local", change=lambda c: changed(c, arrays=empty))
    trial = sage([fault])
    assert trial.strategy.records[2].rejected == 1
    assert "smashed data of 0 mini-batches, asked were 2" in trial.notes


def test_an_alignment_that_is_not_finite_leaves_the_head_as_it_was() -> None:
    trial = begin(tiny.task(), "fsl_sage", **BRIEF, head_lr=1e30, rounds=1)
    seen = watched(trial)
    assert "alignment of client 0's head is not finite" in trial.notes
    assert all(equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))


def test_neither_does_a_refresh_that_is_not_finite() -> None:
    calls = 0

    def loss(output: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        if output.requires_grad and len(y) == 8:  # a buffer of two batches: the refresh of round 2
            calls += 1
        return cross_entropy(output, y) * (float("inf") if calls == 1 and len(y) == 8 else 1.0)

    options = {"local_steps": 1, "upload_every": 1, "align_every": 1, "rounds": 2}
    trial = begin(tiny.task(loss=loss), "fsl_sage", **{**BRIEF, **options})
    seen = watched(trial)
    assert calls > 1 and "alignment of client 0's head is not finite" in trial.notes
    assert [equal(a, b) for a, b in zip(seen[1], seen[2], strict=True)] == [1, 0, 0, 0]
    assert trial.strategy.records[2].replies == 4


def test_a_checkpoint_holds_heads_their_optimisers_and_buffers() -> None:
    trial = sage()
    tensors, values = trial.strategy.checkpoint()
    other = begin(tiny.task(), "fsl_sage", **BRIEF)
    other.strategy.resume(tensors, values)
    again, _ = other.strategy.checkpoint()
    assert equal(tensors, again)
    assert {"heads.3.model.fc.weight", "buffers.3.z", "buffers.3.y"} <= tensors.keys()
    assert any(name.startswith("heads.3.optimizer.") for name in tensors)


# Bad options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"align_every": 0}, r"align_every is 0; it must be in \[1"),
        ({"align_epochs": 0}, r"align_epochs is 0; it must be in \[1"),
        ({"buffer": 0}, r"buffer is 0; it must be in \[1"),
        ({"buffer": 100, "align_batch": 101}, r"align_batch is 101, .* in \[1, 100\], or 0"),
        ({"upload_every": 4, "local_steps": 3}, r"upload_every is 4, .* must be in \[1, 3\]"),
        ({"head_optimizer": "lion"}, r"head_optimizer is 'lion'; .* sgd, adam, adamw"),
        ({"head_lr": -1}, r"head_lr is -1.*at least 0"),
        ({"refresh_mode": "train"}, r"refresh_mode is 'train'; .* batch, running, published"),
        ({"buffer": 3}, r"buffer is 3, .* up to 4 samples; it must be at least 4"),
        ({"lazy": True}, r"Unknown option of method 'fsl_sage' 'lazy'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        begin(tiny.task(), "fsl_sage", **options)


def test_too_long_an_upload_period_for_all_clients_is_refused_before_training() -> None:
    shares = [tiny.samples(4), tiny.samples(4)]
    options: dict[str, Any] = {"clients": 2, "sampled": 1, "local_steps": 0, "upload_every": 2}
    with pytest.raises(DataError, match=r"upload_every is 2, .* must be in \[1, 1\]"):
        train(tiny.task(shares), "fsl_sage", **options)


class Once(torch.autograd.Function):
    """Doubles its input and has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Once.apply(x)
        return found


def test_a_head_without_second_derivatives_is_refused() -> None:
    def head() -> nn.Module:
        return nn.Sequential(OrderedDict(fc=nn.Linear(CUT, CLASSES), once=Doubled()))

    problem = tiny.task(head=head)
    begin(problem, "cse_fsl", head="task")
    with pytest.raises(CutError, match=r"head 'task' cannot be aligned: .*use head 'linear'"):
        begin(problem, "fsl_sage", head="task")


def test_the_preset_of_the_paper_is_read() -> None:
    config, _, settings, _ = read_options(load_preset("fsl_sage_resnet18_cifar10").options)
    shown = settings.to_dict()
    assert (config.method, shown["align_every"], shown["buffer"]) == ("fsl_sage", 10, 1000)
    assert (shown["head"], shown["head_optimizer"], shown["head_lr"]) == (
        "blocks:layer3",
        "adam",
        1e-3,
    )
