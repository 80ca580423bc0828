"""What crosses the network: typed messages, their codecs and the ledger.

Names are imported at first use, and stand in ``__init__.pyi`` for type checkers.
"""

import lazy_loader

_NAMES = {
    "answer": ["check_answer"],
    "common": [
        "JoinReply",
        "JoinRequest",
        "Setup",
        "StaleReply",
        "Sync",
        "UnknownTerms",
        "is_stale",
        "lacks_terms",
    ],
    "ledger": ["CATEGORIES", "Ledger", "content_bytes"],
    "message": ["Reply", "Request"],
    "reader": ["Reader"],
    "usage": ["METERS", "NO_USAGE", "Usage"],
    "weights": ["pack_state", "state_bytes", "unpack_state"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_NAMES)
