"""How Sphinx builds the site; `make docs` runs it.

Nothing here needs a network: equations become MathML, which browsers show themselves, and the notebooks were
executed before, by their test.
"""

import sys
from pathlib import Path

import optax_sam

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "optax_sam"
author = "the optax_sam authors"
version = release = optax_sam.__version__
html_title = f"optax_sam {version}"
html_copy_source = html_show_sourcelink = False
html_show_copyright = False

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "docstrings",
    "mathml",
    "repository_pages",
]
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build", "extensions"]

# Links to headings, `page.md#heading`, as on the forges.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
nb_merge_streams = True

# `name` in a docstring is a link where such an object exists, and code everywhere.
default_role = "py:obj"
smartquotes_action = "D"  # Dashes alone: g' is a gradient, not a quotation.
# The text of a docstring says what is allowed; the types of Optax are long unions.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
