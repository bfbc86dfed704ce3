"""Training: Lightning modules for each kind of model, and what makes a run resumable."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
