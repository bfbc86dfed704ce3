"""Data for training: in-memory fields, their generation, and a loader whose position can be saved."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
