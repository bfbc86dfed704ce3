"""Scientific machine learning in PyTorch: neural ODEs, operators and their kin on one integrator core."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
_packages = {"calculus", "data", "models", "problems", "solvers", "training"}
__all__ = ["__version__", *(name for name in _names if name not in _packages)]
