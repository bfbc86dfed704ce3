"""Equations: to integrate, from random initial conditions, or to train a network on; with exact solutions if known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
