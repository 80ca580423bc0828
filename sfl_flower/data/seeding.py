"""Randomness that depends on named words and on nothing else.

Partitions, batches and initial weights are pure functions of a seed and of what they are for, so
every process of a run arrives at the same bits without a message and without a shared generator.

The run's seed itself need not leave the server.  Everybody builds the model, so everybody gets the
model's seed, and where the data is divided the division's.  What a client draws (its mini-batches,
augmentation, dropout, directions of its own) follows from a key of its own, and nobody's key says
anything of the seed or of another key.  Those derivations are one way, but a seed that can be
guessed can be tried: `SFL_SECRET` on the server makes its own draws follow from more than the seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "client_key",
    "derive",
    "division_seed",
    "generator",
    "global_states",
    "has_secret",
    "model_seed",
    "put_back",
    "round_seal",
    "secret_mark",
    "seeded_construction",
    "seeded_draws",
    "seeded_torch",
    "server_seed",
    "subspace_draw",
    "torch_states",
]

_BELOW = 2**31
"""Seeds that travel are below this: every generator takes them, and they tell less of the run's."""


def derive(*words: str | int) -> int:
    """Hash words to a 128-bit key.

    Parameters
    ----------
    *words : str or int
        What the key is for, most general first: ``derive("batches", seed, partition, epoch)``.

    Returns
    -------
    int
        0 <= key < 2**128; blake2b of the words, each with its type, so that ``1`` and ``"1"``, or
        ``("a", "b")`` and ``("a,b",)``, give different keys.
    """
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in words)
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*words: str | int) -> np.random.Generator:
    """Return a generator of its own for these words (Philox, keyed by `derive`)."""
    return np.random.Generator(np.random.Philox(key=derive(*words)))


def subspace_draw(seed: int) -> Callable[[str, int, int], np.ndarray]:
    """Return what gives for a layer's name the random matrix [in, columns] of its sketch.

    Parameters
    ----------
    seed : int
        The model's seed.
    """

    def draw(layer: str, width: int, columns: int) -> np.ndarray:
        return generator("subspace sketch", seed, layer).standard_normal((width, columns))

    return draw


def model_seed(seed: int) -> int:
    """Return the seed of the model's first weights, which every client is told."""
    return derive("model", seed) % _BELOW


def division_seed(seed: int) -> int:
    """Return the seed of the data's division, told to every client of a run that divides it."""
    return derive("division", seed) % _BELOW


def server_seed(seed: int) -> int:
    """Return what the server's own draws follow from: the run's seed, with `SFL_SECRET` if set."""
    secret = os.environ.get("SFL_SECRET", "")
    return derive("secret", secret, seed) if secret else seed


def has_secret() -> bool:
    """Tell whether `SFL_SECRET` is set in this process."""
    return bool(os.environ.get("SFL_SECRET", ""))


def client_key(seed: int, partition: int) -> str:
    """Return the key of a client, 32 hexadecimal digits, from which everything it draws follows.

    Parameters
    ----------
    seed : int
        The run's seed.
    partition : int
        The client's partition number.
    """
    return f"{derive('client key', server_seed(seed), partition):032x}"


def round_seal(seed: int, round: int) -> bytes:
    """Return the seal of a round, 16 bytes that no client knows before it is told.

    Parameters
    ----------
    seed : int
        The run's seed.
    round : int
        The round.
    """
    return derive("seal", server_seed(seed), round).to_bytes(16, "little")


def secret_mark(seed: int) -> str:
    """Return a few digits that tell whether two runs of a seed have the same `SFL_SECRET`."""
    return f"{derive('secret mark', server_seed(seed)) % _BELOW:08x}"


@contextmanager
def seeded_torch(*words: str | int) -> Iterator[None]:
    """Let modules draw numbers that depend on these words alone.

    Torch layers, and so every module a user writes, draw their first weights and their dropout
    masks from torch's default generator and offer no argument to pass another one. This is the
    only module of the package that seeds it, the CPU's and, once a process computes on a GPU, that
    GPU's, whose numbers are others; the states found on entry are put back on exit, also after an
    error, so the caller cannot tell that it happened.

    Parameters
    ----------
    *words : str or int
        What the numbers are for, as in `derive`.
    """
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        seed = derive(*words) % 2**63
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def torch_states() -> list[tuple[torch.Generator, Tensor]]:
    """Return the generators that `seeded_torch` seeds, with their states; `put_back` takes them."""
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    return [(generator, generator.get_state()) for generator in generators]


def put_back(states: list[tuple[torch.Generator, Tensor]]) -> None:
    """Let torch's generators go on drawing where they were."""
    for generator, state in states:
        generator.set_state(state)


@contextmanager
def seeded_draws(*words: str | int) -> Iterator[None]:
    """Let a user's function draw numbers that depend on these words alone.

    Data pipelines draw from torch's, Python's or numpy's global generator and offer no argument to
    pass another one. All three are seeded for the block and put back after it.

    Parameters
    ----------
    *words : str or int
        What the numbers are for, as in `derive`.
    """
    python, numpy = random.getstate(), np.random.get_state()
    key = derive(*words)
    try:
        with seeded_torch(*words):
            # A user's own code draws from them; nothing of the package does.
            random.seed(key)  # noqa: TID251
            np.random.seed(key % 2**32)  # noqa: TID251
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: TID251


def global_states() -> tuple[Any, ...]:
    """Return the states of the generators that `seeded_draws` seeds; equal if nothing was drawn."""
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2:]


@contextmanager
def seeded_construction(seed: int) -> Iterator[None]:
    """Build modules whose initial weights depend on `seed` alone.

    Modules are built on the CPU: device generators differ.

    Parameters
    ----------
    seed : int
        The model's seed, any integer.
    """
    with seeded_torch("construction", seed), torch.device("cpu"):
        yield
