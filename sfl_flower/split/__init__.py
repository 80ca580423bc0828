"""Cutting a model in two, and finding what would break a client that only runs forwards.

Names are imported at first use, and listed in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
