"""What a guide is made of q, the gradient that the server sees on public inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from sfl_flower.zo.law import Shapes

__all__ = ["FORMS", "orthogonal"]

_FLOOR = 1e-3
"""Share of a matrix's norm below which a singular value is noise and is not raised to 1."""


def orthogonal(q: Tensor, shapes: Shapes) -> Tensor:
    """Return q with the singular values of each matrix made equal (Muon's step).

    A gradient of a layer has few large singular values, and what they say drowns the rest; with
    all of them equal a guide goes as far along what the small ones say.  A tensor of more
    dimensions is the matrix of its rows, one of a single dimension is one row.  The elements of a
    matrix of full rank and m columns then have a root mean square of 1 / √m, whatever q's were.

    Parameters
    ----------
    q : Tensor
        float32, flat.
    shapes : tuple of tuple of int
        Of the tensors that it holds, in its order.

    Returns
    -------
    Tensor
        float32, flat; 0 for each tensor that is 0, and not finite where q is not.

    References
    ----------
    K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
    """
    parts, start = [], 0
    for shape in shapes:
        size = torch.Size(shape).numel()
        part = q[start : start + size]
        parts.append(_level(part.reshape(shape[0] if len(shape) > 1 else 1, -1)).reshape(-1))
        start += size
    return torch.cat(parts)


def _level(matrix: Tensor) -> Tensor:
    """Return a matrix with each singular value s raised to s / max(s, floor), times √(n/m) if tall.

    By the eigenvectors V of its smaller Gram matrix: V diag(1 / max(s, floor)) Vᵀ times the matrix.
    """
    rows, columns = matrix.shape
    wide = matrix.double() if rows <= columns else matrix.double().t()
    if not torch.isfinite(wide).all():
        return torch.full_like(matrix, torch.nan)
    squares, vectors = torch.linalg.eigh(wide @ wide.t())
    floor = _FLOOR**2 * float(squares.clamp_min(0).sum())
    if not floor:
        return torch.zeros_like(matrix)
    level: Tensor = vectors * squares.clamp_min(floor).rsqrt() @ (vectors.t() @ wide)
    found = level if rows <= columns else level.t() * (rows / columns) ** 0.5
    return found.to(matrix.dtype)


FORMS: Mapping[str, Callable[[Tensor, Shapes], Tensor]] = MappingProxyType(
    {"gradient": lambda q, shapes: q, "orthogonal": orthogonal}
)
"""By name, from q and the shapes of its tensors to what a guide lies towards."""
