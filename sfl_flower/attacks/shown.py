"""How much of its inputs a client shows at each cut, as one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sfl_flower.attacks.attack import attack
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.task import SplitTask

__all__ = ["error_left"]

AUXILIARY, OBSERVED = 600, 10
"""Samples that the attacker has, and of which it sees smashed data alone, which decoders ignore."""


def error_left(
    task: SplitTask, cuts: Sequence[str], watch: Callable[[str], None] | None = None
) -> dict[str, float]:
    """Return what a decoder leaves of a guess's error at each cut, of the task's first weights.

    Parameters
    ----------
    task : SplitTask
        The learning problem; its inputs are numbers.
    cuts : sequence of str
        The cuts.
    watch : callable, optional
        Called with each cut's name before it is attacked.

    Returns
    -------
    dict of str to float
        As `Finding.of_guess`; 0 where no decoder can be tried, of which nothing is known.

    Raises
    ------
    ConfigError
        If inputs are ids, or the package of the attack is missing.

    Examples
    --------
    >>> from sfl_flower import profile
    >>> from sfl_flower.attacks.shown import error_left
    >>> found = profile(task, shown=error_left, least_error=0.5)  # doctest: +SKIP
    """
    most = max(10, (len(task.samples("train")) - OBSERVED) // 2)
    settings = AttackSettings(auxiliary=min(AUXILIARY, most), observed=OBSERVED)
    shares: dict[str, float] = {}
    for at in cuts:
        if watch is not None:
            watch(f"what '{at}' shows")
        report = attack(task, [at], attacks=["decoder"], settings=settings)
        found = [each.of_guess for each in report.cuts[0].findings if each.of_guess is not None]
        shares[at] = min(found, default=0.0)
    return shares
