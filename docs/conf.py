import re
from importlib.metadata import version as installed

project = "sciml"
author = "the sciml authors"
release = version = installed("sciml-torch")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
default_role = "code"
autodoc_typehints = "description"


def escape_shapes(app, what, name, obj, options, lines):
    """Shapes such as (b, *x) and norms such as |y| are text, not reStructuredText."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"(?<!\*)\*(?=[a-z])|\|", r"\\\g<0>", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", escape_shapes, priority=900)  # after napoleon
