"""Guides made by the server: where the clients' gradient lies, as seen on inputs that are nobody's.

The server knows the client half, by the journal, and each λ that it sends.  What it lacks is the
clients' inputs.  But a weight's gradient is a sum of outer products of what comes back to its layer
with what enters it, and two inputs with like smashed data at a position have like ones.  So each
position's λ goes to the position of a public input whose smashed data are nearest,

    q = Σ_i J(x')ᵀ λ_i  at  argmin ‖f_c(x') - z_i‖,

and q, of which the clients get the signs, lies close to their gradient.  A position whose smashed
data are all 0 is padding, or dead, and takes no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfl_flower.data import generator
from sfl_flower.errors import ConfigError
from sfl_flower.server.guide_forms import FORMS
from sfl_flower.server.mirror import Mirror
from sfl_flower.server.public_inputs import noise_inputs, public_inputs
from sfl_flower.task import SplitTask
from sfl_flower.training.device import device_of, to_array, to_tensor
from sfl_flower.training.modes import eval_mode, kept_buffers
from sfl_flower.zo import Entry, Guide, ParameterVector, guided
from sfl_flower.zo.seal import sealed

__all__ = ["GUIDES", "GuideMaker", "guide_maker", "guided_entry"]

GUIDES = ("none", "public", "noise")
"""No guide, or one by the task's public samples or by inputs of noise."""
_MOST = 8192
"""Positions of public inputs among which the nearest is looked for; of more, evenly many."""
_MEAN = "guide_mean"
_INPUTS, _POSITIONS = 16, 2048
"""Inputs of a forward, and positions that are compared at a time."""


