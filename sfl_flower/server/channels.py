"""Which parameters of a client half act on one channel of the smashed data each.

The server finds them by trials before the first round: a tensor whose rows, moved at random, change
nothing but their own channels is told apart by channel (`sfl_flower.zo.channels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.data import generator
from sfl_flower.errors import ConfigError
from sfl_flower.server.probing import Noise
from sfl_flower.split.parameters.layouts import layer_width, weight_of
from sfl_flower.split.parameters.subspace import FACTOR, movable_layers
from sfl_flower.training.modes import kept_buffers
from sfl_flower.zo import Guide, Probing, condition_guided, condition_scalars, trained_names
from sfl_flower.zo.channels import Channels, clip_channels
from sfl_flower.zo.entry import MAX_COEFFICIENTS
from sfl_flower.zo.law import Shapes

__all__ = [
    "SCALARS_OF",
    "Apart",
    "apart_noise",
    "check_channels",
    "check_size",
    "conditioned",
    "few_directions",
    "sizes",
    "told_apart",
    "walk_signs",
]

SCALARS_OF = ("batch", "channel")
"""What a probe gives a scalar of."""
FEW = 16
"""Directions of the last layer that are named where it is to be trained alone.

First order in so many comes within a tenth of first order on the whole layer on EfficientNet-Lite0,
and on all weights on Fashion-MNIST (docs/results/learn.md).
"""
OWN = 1 - 1e-4
"""Share of what a tensor's rows change, by energy, that must lie in their own channels.

