"""What single layers do that a zeroth-order client cannot live with."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from sfl_flower.split.checks.problem import Problem

__all__ = ["EVAL_FIX", "RANDOM_FIX", "layer_problem"]

EVAL_FIX = "set client-mode=eval (by hand: put it in eval mode)"
RANDOM_FIX = f"{EVAL_FIX}, set its rate to 0 inside model(), or cut before it"
_NORM_FIX = f"{EVAL_FIX}, call freeze_batch_norm inside model(), or use GroupNorm instead"
_SPECTRAL = (parametrizations._SpectralNorm, SpectralNorm)


def layer_problem(name: str, module: nn.Module) -> Problem | None:
    """Judge one module by its own attributes, without looking into its children."""
    if isinstance(module, _NormBase):
        return _norm(name, module)
    if _is_random(module):
        kind = type(module).__name__
        return Problem(name, f"{kind} draws anew in every forward", RANDOM_FIX)
    rate = _rate_of_transformers(module)
    if rate:
        return Problem(name, f"its `{rate}` draws anew in every forward", RANDOM_FIX)
    hooks = module._forward_pre_hooks.values()
    if module.training and any(isinstance(value, _SPECTRAL) for value in (module, *hooks)):
        what = "spectral norm in train mode changes its buffers in every forward"
        return Problem(name, what, f"{EVAL_FIX}, or remove the parametrisation")
    return None


def _norm(name: str, module: _NormBase) -> Problem | None:
    kind = type(module).__name__
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        what = f"{kind} without running statistics mixes the samples of a batch in every mode"
        return Problem(name, what, "use GroupNorm, or BatchNorm with track_running_stats=True")
    if not module.training or (not isinstance(module, _BatchNorm) and module.running_mean is None):
        return None
    what = f"{kind} in train mode updates its running statistics in every forward"
    if isinstance(module, _BatchNorm):
        what += ", and mixes the samples of a batch"
        return Problem(name, what, _NORM_FIX)
    return Problem(name, what, f"{EVAL_FIX}, or set track_running_stats=False")


def _is_random(module: nn.Module) -> bool:
    if isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
        return module._random_samples is None
    if not module.training:
        return False
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RReLU):
        return module.lower != module.upper
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    return False


def _rate_of_transformers(module: nn.Module) -> str:
    """Name the dropout rate that a layer of transformers keeps as a number; empty if none is on."""
    home = type(module).__module__ or ""
    if not module.training or not home.startswith("transformers."):
        return ""
    for name, value in vars(module).items():
        if ("dropout" in name or name == "layerdrop") and isinstance(value, float) and value > 0:
            return name
    return ""
