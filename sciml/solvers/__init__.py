"""Integrators of differential equations.

A *stepper* advances a *term* by one step, a *controller* chooses the steps, *folds* read them, an *adjoint*
differentiates; `sciml.solve` puts them together.
"""

import lazy_loader

if __name__ != "sciml.solvers":
    raise ImportError(f"import sciml.solvers, not {__name__}: the folder at the root is only a link to it")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
