"""Standard normal values with the same bits on every IEEE machine.

The inverse of the normal distribution function is evaluated by Wichura's rational
approximations (Algorithm AS 241, PPND16, Applied Statistics 37, 1988) in float64. Only
``+ - * /`` and ``sqrt`` are used, each as its own array operation, so every intermediate is
correctly rounded and nothing is contracted into a fused multiply-add. The logarithm is our own
for the same reason: the C library's differs between machines in the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CENTRAL", "LN2_HIGH", "LN2_LOW", "LOG_SERIES", "SQRT_HALF", "TAIL", "TAIL_FROM",
    "log", "normal_quantile", "normals",
]  # fmt: skip

F64 = NDArray[np.float64]

# AS 241 PPND16: numerator and denominator, constant term first, for |p - 1/2| <= 0.425 ...
CENTRAL = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
# ... for r = sqrt(-log min(p, 1 - p)) <= 5 ...
TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
# ... and beyond. With p = (w + 1/2) / 2**32, r stays below 4.8: the third set is never needed.
LN2_HIGH = 6.93147180369123816490e-01  # 33 bits: times a small integer it is exact
LN2_LOW = 1.90821492927058770002e-10
SQRT_HALF = 0.7071067811865476
LOG_SERIES = tuple(2.0 / (2 * k + 1) for k in range(11))  # next term < 0.1716**24 / 25 < 2e-20
TAIL_FROM = 0.425


def _horner(coefficients: tuple[float, ...], x: F64) -> F64:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        np.multiply(total, x, out=total)
        np.add(total, coefficient, out=total)
    return total


def log(x: F64) -> F64:
    """Natural logarithm of positive normal float64 values, by exponent and an atanh series."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < SQRT_HALF
    mantissa = np.where(low, np.multiply(mantissa, 2.0), mantissa)
    power = np.subtract(exponent, low).astype(np.float64)
    f = np.divide(np.subtract(mantissa, 1.0), np.add(mantissa, 1.0))
    series = _horner(LOG_SERIES, np.multiply(f, f))
    small = np.add(np.multiply(f, series), np.multiply(power, LN2_LOW))
    return np.add(np.multiply(power, LN2_HIGH), small)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: F64) -> F64:
    return np.divide(_horner(coefficients[0], x), _horner(coefficients[1], x))


def normal_quantile(p: F64) -> F64:
    """Inverse of the standard normal distribution function.

    Parameters
    ----------
    p : numpy.ndarray
        float64, any shape, ``exp(-25) <= p <= 1 - exp(-25)`` (the range of `normals`).
    """
    q = np.subtract(p, 0.5)
    central = np.multiply(q, _ratio(CENTRAL, np.subtract(0.180625, np.multiply(q, q))))
    (tail,) = np.nonzero(np.abs(q) > TAIL_FROM)
    nearest = np.minimum(p[tail], np.subtract(1.0, p[tail]))
    r = np.sqrt(np.negative(log(nearest)))
    central[tail] = np.copysign(_ratio(TAIL, np.subtract(r, 1.6)), q[tail])
    return central


def normals(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Turn 32-bit words into standard normal float32 values, one per word.

    ``x = quantile((w + 1/2) / 2**32)`` in float64, rounded once to float32; |x| < 6.34.
    """
    p = np.multiply(np.add(words.astype(np.float64), 0.5), 2.0**-32)
    return normal_quantile(p).astype(np.float32)
