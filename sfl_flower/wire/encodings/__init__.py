"""How smashed data and cut gradients travel: `ENCODINGS` lists the ways, a file each."""

from __future__ import annotations

from collections.abc import Mapping

from sfl_flower.wire.encodings.encoding import Encoding
from sfl_flower.wire.encodings.float16 import Float16
from sfl_flower.wire.encodings.float32 import Float32

__all__ = ["ENCODINGS", "Encoding"]

ENCODINGS: Mapping[str, Encoding] = {encoding.name: encoding for encoding in (Float32(), Float16())}
"""By name, as the options `smashed` and `gradients` give it."""