class GuideMaker:
    """Makes the guide of a round.

    Parameters
    ----------
    half : nn.Module
        The client half, kept at the journal's head.
    vector : ParameterVector
        Its trained parameters.
    x : Tensor
        Public inputs [n, ...], on the device of the half.
    samples : int
        How many of them a round draws; 0: all take part in each.
    seed : int
        Of the draws.
    form : str
        One of `FORMS`: what is made of q.
    momentum : float
        m, in [0, 1): a guide is made of m times the q̄ of the round before and 1 - m times q.

    Raises
    ------
    ConfigError
        If a round draws more than there are.
    """

    def __init__(
        self,
        half: nn.Module,
        vector: ParameterVector,
        x: Tensor,
        samples: int = 0,
        seed: int = 0,
        form: str = "gradient",
        momentum: float = 0.0,
    ) -> None:
        if samples > len(x):
            raise ConfigError(
                f"guide_samples is {samples}, but the guide has {len(x)} inputs to draw from; "
                f"set it to at most {len(x)}, or 0 for all of them in every round."
            )
        self._half, self._vector, self._x = half, vector, x
        self._samples, self._seed, self._form = samples, seed, FORMS[form]
        self._momentum = momentum
        self._mean: Tensor | None = None

    def guide(
        self, round: int, answers: Iterable[tuple[np.ndarray, np.ndarray, float]]
    ) -> Guide | None:
        """Return the guide of a round at the current client half, and keep what it is made of.

        Parameters
        ----------
        round : int
            Which round; it decides which inputs are drawn.
        answers : iterable of tuple
            As in `gradient`.

        Returns
        -------
        Guide or None
            None where q is 0 or not finite.
        """
        return self.towards(self.gradient(round, answers))

    def towards(self, q: Tensor) -> Guide | None:
        """Return the guide of a round whose `gradient` is q; None as in `guide`.

        With a momentum q goes into the mean that the guide is made of, unless it is not finite.
        """
        shapes = self._vector.shapes
        if self._momentum and torch.isfinite(q).all():
            before = torch.zeros_like(q) if self._mean is None else self._mean
            q = self._mean = self._momentum * before + (1 - self._momentum) * q
        return Guide.towards(to_array(self._form(q, shapes)), shapes)

    def tensors(self) -> dict[str, Tensor]:
        """Return q̄ for a checkpoint; nothing without a momentum, or before the first guide."""
        return {} if self._mean is None else {_MEAN: self._mean.clone()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; other names are passed over."""
        found = tensors.get(_MEAN)
        self._mean = None if found is None else found.to(self._vector.anchor.device, copy=True)

    def gradient(
        self, round: int, answers: Iterable[tuple[np.ndarray, np.ndarray, float]]
    ) -> Tensor:
        """Return q at the current client half, which stays as it is.

        Parameters
        ----------
        round : int
            As in `guide`.
        answers : iterable of tuple
            Of each client its smashed data, their λ, and what the client counts.

        Returns
        -------
        Tensor
            float32, flat.
        """
        with eval_mode(self._half), kept_buffers(self._half):
            x = self._drawn(round)
            with torch.no_grad():
                z = torch.cat([self._half(part) for part in x.split(_INPUTS)])
            places = _rows(z)
            alive = _alive(places)
            alive = alive[:: max(1, -(-len(alive) // _MOST))]
            near = places[alive]
            lam = torch.zeros(len(places), places.shape[1])
            for smashed, sent, weight in answers if len(near) else ():
                rows = _rows(to_tensor(smashed, z.device))
                told = _alive(rows)
                found = alive[_nearest(near, rows[told])].cpu()
                parts = _rows(torch.from_numpy(sent))[told.cpu()]
                lam.index_add_(0, found, parts, alpha=weight)
            return self._back(x, z.shape, lam.to(z.device))

    def _drawn(self, round: int) -> Tensor:
        """Return the inputs of a round."""
        if not self._samples:
            return self._x
        rng = generator("guide inputs", self._seed, round)
        chosen = np.sort(rng.choice(len(self._x), self._samples, replace=False))
        return self._x[torch.from_numpy(chosen).to(self._x.device)]

    def check(self) -> None:
        """Refuse public inputs that the client half cannot run.

        Raises
        ------
        ConfigError
            With what its forward says.
        """
        try:
            with torch.no_grad(), eval_mode(self._half), kept_buffers(self._half):
                self._half(self._x[:2])
        except (RuntimeError, TypeError, IndexError) as error:
            raise ConfigError(
                f"The client half cannot run inputs of a guide, of shape {list(self._x.shape[1:])}:"
                f" {error}. public() must return samples like train()."
            ) from error

    def _back(self, inputs: Tensor, shape: torch.Size, lam: Tensor) -> Tensor:
        """Return ``Σ J(x')ᵀ λ`` for λ at each position of some inputs, flat."""
        total = torch.zeros_like(self._vector.anchor)
        pieces = _unrows(lam, shape).split(_INPUTS)
        for x, part in zip(inputs.split(_INPUTS), pieces, strict=True):
            if not part.any():
                continue
            with torch.enable_grad():
                found = torch.autograd.grad(
                    self._half(x),
                    self._vector.parameters,
                    part,
                    allow_unused=True,
                    materialize_grads=True,
                )
            total += torch.cat([gradient.reshape(-1) for gradient in found])
        return total


def guide_maker(
    kind: str,
    task: SplitTask,
    seed: int,
    half: nn.Module,
    vector: ParameterVector,
    samples: int = 0,
    form: str = "gradient",
    momentum: float = 0.0,
) -> GuideMaker | None:
    """Return what makes guides of a kind, None for none.

    Parameters
    ----------
    kind : str
        One of `GUIDES`.
    task : SplitTask
        Gives public samples, or the shape of noise.
    seed : int
        Of the noise, and of the draws.
    half, vector : nn.Module, ParameterVector
        As in `GuideMaker`.
    samples : int
        Inputs of a round; 0 for all.
    form, momentum : str, float
        As in `GuideMaker`.

    Raises
    ------
    ConfigError
        If the task has no public samples, no noise can stand in for its inputs, the client half
        cannot run them, or there are fewer than a round draws.
    """
    if kind == "none":
        return None
    if kind == "noise":
        because = f"guide is 'noise' and task {task.name!r}"
        instead = "use guide=public, for the task has public samples"
        x = noise_inputs(task, "guide noise", seed, because, instead)
    elif task.public is None:
        raise ConfigError(
            f"guide is 'public', but task {task.name!r} has no public samples; give it public=, a "
            "function that returns Samples which are nobody's secret, or use guide=noise or none."
        )
    else:
        x = public_inputs(task)
    maker = GuideMaker(half, vector, x.to(device_of(half)), samples, seed, form, momentum)
    maker.check()
    return maker


def guided_entry(
    mirror: Mirror,
    entry: Entry,
    coefficients: NDArray[np.float64],
    guide: Guide,
    along: float,
    rest: float,
) -> Entry:
    """Return an entry with a guide in it, and what of its own directions is off the guide.

    Parameters
    ----------
    mirror : Mirror
        Of the journal that the entry is for.
    entry : Entry
        Without the guide.
    coefficients : numpy.ndarray
        Its coefficients before they were rounded, float64.
    guide, along, rest : Guide, float, float
        As in `guided`.

    Raises
    ------
    JournalError
        If a coefficient leaves its range.
    """
    header = mirror.journal.header
    directions = sealed(mirror.vector.directions(header.run_key, header.law), entry.seal)
    found, own = guided(list(entry.keys()), coefficients, directions, guide, along, rest)
    return replace(entry, coefficients=found.astype(np.float32), guide=own)


def _rows(z: Tensor) -> Tensor:
    """Return the features of each position of [n, channels, h, w] or [n, t, features] as a row."""
    last = z.movedim(1, -1) if z.dim() > 3 else z
    return last.reshape(-1, last.shape[-1])


def _unrows(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return what `_rows` gave for a tensor of this shape."""
    if len(shape) <= 3:
        return rows.reshape(shape)
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _alive(rows: Tensor) -> Tensor:
    """Return which rows are not all 0."""
    return rows.any(dim=1).nonzero()[:, 0]


def _nearest(near: Tensor, rows: Tensor) -> Tensor:
    """Return for each row which one of `near` is nearest."""
    half = near.square().sum(1) / 2
    return torch.cat([(half - part @ near.t()).argmin(1) for part in rows.split(_POSITIONS)])
