"""Linear algebra: operators, direct solves for small systems, Krylov methods and preconditioners for large ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
