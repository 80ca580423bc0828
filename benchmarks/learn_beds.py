"""The test beds of `learn`: rows, their controls and first order, and the figures made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import features, learning

__all__ = ["BEDS", "WALK", "Bed", "Gap", "Row"]


@dataclass(frozen=True)
class Row:
    """A method and its settings, and the rates that are tried.

    Attributes
    ----------
    method : str
        What trains.
    settings : mapping of str to value
        What is the row's own.
    rates : tuple of float
        Client rates, none for clients that stand.
    server_rates : tuple of float
        Server rates; none where the bed has one for all rows.
    """

    method: str
    settings: Mapping[str, Any]
    rates: tuple[float, ...] = ()
    server_rates: tuple[float, ...] = ()

    def options(self) -> list[dict[str, float]]:
        """Return the rates that are tried, each as options of a run."""
        server = [{"server_lr": rate} for rate in self.server_rates] or [{}]
        client = [{"client_lr": rate} for rate in self.rates] or [{}]
        return [{**one, **other} for one in server for other in client]


@dataclass(frozen=True)
class Gap:
    """(row - control) / (first - control), and what is asked of it, if anything."""

    row: str
    control: str
    first: str
    target: float | None = None


@dataclass(frozen=True)
class Bed:
    """A problem, and what is held against what on it.

    Attributes
    ----------
    task : str
        A ready-made task, or one of `benchmarks.features.TASKS`.
    shared : mapping of str to value
        Options of all rows.
    rounds : int
        Of each run.
    tuning : int
        Rounds of the runs that choose the rates.
    rows : mapping of str to Row
        By label; a walk is the row of its name without ``_walk``, with the signs of scalars drawn.
    gaps : mapping of str to Gap
        By figure.
    costs : mapping of str to (str, str)
        By what ends a figure's name: rows whose client operations, counted in short runs, and
        memory are divided.
    behind : mapping of str to str
        What rows behind layers that stand train, from its name there to that in the whole model,
        which these runs have.
    """

    task: str
    shared: Mapping[str, Any]
    rounds: int
    tuning: int
    rows: Mapping[str, Row]
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    costs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    behind: Mapping[str, str] = field(default_factory=dict)


CLIENTS: Mapping[str, Any] = {
    key: value for key, value in learning.SHARED.items() if not key.startswith(("task.", "server_"))
}
ADAMW: Mapping[str, Any] = {"server_optimizer": "adamw"}
FORWARDS: Mapping[str, Any] = {"client_lr_schedule": "cosine", "client_lr_warmup": 0.05}
BACKPROP: Mapping[str, Any] = {"client_momentum": 0.9, "client_state": "kept"}
FEW: Mapping[str, Any] = {"task.trained": "subspace:16:conv2"}
APART: Mapping[str, Any] = {"scalars": "channel"}
WALK: Mapping[str, Any] = {"walk": True}

FASHION_ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", {}),
    "all_p4": Row("ho_sfl", {**FORWARDS, "probes": 4}, (0.01, 0.02, 0.06)),
    "all_p4_walk": Row("ho_sfl", {**FORWARDS, "probes": 4, **WALK}, (0.01, 0.02, 0.06)),
    "subspace_p4": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 4}, (0.05, 0.1, 0.2)),
    "subspace_p4_walk": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 4, **WALK}, (0.05, 0.1, 0.2)),
    "subspace_p1": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 1}, (0.025, 0.05, 0.1)),
    "subspace_p1_walk": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 1, **WALK}, (0.025, 0.05, 0.1)),
    "channel_p4": Row("ho_sfl", {**FORWARDS, **FEW, **APART, "probes": 4}, (0.2, 0.5, 1.0)),
    "channel_p1": Row("ho_sfl", {**FORWARDS, **FEW, **APART, "probes": 1}, (0.1, 0.2, 0.5)),
    "channel_p1_walk": Row(
        "ho_sfl", {**FORWARDS, **FEW, **APART, "probes": 1, **WALK}, (0.1, 0.2, 0.5)
    ),
    "first_order": Row("splitfed_v2", BACKPROP, (0.05, 0.1, 0.2)),
    "first_order_same": Row("splitfed_v2", {**BACKPROP, **FEW}, (0.02, 0.05, 0.1)),
}
FASHION_GAPS: Mapping[str, Gap] = {
    "fashion_gap_p4": Gap("channel_p4", "frozen", "first_order", 0.8),
    "fashion_gap_p4_same": Gap("channel_p4", "frozen", "first_order_same", 0.9),
    "fashion_gap_p4_whole": Gap("subspace_p4", "frozen", "first_order"),
    "fashion_gap_p4_all": Gap("all_p4", "frozen", "first_order"),
    "fashion_gap_p1": Gap("channel_p1", "frozen", "first_order", 0.7),
    "fashion_gap_p1_same": Gap("channel_p1", "frozen", "first_order_same"),
    "fashion_gap_p1_whole": Gap("subspace_p1", "frozen", "first_order"),
    "fashion_gap_walk": Gap("subspace_p1_walk", "frozen", "first_order"),
    "fashion_gap_walk_channel": Gap("channel_p1_walk", "frozen", "first_order"),
    "fashion_gap_walk_all": Gap("all_p4_walk", "frozen", "first_order"),
    "fashion_learned_p4": Gap("channel_p4", "subspace_p1_walk", "first_order_same"),
    "fashion_learned_p4_whole": Gap("subspace_p4", "subspace_p1_walk", "first_order_same"),
    "fashion_learned_p4_all": Gap("all_p4", "all_p4_walk", "first_order"),
    "fashion_learned_p1": Gap("channel_p1", "subspace_p1_walk", "first_order_same"),
    "fashion_learned_p1_whole": Gap("subspace_p1", "subspace_p1_walk", "first_order_same"),
}
"""``gap`` counts from the frozen client; ``learned`` from the walk of the same parameters that
comes farthest, to first order on these."""

SLOW: Mapping[str, Any] = {"server_steps": "round"}
TWICE: Mapping[str, Any] = {"server_passes": 2}
LAST: Mapping[str, Any] = {"task.behind": "blocks.15", "task.trained": "subspace:16"}
EFFICIENTNET_ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", {"task.behind": "blocks.15"}, (), (0.001, 0.003, 0.01)),
    "channel_p4": Row(
        "ho_sfl", {**FORWARDS, **LAST, **APART, "probes": 4}, (2.0, 4.0, 8.0, 16.0), (0.003, 0.01)
    ),
    "channel_p4_walk": Row(
        "ho_sfl",
        {**FORWARDS, **LAST, **APART, "probes": 4, **WALK},
        (2.0, 4.0, 8.0, 16.0),
        (0.003, 0.01),
    ),
    "channel_p1": Row(
        "ho_sfl", {**FORWARDS, **LAST, **APART, "probes": 1}, (1.0, 2.0, 4.0, 8.0), (0.003, 0.01)
    ),
    "channel_p1_walk": Row(
        "ho_sfl",
        {**FORWARDS, **LAST, **APART, "probes": 1, **WALK},
        (1.0, 2.0, 4.0, 8.0),
        (0.003, 0.01),
    ),
    "subspace_p4": Row(
        "ho_sfl", {**FORWARDS, **LAST, "probes": 4}, (0.1, 0.2, 0.4, 0.8), (0.003, 0.01)
    ),
    "first_order_same": Row(
        "splitfed_v2", {**BACKPROP, **LAST}, (0.03, 0.1, 0.3, 1.0), (0.003, 0.01)
    ),
    "first_order_layer": Row(
        "splitfed_v2",
        {**BACKPROP, "task.behind": "blocks.15"},
        (0.003, 0.01, 0.03, 0.1),
        (0.003, 0.01),
    ),
    "first_order": Row("splitfed_v2", BACKPROP, (0.0001, 0.0003, 0.001, 0.003), (0.003,)),
    "frozen_round": Row("frozen", {"task.behind": "blocks.15", **SLOW}, (), (0.003, 0.01, 0.03)),
    "channel_p4_round": Row(
        "ho_sfl",
        {**FORWARDS, **LAST, **APART, "probes": 4, **SLOW},
        (8.0, 16.0),
        (0.003, 0.01, 0.03),
    ),
    "frozen_twice": Row("frozen", {"task.behind": "blocks.15", **TWICE}, (), (0.001, 0.003)),
    "channel_p4_twice": Row(
        "ho_sfl", {**FORWARDS, **LAST, **APART, "probes": 4, **TWICE}, (8.0, 16.0), (0.001, 0.003)
    ),
}
"""The last four are of a slower and a faster server."""
EFFICIENTNET_GAPS: Mapping[str, Gap] = {
    "efficientnet_gap_p4": Gap("channel_p4", "frozen", "first_order", 0.6),
    "efficientnet_gap_p4_same": Gap("channel_p4", "frozen", "first_order_same"),
    "efficientnet_gap_p4_layer": Gap("channel_p4", "frozen", "first_order_layer"),
    "efficientnet_gap_p4_whole": Gap("subspace_p4", "frozen", "first_order"),
    "efficientnet_gap_p1": Gap("channel_p1", "frozen", "first_order"),
    "efficientnet_gap_p1_same": Gap("channel_p1", "frozen", "first_order_same"),
    "efficientnet_gap_walk": Gap("channel_p1_walk", "frozen", "first_order"),
    "efficientnet_learned_p4": Gap("channel_p4", "channel_p1_walk", "first_order_same"),
    "efficientnet_learned_p1": Gap("channel_p1", "channel_p1_walk", "first_order_same"),
}

BEHIND: Mapping[str, Any] = {"task.behind": "block:3"}
GUIDE: Mapping[str, Any] = {
    **BEHIND,
    "probes": 1,
    "mu": 1e-5,
    "guide": "public",
    "guide_samples": 256,
    "guide_rest": 0.0,
    "client_momentum": 0.9,
}
"""Along the guide alone: of millions of weights one probe more tells next to nothing. A probe moves
the weights by μ√d, here along what is nearly the gradient, so μ is short."""
HO_SFL: Mapping[str, Any] = {
    **FORWARDS,
    **GUIDE,
    "directions": "shared",
    "client_optimizer": "momentum",
}
LEVEL: Mapping[str, Any] = {**HO_SFL, "guide_form": "orthogonal", "clip_norm": 0.0}
OF_HEAD: Mapping[str, Any] = {
    **FORWARDS,
    **{key: value for key, value in GUIDE.items() if key != "client_momentum"},
    "guide_form": "orthogonal",
    "guide_momentum": 0.9,
    "clip_norm": 0.0,
    "client_optimizer": "sgd",
    "head": "pooled",
    "head_lr": 0.003,
}
"""HERON-SFL's clients begin their optimiser anew each round: the guide has the momentum."""
MINILM_ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", BEHIND, (), (0.003, 0.01)),
    "orthogonal": Row("ho_sfl", LEVEL, (3.0, 10.0), (0.003,)),
    "orthogonal_walk": Row("ho_sfl", {**LEVEL, **WALK}, (3.0, 10.0), (0.003,)),
    "orthogonal_outright": Row("outright", LEVEL, (3.0, 10.0), (0.003,)),
    "orthogonal_known": Row("known", LEVEL, (3.0, 10.0), (0.003,)),
    "guide_known": Row("known", HO_SFL, (0.1, 0.2), (0.003,)),
    "heron": Row("heron", OF_HEAD, (10.0, 30.0), (0.003,)),
    "heron_walk": Row("heron", {**OF_HEAD, **WALK}, (10.0, 30.0), (0.003,)),
    "guide": Row("ho_sfl", HO_SFL, (0.1, 0.2), (0.003,)),
    "guide_walk": Row("ho_sfl", {**HO_SFL, **WALK}, (0.1, 0.2), (0.003,)),
    "guide_outright": Row("outright", HO_SFL, (0.1, 0.2), (0.003,)),
    "first_order_same": Row("splitfed_v2", {**BACKPROP, **BEHIND}, (0.01, 0.03, 0.1), (0.003,)),
    "first_order": Row("splitfed_v2", BACKPROP, (0.003, 0.01, 0.03), (0.003,)),
}
MINILM_GAPS: Mapping[str, Gap] = {
    "minilm_deep_gap_p4": Gap("orthogonal", "frozen", "first_order", 0.7),
    "minilm_deep_gap_p4_same": Gap("orthogonal", "frozen", "first_order_same"),
    "minilm_deep_gap_known_same": Gap("orthogonal_known", "frozen", "first_order_same"),
    "minilm_deep_gap_heron": Gap("heron", "frozen", "first_order", 0.6),
    "minilm_deep_gap_heron_same": Gap("heron", "frozen", "first_order_same"),
    "minilm_deep_gap_gradient": Gap("guide", "frozen", "first_order"),
    "minilm_deep_gap_gradient_same": Gap("guide", "frozen", "first_order_same"),
    "minilm_deep_gap_walk": Gap("orthogonal_walk", "frozen", "first_order"),
    "minilm_deep_gap_heron_walk": Gap("heron_walk", "frozen", "first_order"),
    "minilm_deep_gap_outright": Gap("orthogonal_outright", "frozen", "first_order"),
    "minilm_deep_learned_p4": Gap("orthogonal", "orthogonal_walk", "first_order_same"),
}

