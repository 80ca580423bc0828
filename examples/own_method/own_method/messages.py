"""What crosses the network beside the messages of HO-SFL: one sign a probe."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.wire.fields import Samples, array
from sfl_flower.wire.message import Reply


@dataclass(frozen=True)
class SignReply(Reply):
    """The signs of a client's scalars, int8 [mini-batches, probes]."""

    WHAT: ClassVar[str] = "sign reply"

    round: int
    scalars: Annotated[np.ndarray, array("int8", "scalars", ndim=2)]
    samples: Samples
