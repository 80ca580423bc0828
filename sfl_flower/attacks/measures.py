"""How close reconstructions come, and how well scores tell labels apart."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import ConfigError

__all__ = ["chance", "check_package", "compared", "ranked"]

MOST_DB = 100.0
"""PSNR of what is equal."""
WINDOW = 11
"""Pixels of a side of SSIM's window, as published; the largest that fits into smaller pictures."""


def check_package() -> None:
    """Refuse to attack where SSIM cannot be had.

    Raises
    ------
    ConfigError
        If the package pytorch-msssim is missing.
    """
    try:
        import pytorch_msssim  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "An attack measures SSIM by the package pytorch-msssim, which is missing; install "
            "sfl-flower[attack]."
        ) from error


def compared(shown: Tensor, truth: Tensor) -> dict[str, float]:
    """Return MSE, PSNR in dB and SSIM of reconstructions.

    Parameters
    ----------
    shown, truth : Tensor
        In 0 .. 1, [N, ...]; SSIM is of pictures [N, C, H, W] of at least 3 x 3 alone.
    """
    shown = shown.expand_as(truth)
    mse = float((shown - truth).square().mean())
    found = {"mse": mse, "psnr": min(MOST_DB, -10 * math.log10(max(mse, 1e-30)))}
    if truth.dim() == 4 and min(truth.shape[2:]) >= 3:
        from pytorch_msssim import ssim

        side = min(WINDOW, min(truth.shape[2:]))
        side -= 1 - side % 2
        values = ssim(shown.contiguous(), truth.contiguous(), data_range=1.0, win_size=side)
        found["ssim"] = float(values)
    return found


def ranked(scores: Tensor, y: Tensor) -> Mapping[str, float]:
    """Return how well scores name classes: accuracy and AUC.

    Parameters
    ----------
    scores : Tensor
        One a class, the highest for the likeliest, [N, classes].
    y : Tensor
        Labels, [N].

    Returns
    -------
    Mapping[str, float]
        ``accuracy``, and ``auc``: that of one class against the rest, mean over the classes of
        which there are some and not all.
    """
    from sklearn.metrics import roc_auc_score

    values, labels = scores.double().numpy(), y.numpy()
    found = {"accuracy": float((values.argmax(1) == labels).mean())}
    areas = [
        roc_auc_score(labels == c, values[:, c] - _others(values, c))
        for c in range(values.shape[1])
        if 0 < (labels == c).sum() < len(labels)
    ]
    if areas:
        found["auc"] = float(np.mean(areas))
    return found


def _others(values: np.ndarray, c: int) -> np.ndarray:
    """Return the best score of the other classes."""
    rest = np.delete(values, c, axis=1)
    return rest.max(axis=1) if rest.shape[1] else np.zeros(len(values))


def chance(y: Tensor, own: Tensor) -> dict[str, float]:
    """Return what naming the commonest label of the attacker's own samples reaches."""
    return {"accuracy": float((y == torch.mode(own).values).float().mean()), "auc": 0.5}
