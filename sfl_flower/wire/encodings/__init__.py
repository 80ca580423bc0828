"""How smashed data and cut gradients travel: `encoding_of` reads the name of a way.

A name is up to three parts with ``+`` between them, each optional but one: which values travel, as
what numbers, and whether their bytes are compressed: ``int8``, ``topk:0.1+int8``, ``int4+deflate``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from sfl_flower.errors import ConfigError
from sfl_flower.wire.encodings.deflate import Deflate
from sfl_flower.wire.encodings.encoding import Encoding
from sfl_flower.wire.encodings.floats import BFloat16, Float16, Float32
from sfl_flower.wire.encodings.format import Format
from sfl_flower.wire.encodings.integers import Int4, Int8
from sfl_flower.wire.encodings.topk import RandomTopK, TopK

__all__ = ["FORMATS", "LONGEST", "SAYS", "Encoding", "encoding_of"]

FORMATS: Mapping[str, Format] = {
    each.name: each for each in (Float32(), Float16(), BFloat16(), Int8(), Int4())
}
"""What numbers may become, by name."""
SPARSE: Mapping[str, type[TopK]] = {"topk": TopK, "randtopk": RandomTopK}
"""How the values that travel may be chosen, by name."""
SAYS = (
    f"{', '.join(FORMATS)}; before it topk:SHARE+ or randtopk:SHARE+, behind it +deflate, as in "
    "topk:0.1+int8+deflate"
)
"""What a name looks like."""
LONGEST = 64
"""Letters of the longest name."""
_NAME = re.compile(
    rf"(?:(?P<sparse>{'|'.join(SPARSE)}):(?P<share>[0-9]*\.?[0-9]+)\+)?"
    rf"(?P<format>{'|'.join(FORMATS)})(?P<deflate>\+deflate)?"
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
    if found is None or not 0 < float(found["share"] or 1) <= 1:
        raise ConfigError(f"{option} is '{name}'; it must be {SAYS}, a share above 0, at most 1.")
    sparse = SPARSE[found["sparse"]](float(found["share"])) if found["sparse"] else None
    deflate = Deflate() if found["deflate"] else None
    return Encoding(name, FORMATS[found["format"]], sparse, deflate)
