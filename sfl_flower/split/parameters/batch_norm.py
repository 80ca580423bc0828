"""BatchNorm that stays in eval mode for good, so that a zeroth-order client can hold it."""

from __future__ import annotations

from typing import Self, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sfl_flower.errors import CutError

__all__ = ["freeze_batch_norm", "is_frozen_norm", "moving_statistics"]

M = TypeVar("M", bound=nn.Module)


class _StaysInEval(nn.Module):
    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class FrozenBatchNorm1d(_StaysInEval, nn.BatchNorm1d):
    """``BatchNorm1d`` that ignores ``train()``."""


class FrozenBatchNorm2d(_StaysInEval, nn.BatchNorm2d):
    """``BatchNorm2d`` that ignores ``train()``."""


class FrozenBatchNorm3d(_StaysInEval, nn.BatchNorm3d):
    """``BatchNorm3d`` that ignores ``train()``."""


class FrozenSyncBatchNorm(_StaysInEval, nn.SyncBatchNorm):
    """``SyncBatchNorm`` that ignores ``train()``."""


_FROZEN: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    nn.SyncBatchNorm: FrozenSyncBatchNorm,
}


def freeze_batch_norm(module: M) -> M:
    """Put every BatchNorm in ``module`` in eval mode for good and stop training its affine part.

    Works in place, on a whole model before the cut or on a half after it. Names in the state
    dictionary stay; later calls of ``train()`` leave these layers in eval mode.

    Returns
    -------
    nn.Module
        ``module`` itself.

    Raises
    ------
    CutError
        If a BatchNorm keeps no running statistics, or is of a class of the user's own.
    """
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, _BatchNorm)]
    for name, layer in layers:
        if layer.running_mean is None:
            raise CutError(
                f"'{name}' keeps no running statistics and cannot be frozen; use "
                "track_running_stats=True before training, or GroupNorm."
            )
        if not isinstance(layer, _StaysInEval) and type(layer) not in _FROZEN:
            raise CutError(
                f"'{name}' is a {type(layer).__name__}, which freeze_batch_norm does not know; "
                "use one of torch's own BatchNorm layers, or GroupNorm."
            )
    for _, layer in layers:
        layer.__class__ = _FROZEN.get(type(layer), type(layer))
        layer.eval()
        layer.requires_grad_(False)
    return module


def moving_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return what BatchNorm in train mode keeps and every forward moves, by name.

    Returns
    -------
    dict of str to Tensor
        Running means and variances, and the counters of batches; the module's own tensors.
    """
    return {
        f"{name}.{kind}" if name else kind: value
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
        for kind, value in layer.named_buffers(recurse=False)
        if kind in ("running_mean", "running_var", "num_batches_tracked")
    }


def is_frozen_norm(module: nn.Module) -> bool:
    """Tell whether a layer is BatchNorm that `freeze_batch_norm` froze: it never changes."""
    return isinstance(module, _StaysInEval)