PROMPTS_BEHIND: Mapping[str, Any] = {"task.behind": "block:17"}
ALONG_PROMPTS: Mapping[str, Any] = {**LEVEL, **PROMPTS_BEHIND, "guide_samples": 64}
SMOLLM2_ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", PROMPTS_BEHIND, (), (1e-5, 1e-4, 3e-4)),
    "orthogonal": Row("ho_sfl", ALONG_PROMPTS, (3.0, 10.0), (3e-4,)),
    "orthogonal_walk": Row("ho_sfl", {**ALONG_PROMPTS, **WALK}, (3.0, 10.0), (3e-4,)),
    "first_order_same": Row("splitfed_v2", {**BACKPROP, **PROMPTS_BEHIND}, (0.03,), (3e-4,)),
}
SMOLLM2_GAPS: Mapping[str, Gap] = {
    "smollm2_gap_same": Gap("orthogonal", "frozen", "first_order_same"),
}

CONV: Mapping[str, Any] = {"task.trained": "subspace:16:layer2.1.conv2"}
ALONG: Mapping[str, Any] = {
    **{key: value for key, value in LEVEL.items() if key not in BEHIND},
    "guide_samples": 64,
    "mu": 1e-4,
}
RESNET_ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", {}, (), (0.01, 0.03)),
    "orthogonal": Row("ho_sfl", ALONG, (1.0, 3.0), (0.01,)),
    "orthogonal_walk": Row("ho_sfl", {**ALONG, **WALK}, (1.0, 3.0), (0.01,)),
    "orthogonal_outright": Row("outright", ALONG, (1.0, 3.0), (0.01,)),
    "orthogonal_known": Row("known", ALONG, (3.0,), (0.01,)),
    "channel_p4": Row("ho_sfl", {**FORWARDS, **CONV, **APART, "probes": 4}, (0.5, 2.0), (0.01,)),
    "channel_p4_walk": Row(
        "ho_sfl", {**FORWARDS, **CONV, **APART, "probes": 4, **WALK}, (0.5, 2.0), (0.01,)
    ),
    "first_order_same": Row("splitfed_v2", {**BACKPROP, **CONV}, (0.1, 0.3), (0.01,)),
    "first_order": Row("splitfed_v2", BACKPROP, (0.03, 0.1), (0.01,)),
}
"""BatchNorm is in train mode in all rows. First order on the same parameters is that of the last
convolution; along guides all weights are trained."""
RESNET_GAPS: Mapping[str, Gap] = {
    "resnet_scratch_gap_p4": Gap("orthogonal", "frozen", "first_order"),
    "resnet_scratch_gap_walk": Gap("orthogonal_walk", "frozen", "first_order"),
    "resnet_scratch_gap_known": Gap("orthogonal", "frozen", "orthogonal_known"),
    "resnet_scratch_gap_outright": Gap("orthogonal_outright", "frozen", "first_order"),
    "resnet_scratch_gap_channel_p4": Gap("channel_p4", "frozen", "first_order"),
    "resnet_scratch_gap_channel_p4_same": Gap("channel_p4", "frozen", "first_order_same"),
    "resnet_scratch_gap_channel_walk": Gap("channel_p4_walk", "frozen", "first_order"),
    "resnet_scratch_learned_p4": Gap("orthogonal", "orthogonal_walk", "first_order"),
}

