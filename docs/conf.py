from importlib.metadata import version as installed

project = "sciml"
author = "the sciml authors"
release = version = installed("sciml-torch")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
