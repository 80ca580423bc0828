"""Standard normal values on a device of torch, with the bits of `sfl_flower.zo.gaussian`.

The same operations one by one, each correctly rounded wherever float64 is: a division is one of two
tensors, for torch multiplies by the reciprocal where the divisor is a number.  Both branches of the
quantile are computed everywhere, since to pick elements would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfl_flower.zo.gaussian import (
    CENTRAL,
    LN2_HIGH,
    LN2_LOW,
    LOG_SERIES,
    SQRT_HALF,
    TAIL,
    TAIL_FROM,
)

__all__ = ["normals_on"]

_HALF = (1 << 32) - 1


def normals_on(halves: Tensor) -> Tensor:
    """Turn 32-bit halves of words into standard normal values, one per half.

    Parameters
    ----------
    halves : Tensor
        int32 with the bits of the halves, one dimension.

    Returns
    -------
    Tensor
        float32 on the same device.
    """
    p = (halves.to(torch.int64) & _HALF).to(torch.float64).add_(0.5).mul_(2.0**-32)
    q = p - 0.5
    central = _ratio(CENTRAL, 0.180625 - q * q).mul_(q)
    r = _log(torch.minimum(p, 1.0 - p)).neg_().sqrt_()
    tail = torch.copysign(_ratio(TAIL, r.sub_(1.6)), q)
    return torch.where(q.abs() > TAIL_FROM, tail, central).to(torch.float32)


def _log(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    low = mantissa < SQRT_HALF
    mantissa = torch.where(low, mantissa * 2.0, mantissa)
    power = (exponent - low.to(exponent.dtype)).to(torch.float64)
    f = (mantissa - 1.0).div_(mantissa + 1.0)
    series = _horner(LOG_SERIES, f * f)
    small = f.mul_(series).add_(power * LN2_LOW)
    return power.mul_(LN2_HIGH).add_(small)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total.mul_(x).add_(coefficient)
    return total


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    return _horner(coefficients[0], x).div_(_horner(coefficients[1], x))
