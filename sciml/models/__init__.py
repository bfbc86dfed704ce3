"""Networks: maps between fields, and vector fields with weights."""

import lazy_loader

if __name__ != "sciml.models":
    raise ImportError(f"import sciml.models, not {__name__}: the folder at the root is only a link to it")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
