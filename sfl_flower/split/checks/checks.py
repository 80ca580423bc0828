"""Find what breaks a zeroth-order client before training starts, and say how to mend it.

A zeroth-order gradient is a difference of forwards on one batch: it means something only if the
forward is a function of the parameters and the batch alone, the same for the anchor and for every
probe. Randomness, batch statistics and state that a forward changes all break that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split.checks.graph_checks import operation_problems
from sfl_flower.split.checks.layer_checks import EVAL_FIX, layer_problem
from sfl_flower.split.checks.problem import Problem
from sfl_flower.split.graph.equality import same
from sfl_flower.split.graph.half import Half
from sfl_flower.split.parameters.batch_norm import freeze_batch_norm, moving_statistics

__all__ = ["Problem", "check_zeroth_order", "freeze_batch_norm", "problems"]

_SHOWN = 3


def check_zeroth_order(
    client_half: nn.Module,
    *,
    frozen_ok: bool = False,
    statistics_ok: bool = False,
    example: tuple[Tensor, ...] | None = None,
) -> None:
    """Refuse a client half that forwards alone cannot train, and say how to mend it.

    Parameters
    ----------
    client_half : nn.Module
        The client half, in the modes it will have in training.
    frozen_ok : bool
        Accept a half without any trainable parameter.
    statistics_ok : bool
        Accept BatchNorm in train mode that keeps running statistics: each forward normalises with
        its own batch, and the caller sees to what they become.
    example : tuple of Tensor, optional
        A batch; with it, the half is also run twice and must give the same output and leave its
        state as it was.

    Raises
    ------
    CutError
        Listing every problem and its remedy.
    """
    found = problems(client_half, example=example, frozen_ok=frozen_ok, statistics_ok=statistics_ok)
    if not found:
        return
    grouped: dict[tuple[str, str], list[str]] = {}
    for problem in found:
        grouped.setdefault((problem.what, problem.fix), []).append(problem.layer)
    sentences = [f"{_layers(names)}: {what}; {fix}" for (what, fix), names in grouped.items()]
    raise CutError("this client half cannot be trained by forwards: " + ". ".join(sentences) + ".")


def problems(
    client_half: nn.Module,
    *,
    example: tuple[Tensor, ...] | None = None,
    frozen_ok: bool = False,
    statistics_ok: bool = False,
) -> list[Problem]:
    """List what breaks zeroth-order training of ``client_half``, in the modes it is in now.

    Parameters
    ----------
    client_half : nn.Module
        A client half from ``cut``, or any module.
    example : tuple of Tensor, optional
        A batch to run the half on, twice, to find what only running shows; the half, the batch
        and the random generators stay as they are.
    frozen_ok : bool
        Accept a half without any trainable parameter.
    statistics_ok : bool
        Accept BatchNorm in train mode; see `check_zeroth_order`.

    Returns
    -------
    list of Problem
        Empty if the half can be trained.
    """
    moved = moving_statistics(client_half) if statistics_ok else {}
    norms = {name.rpartition(".")[0] for name in moved}
    judged = [
        layer_problem(name, module)
        for name, module in client_half.named_modules()
        if name not in norms or not moved
    ]
    found = [problem for problem in judged if problem is not None]
    if isinstance(client_half, Half):
        found += operation_problems(client_half)
    found += _parameter_problems(client_half, frozen_ok)
    if example is not None and all(_is_about_parameters(problem) for problem in found):
        found += _running_problems(client_half, example, moved.keys())
    return found


_FP32_FIX = "call .float() on it inside model()"
_REAL_FIX = "keep its real and imaginary part as two float32 parameters (torch.complex joins them)"


def _is_about_parameters(problem: Problem) -> bool:
    return problem.fix in (_FP32_FIX, _REAL_FIX) or problem.layer == ""


def _parameter_problems(half: nn.Module, frozen_ok: bool) -> list[Problem]:
    trainable = {name: p for name, p in half.named_parameters() if p.requires_grad}
    if not trainable and not frozen_ok:
        what = "it has no trainable parameter"
        return [
            Problem(
                "",
                what,
                "cut at a later layer, or set requires_grad on its parameters inside model()",
            )
        ]
    return [
        Problem(
            name,
            f"trained in {str(p.dtype).removeprefix('torch.')}, not float32",
            _REAL_FIX if p.is_complex() else _FP32_FIX,
        )
        for name, p in trainable.items()
        if p.dtype != torch.float32
    ]


def _running_problems(
    half: nn.Module, example: tuple[Tensor, ...], moved: Collection[str]
) -> list[Problem]:
    """Forward twice on ``example`` and compare outputs, the batch and the state, bit for bit.

    What is named in `moved` may change.
    """
    module = copy.deepcopy(half)
    batch = tuple(tensor.clone() for tensor in example)
    outputs: list[list[tuple[str, Any]]] = []

    def remember(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kept = output.clone() if isinstance(output, Tensor) else output
            outputs[-1].append((name or "", kept))

        return hook

    for name, layer in module.named_modules():
        layer.register_forward_hook(remember(name))
    state = {name: tensor.clone() for name, tensor in _tensors(module).items()}
    fork = sorted({p.get_device() for p in module.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=fork), torch.no_grad():
            for _ in range(2):
                outputs.append([])
                module(*batch)
    except Exception as error:
        raise CutError(f"the client half does not run on the example batch: {error}") from error
    after = _tensors(module)
    found = [
        Problem(name, "a forward changes it", f"{EVAL_FIX}, or cut before it")
        for name, tensor in state.items()
        if name not in moved and (name not in after or not same(tensor, after[name]))
    ]
    first, second = outputs
    differing = [a[0] for a, b in zip(first, second, strict=False) if a[0] and not same(a[1], b[1])]
    if differing or len(first) != len(second) or not same(first[-1][1], second[-1][1]):
        what = "two forwards on one batch differ"
        fix = "remove its randomness and its state, or cut before it"
        found.append(Problem(differing[0] if differing else "", what, fix))
    if not same(batch, example):
        what, fix = "it writes into its input batch", "clone the input first"
        found.append(Problem("", what, fix))
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _layers(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" if name else "as a whole" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
