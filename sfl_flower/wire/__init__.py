"""What crosses the network: typed messages, their codecs and the ledger.

Names are imported at first use, and listed in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
