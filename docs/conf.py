"""Settings of the documentation site; ``make docs`` builds it, and a warning is an error."""

import headwise

project = "headwise"
author = "The headwise developers"
copyright = "2026, The headwise developers"
version = release = headwise.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# One page per name, made from the docstrings of the built package.
autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"headwise {release}"
