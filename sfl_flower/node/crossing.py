"""What crosses from the part of a half that no probe moves, kept between two messages.

A client of HO-SFL runs its anchor in one message and its probes in another.  Where the values are
few it keeps them beside z, so that the first part runs once a mini-batch.  They are a cache: what
is lost is computed again, to the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfl_flower.node.node import Node
from sfl_flower.split.prefix import CROSSING_SHARE, Values
from sfl_flower.training.device import to_array

__all__ = ["keep_crossing", "kept_crossing"]

_KINDS = (torch.float32, torch.float16, torch.int64, torch.int32, torch.bool)


def keep_crossing(
    node: Node, round: int, of: int, step: int, first: int, values: Values, z: Tensor
) -> None:
    """Keep what crosses in a micro-batch, where it is tensors and they are few.

    Parameters
    ----------
    node : Node
        The client.
    round, step : int
        They name the mini-batch.
    of : int
        Micro-batches of the round.
    first : int
        The first sample of the micro-batch.
    values : sequence
        What crosses.
    z : Tensor
        Smashed data of the micro-batch.
    """
    name = _name(step, first)
    # Other strides are other kernels, and so other bits; an array has those of C.
    plain = all(isinstance(v, Tensor) and v.is_contiguous() and v.dtype in _KINDS for v in values)
    if not plain or sum(value.nbytes for value in values) > CROSSING_SHARE * z.nbytes:
        node.store.drop(name)
        return
    arrays = {str(at): to_array(value) for at, value in enumerate(values)}
    arrays["at"] = np.array([round, first, len(z)], dtype=np.int64)
    node.store.put(name, arrays, groups=of)


def kept_crossing(node: Node, round: int, step: int, rows: slice) -> list[Tensor] | None:
    """Return, and forget, what crossed in a micro-batch; None where it was not kept."""
    name = _name(step, rows.start)
    found = node.store.get(name)
    node.store.drop(name)
    if found is None or found.pop("at").tolist() != [round, rows.start, rows.stop - rows.start]:
        return None
    # Copies in torch's own memory, where the same kernels run.
    return [torch.tensor(found[str(at)]).to(node.device) for at in range(len(found))]


def _name(step: int, first: int) -> str:
    return f"crossing {step} {first}"