1 behind a convolution, a linear layer and what treats channels alike. Less is not enough: a
LayerNorm over 256 channels leaves 0.99, and an estimate is biased where λ has a mean over them.
"""
_TRIALS, _MOVE = 3, 1e-2


@dataclass(frozen=True)
class Apart:
    """What is told apart by channel.

    Attributes
    ----------
    channel : int
        The dimension of the channels in the smashed data, 0 if nothing is.
    tensors : tuple of bool
        Which trained tensors, in canonical order; empty if none is.
    """

    channel: int = 0
    tensors: tuple[bool, ...] = ()


def check_size(apart: Apart, shapes: Shapes, settings: Mapping[str, Any], clients: int) -> None:
    """Refuse an update of more scalars than a journal entry holds.

    Parameters
    ----------
    apart : Apart
        What is told apart.
    shapes : tuple of tuple of int
        Of the trained tensors, in canonical order.
    settings : mapping of str to value
        ``probes``, ``minibatches`` and ``directions`` of the method.
    clients : int
        Of a round.

    Raises
    ------
    ConfigError
        There are more.
    """
    parts = Channels(shapes, apart.tensors).parts if apart.tensors else 1
    streams = 1 if settings["directions"] == "shared" else clients
    count = streams * settings["minibatches"] * settings["probes"] * parts
    if count > MAX_COEFFICIENTS:
        raise ConfigError(
            f"An update has {count} scalars ({streams} streams of directions x minibatches x "
            f"probes x {parts} scalars a probe); a journal entry holds at most {MAX_COEFFICIENTS}. "
            "Use fewer probes, mini-batches or clients a round, or directions=shared"
            f"{', or scalars=batch' if apart.tensors else ''}."
        )


def sizes(scalars: np.ndarray, drawn: int) -> dict[str, float]:
    """Return the root mean squares of a round's scalars, of drawn directions and of a guide.

    Parameters
    ----------
    scalars : numpy.ndarray
        float64, [..., directions].
    drawn : int
        How many of the directions were drawn; the rest are guides.
    """
    parts = {"scalar_rms": scalars[..., :drawn], "guide_rms": scalars[..., drawn:]}
    return {name: float(np.sqrt(np.mean(p**2))) for name, p in parts.items() if p.size}


def check_channels(scalars: str, settings: Mapping[str, object]) -> None:
    """Refuse settings that know of one scalar a probe.

    Raises
    ------
    ConfigError
        With ``scalars=channel`` beside a guide, a cone, a division by the spread or NoPeek's term.
    """
    plain = {"guide": "none", "cone": 0.0, "scale": "none", "nopeek": 0.0}
    others = [name for name, value in plain.items() if settings.get(name, value) != value]
    if scalars == "channel" and others:
        name = others[0]
        raise ConfigError(
            f"scalars=channel with {name}={settings[name]}: that option knows of one scalar a "
            f"probe only; use {name}={plain[name]}, or scalars=batch."
        )


def told_apart(scalars: str, half: nn.Module, x: Tensor, seed: int) -> Apart:
    """Return the trained tensors whose rows act on one channel each; the half stays as it is.

    Parameters
    ----------
    scalars : {"batch", "channel"}
        Whether any are wanted.
    half : nn.Module
        The client half, in the mode of the run.
    x : Tensor
        A few inputs [n, ...].
    seed : int
        Of the trials.

    Raises
    ------
    ConfigError
        They are wanted, and there is none.
    """
    if scalars != "channel":
        return Apart()
    names = sorted(trained_names(half))
    tensors = dict(half.named_parameters())
    with torch.no_grad(), kept_buffers(half):
        z = half(x)
        shares = {
            dim: [_own(half, x, z, tensors[name], dim, seed) for name in names]
            for dim in range(1, z.dim())
        }
    channel = max(shares, key=lambda dim: sum(share >= OWN for share in shares[dim]), default=0)
    found = tuple(share >= OWN for share in shares.get(channel, []))
    if not any(found):
        best = {
            name: max((row[i] for row in shares.values()), default=0.0)
            for i, name in enumerate(names)
        }
        said = "; ".join(f"{name} {share:.4f}" for name, share in list(best.items())[-6:])
        raise ConfigError(
            "scalars=channel, but no trained parameter of the client half acts on one channel of "
            f"the smashed data of shape {list(z.shape)} alone (share of what rows change in their "
            f"own channel, at least {OWN} wanted: {said}); train the last layer before the cut "
            "(task.trained), cut behind another one, or use scalars=batch."
        )
    return Apart(channel, found)


def few_directions(half: nn.Module, tensors: tuple[bool, ...]) -> str:
    """Return the choice of the last layer alone in a few directions, "" where it has none.

    Parameters
    ----------
    half : nn.Module
        The client half.
    tensors : tuple of bool
        What is told apart in it, as of `Apart`. Of several layers (a sum of branches may end the
        half) the largest is named.
    """
    own = set(_names(half, tensors))
    found = [
        (weight_of(layer).numel(), f"subspace:{min(FEW, layer_width(layer))}:{name}")
        for name, layer in movable_layers(half)
        if not own.isdisjoint((f"{name}.weight", f"{name}.{FACTOR}"))
    ]
    return max(found, default=(0, ""))[1]


def apart_noise(noise: Noise, half: nn.Module, tensors: tuple[bool, ...]) -> Noise:
    """Return a noise, given for `Channels.noise_size`, that knows what is told apart, if any is."""
    parts = ", ".join(_names(half, tensors))
    return replace(noise, parts=parts, alone=few_directions(half, tensors)) if parts else noise


def _names(half: nn.Module, tensors: tuple[bool, ...]) -> list[str]:
    """Return the names of what is told apart."""
    pairs = zip(sorted(trained_names(half)), tensors, strict=True) if tensors else ()
    return [name for name, own in pairs if own]


def _own(half: nn.Module, x: Tensor, z: Tensor, tensor: Tensor, dim: int, seed: int) -> float:
    """Return the share of what moved rows change that lies in their channels; 0 if they cannot."""
    count = z.shape[dim]
    if tensor.dim() == 0 or tensor.shape[0] != count or count < 2:
        return 0.0
    before, shares = tensor.detach().clone(), []
    for trial in range(_TRIALS):
        rng = generator("channels", seed, trial)
        chosen = torch.from_numpy(rng.permutation(count)[: count // 2])
        move = torch.zeros_like(before)
        drawn = rng.standard_normal((len(chosen), *before.shape[1:])).astype(np.float32)
        move[chosen] = _MOVE * torch.from_numpy(drawn).to(move.device)
        tensor.data.add_(move)
        squares = (half(x) - z).double().square().movedim(dim, 0).reshape(count, -1).sum(1)
        tensor.data.copy_(before)
        if not float(squares.sum()) > 0.0:
            return 0.0
        shares.append(float(squares[chosen.to(squares.device)].sum() / squares.sum()))
        if shares[-1] < OWN:  # one such trial decides
            break
    return min(shares)


def walk_signs(seed: int, round: int, shape: tuple[int, ...], shared: bool) -> np.ndarray:
    """Return ±1 for each scalar of a round's walk.

    Parameters
    ----------
    seed, round : int
        Of the run, and which round.
    shape : tuple of int
        Of the scalars, clients first.
    shared : bool
        Whether clients share directions: one sign then for what is averaged over them, so that a
        step stays as long.
    """
    drawn = generator("walk", seed, round).choice((-1.0, 1.0), shape[1:] if shared else shape)
    return np.asarray(drawn, dtype=np.float64)


def conditioned(
    scalars: np.ndarray, probing: Probing, clip_norm: float, scale: str, guide: Guide | None
) -> np.ndarray:
    """Return a round's scalars, those of each mini-batch scaled and clipped, float64.

    Parameters
    ----------
    scalars : numpy.ndarray
        v, shape [clients, steps, n]: n is P, P + 1 with a guide, or P (1 + C) where channels are
        told apart.
    probing : Probing
        How they were made.
    clip_norm, scale : float, str
        As in `sfl_flower.zo.condition_scalars`.
    guide : Guide or None
        That of the round.
    """

    def step(v: np.ndarray) -> np.ndarray:
        if probing.channel:
            rows = v.reshape(probing.probes, -1)
            return clip_channels(rows, probing.unit, clip_norm).reshape(-1)
        own = (probing.unit, clip_norm, scale)
        return (
            condition_scalars(v, *own) if guide is None else condition_guided(v, *own, guide.size)
        )

    return np.stack([[step(v) for v in client] for client in scalars])
