"""Split federated learning with forward-only clients, on Flower.

Names are imported at first use, and listed in ``__init__.pyi``: a client app must not load
comparisons, plots or rich.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
