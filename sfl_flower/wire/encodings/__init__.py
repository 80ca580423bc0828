"""How smashed data and cut gradients travel: `encoding_of` reads the name of a way.

A name is up to three parts with ``+`` between them, each optional but one: which values travel, as
what numbers, and whether their bytes are compressed: ``int8``, ``topk:0.1+int8``, ``int4+deflate``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from sfl_flower.errors import ConfigError
from sfl_flower.wire.encodings.encoding import Encoding

__all__ = ["FORMATS", "LONGEST", "SAYS", "Encoding", "encoding_of"]

FORMATS = {
    "float32": "floats:Float32",
    "float16": "floats:Float16",
    "bfloat16": "floats:BFloat16",
    "int8": "integers:Int8",
    "int4": "integers:Int4",
    "uniform": "uniform:Uniform",
}
"""What numbers may become, by name; imported when a run wants it, as the others."""
STEPPED = "uniform"
"""The one with a number behind its name, the step."""
SPARSE = {"topk": "topk:TopK", "randtopk": "topk:RandomTopK"}
"""How the values that travel may be chosen, by name."""
DEFLATE = "deflate:Deflate"
SAYS = (
    f"one of {', '.join(name for name in FORMATS if name != STEPPED)} or {STEPPED}:S (S of 0.01 to "
    "100), with topk:S+ or randtopk:S+ before it (S above 0, at most 1) and +deflate behind it "
    "where wanted, as in topk:0.1+int8+deflate"
)
"""What a name looks like."""
LONGEST = 64
"""Letters of the longest name."""
_NAME = re.compile(
    rf"(?:(?P<sparse>{'|'.join(SPARSE)}):(?P<share>[0-9]*\.?[0-9]+)\+)?"
    rf"(?P<format>{'|'.join(FORMATS)})(?::(?P<step>[0-9]*\.?[0-9]+))?(?P<deflate>\+deflate)?"
)


@lru_cache(64)
def encoding_of(name: str, option: str = "an encoding") -> Encoding:
    """Return the encoding of that name.

    Parameters
    ----------
    name : str
        The name.
    option : str
        What gives it, for the error.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found = _NAME.fullmatch(name) if len(name) <= LONGEST else None
    if (
        found is None
        or not 0 < float(found["share"] or 1) <= 1
        or (found["format"] == STEPPED) != (found["step"] is not None)
        or not 0.01 <= float(found["step"] or 1) <= 100
    ):
        raise ConfigError(f"{option} is '{name}'; it must be {SAYS}.")
    sparse = _named(SPARSE[found["sparse"]])(float(found["share"])) if found["sparse"] else None
    deflate = _named(DEFLATE)() if found["deflate"] else None
    step = [float(found["step"])] if found["step"] else []
    return Encoding(name, _named(FORMATS[found["format"]])(*step), sparse, deflate)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), name)
