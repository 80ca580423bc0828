"""What every request of a run repeats: sent once to each client, then named by a digest.

The settings of a request that stay the same from round to round (the run's setup, sizes of
batches, how to probe) are its *terms*.  A client keeps the terms of the requests it has answered
in Flower's context; a request to a client that is known to hold its terms carries their digest in
place of them.  A client that lost them says so (`UnknownTerms`) and is sent the whole request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from flwr.app import ConfigRecord, Context, RecordDict

__all__ = ["TERMS", "keep_terms", "terms_digest", "with_terms"]

TERMS = "terms"
"""Name of the digest in a request, and of what a client keeps in its context."""
KEPT = 16
"""Terms that a client keeps, the last ones."""


def terms_digest(terms: Mapping[str, Any]) -> bytes:
    """Return the name of terms, 8 bytes."""
    return _digest(_text(terms))


def keep_terms(context: Context, terms: Mapping[str, Any]) -> None:
    """Let a client remember the terms of a request."""
    name = terms_digest(terms).hex()
    kept = dict(context.state.config_records.get(TERMS, ConfigRecord()))
    if terms and name not in kept:
        newest = list({**kept, name: _text(terms)}.items())[-KEPT:]
        context.state[TERMS] = ConfigRecord(dict(newest))


def with_terms(context: Context, content: RecordDict) -> RecordDict | None:
    """Return a request with the terms that it names, None where the client does not know them.

    Parameters
    ----------
    context : Context
        Flower's context of the node.
    content : RecordDict
        What arrived; as it is where it names no terms.
    """
    config = content.config_records.get("config")
    name = None if config is None else config.get(TERMS)
    if config is None or not isinstance(name, bytes):
        return content
    kept = context.state.config_records.get(TERMS, ConfigRecord()).get(name.hex())
    if not isinstance(kept, str) or _digest(kept) != name:
        return None
    rest = {key: value for key, value in config.items() if key != TERMS}
    found = RecordDict(dict(content))
    found["config"] = ConfigRecord({**json.loads(kept), **rest})
    return found


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _text(terms: Mapping[str, Any]) -> str:
    return json.dumps(dict(terms), sort_keys=True)
