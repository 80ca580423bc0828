"""The client half as ONNX, for devices that run no torch."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.split import load_dequantised
from sfl_flower.split.transformers.block_halves import ClientBlocks
from sfl_flower.task import SplitTask

__all__ = ["OnnxHalf", "client_onnx"]

_SAMPLES = 8
_TOLERANCE = 1e-3
"""How far onnxruntime may be from torch, of the largest value."""


@dataclass(frozen=True)
class OnnxHalf:
    """A client half as ONNX.

    Attributes
    ----------
    data : bytes
        The file.
    facts : Mapping[str, Any]
        Names and shapes of input and output, and how far onnxruntime is from torch.
    """

    data: bytes
    facts: Mapping[str, Any]


class _Named(nn.Module):
    """The client half with an argument that has a name."""

    def __init__(self, client: nn.Module) -> None:
        super().__init__()
        self.client = client

    def forward(self, x: Tensor) -> Tensor:
        """Return smashed data."""
        z: Tensor = self.client(x)
        return z


def client_onnx(task: SplitTask, seed: int, state: Mapping[str, Tensor]) -> OnnxHalf:
    """Return the client half, in eval mode, having run it in onnxruntime beside torch.

    Parameters
    ----------
    task : SplitTask
        The run's.
    seed : int
        The model's seed.
    state : mapping of str to Tensor
        Weights of the whole model.

    Returns
    -------
    OnnxHalf
        Its inputs may have any number of samples.

    Raises
    ------
    ConfigError
        If a package is missing, or the half has no form in ONNX.
    TrainingError
        If onnxruntime gives something else than torch.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        problem = f"ONNX needs the package {error.name}; run `pip install 'sfl-flower[onnx]'`"
        raise ConfigError(
            f"{problem}, or leave out onnx=True.", shell=f"{problem}, or leave out --onnx."
        ) from error
    client = task.with_trained("all").build(seed).client.eval()
    load_dequantised(client, state)
    for module in client.modules():
        if isinstance(module, ClientBlocks):
            module.trims = False
    samples = task.samples("test")
    x = task.batch(samples, slice(0, _SAMPLES))[0]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Named(client), (x,), dynamo=True, verbose=False, input_names=["x"],
                output_names=["z"], dynamic_shapes={"x": {0: torch.export.Dim("samples")}},
            )  # fmt: skip
        assert program is not None
        data = program.model_proto.SerializeToString()
        onnx.checker.check_model(data)
    except Exception as error:  # torch.onnx raises what it likes
        reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
        raise ConfigError(
            f"The client half of task '{task.name}' has no form in ONNX: {reason}; export it "
            "without, or cut the model at another layer."
        ) from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    apart, largest = 0.0, 0.0
    for count in dict.fromkeys((len(x), 1)):
        with torch.no_grad():
            ours = client(x[:count]).numpy()
        (theirs,) = session.run(["z"], {"x": x[:count].numpy()})
        apart = max(apart, float(np.abs(theirs - ours).max()))
        largest = max(largest, float(np.abs(ours).max()))
    if not apart <= _TOLERANCE * max(largest, 1e-6):
        raise TrainingError(
            f"onnxruntime gives other smashed data than torch: {apart:.3g} apart at most, where "
            f"the largest value is {largest:.3g}; the client half is not written as ONNX."
        )
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    facts = {
        "input": f"x: {given.type} {given.shape}", "output": f"z: {made.type} {made.shape}",
        "samples": len(x), "largest_difference": apart, "largest_value": largest,
    }  # fmt: skip
    return OnnxHalf(data, facts)
