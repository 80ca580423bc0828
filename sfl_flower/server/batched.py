"""Mini-batches of several clients in one forward and backward of the server half.

Where the server half steps once a round with the mean gradient, it does not matter how many
mini-batches run at one time, as long as no sample bears on another's output: each client's λ and
the sum of the gradients are those of one mini-batch after another, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError
from sfl_flower.server.setup import TRIED, apart
from sfl_flower.server.trainer import Batch, Gradients, Trainer
from sfl_flower.training.modes import changes_by_mode, kept_buffers

__all__ = ["check_together", "groups", "run_together"]

COUPLED = 5e-3
"""How far apart outputs may be, as a share of the largest value: by rounding, a GPU's TF32 too."""


def groups(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield places of neighbours that have at most so many samples together; at least one each.

    Parameters
    ----------
    sizes : sequence of int
        Samples of each.
    most : int
        The most samples of a group of several.
    """
    start = held = 0
    for place, size in enumerate(sizes):
        if place > start and held + size > most:
            yield slice(start, place)
            start, held = place, 0
        held += size
    if sizes:
        yield slice(start, len(sizes))


def run_together(
    trainer: Trainer, batches: Sequence[Batch], shares: Sequence[float], most: int
) -> tuple[list[Gradients], list[Tensor]]:
    """Run mini-batches forward and back, at most so many samples at one time.

    Parameters
    ----------
    trainer : Trainer
        The server half.
    batches : sequence of Batch
        The mini-batches, not empty; a larger one than `most` runs alone.
    shares : sequence of float
        How much each counts in the sum of the gradients, above 0.
    most : int
        Samples.

    Returns
    -------
    found : list of Gradients
        λ and loss of each, as `Trainer.together` gives them.
    weights : list of Tensor
        The sum of shares times gradients at each trainable parameter.

    Raises
    ------
    WireError
        If one of them cannot be used.
    """
    found: list[Gradients] = []
    weights: list[Tensor] = []
    for group in groups([len(y) for _, y, _ in batches], most):
        parts, more = trainer.together(batches[group], shares[group])
        found += parts
        if weights:
            torch._foreach_add_(weights, more)
        else:
            weights = more
    return found, weights


def check_together(
    trainer: Trainer, z: Callable[[int], Tensor], seed: int, most: int, task: str
) -> None:
    """Refuse to run mini-batches together where samples bear on one another's outputs.

    Parameters
    ----------
    trainer : Trainer
        The server half, in the modes it trains in.
    z : callable
        Gives smashed data of so many samples, on its device.
    seed : int
        Of what it draws.
    most : int
        `server_batch`, for the error.
    task : str
        The task's name, for the error.

    Raises
    ------
    ConfigError
        If BatchNorm normalises with its mini-batch, dropout draws by mini-batch, or the outputs of
        samples depend on what runs beside them.
    """
    said, instead = f"server_batch is {most}", "leave server_batch 0"
    for name, layer in trainer.module.named_modules():
        if not list(layer.children()) and changes_by_mode(layer):
            raise ConfigError(
                f"{said}, but '{name}' of the server half ({type(layer).__name__} in train mode) "
                f"needs each client's mini-batch for itself; {instead}, or take a model without it."
            )
    tried = z(TRIED)
    half = len(tried) // 2

    def run(part: Tensor, word: int) -> Tensor:
        with torch.no_grad(), kept_buffers(trainer.module), seeded_torch("together", seed, word):
            output = trainer.module(part)
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(part):
            raise ConfigError(
                f"{said}, but the server half of task '{task}' gives no tensor with a row for each "
                f"sample, which could be divided by client; {instead}."
            )
        return output

    # Other words, other draws: dropout that is no layer shows as well.
    alone = torch.cat([run(tried[:half], 1), run(tried[half:], 2)])
    if apart(alone, run(tried, 3), COUPLED):
        raise ConfigError(
            f"{said}, but the server half of task '{task}' gives other outputs for a sample beside "
            f"other samples, or each time; {instead}."
        )