BEDS: Mapping[str, Bed] = {
    "fashion": Bed(
        "fashion_mnist",
        {**learning.SHARED, "server_lr": 0.05},
        2000,
        1000,
        FASHION_ROWS,
        FASHION_GAPS,
    ),
    "efficientnet": Bed(
        features.IMAGES,
        {**CLIENTS, **ADAMW},
        100,
        100,
        EFFICIENTNET_ROWS,
        EFFICIENTNET_GAPS,
        {
            "vs_backprop": ("channel_p4", "first_order"),
            "vs_backprop_same": ("channel_p4", "first_order_same"),
            "vs_backprop_p1": ("channel_p1", "first_order"),
            "vs_backprop_p1_same": ("channel_p1", "first_order_same"),
        },
        {"all": "last.*", "subspace:16": "subspace:16:last.*"},
    ),
    "minilm": Bed(
        features.SENTENCES,
        {**CLIENTS, **ADAMW, "partition": "iid"},
        48,
        48,
        MINILM_ROWS,
        MINILM_GAPS,
        {
            "vs_backprop_minilm": ("orthogonal", "first_order"),
            "vs_backprop_minilm_same": ("orthogonal", "first_order_same"),
        },
        {"all": "*layer.[345].*"},
    ),
    "smollm2": Bed(
        features.PROMPTS,
        {**CLIENTS, **ADAMW, "partition": "iid"},
        12,
        12,
        SMOLLM2_ROWS,
        SMOLLM2_GAPS,
        behind={"all": "*layers.1[789].*"},
    ),
    "resnet_scratch": Bed(
        "cifar10",
        {**CLIENTS, "task.train_size": 8_960, "task.public_size": 1_040, "server_momentum": 0.9},
        300,
        300,
        RESNET_ROWS,
        RESNET_GAPS,
        {"vs_backprop_resnet": ("orthogonal", "first_order")},
    ),
}
"""By the word that its figures begin with."""
