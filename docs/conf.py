"""Settings of Sphinx."""

import re

from sphinx.application import Sphinx

import pyro_infovae

project = "pyro-infovae"
author = "The pyro-infovae developers"
version = release = pyro_infovae.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
default_role = "code"
napoleon_attr_annotations = False  # the signature has them

plot_formats = ["svg"]
plot_html_show_formats = plot_html_show_source_link = plot_include_source = False

# References to other libraries are not looked up: the pages are built without a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(arviz|collections|jax|jaxlib|jaxtyping|numpy|numpyro|pyro|torch|typing)\..*"),
    (r"py:class", r"Array|Tensor|Module|ndarray"),
    (r"py:class", r".*\._core\.(sites|evaluation)\..*|.*\.groups\.T|numpyro_backend\.groups\.Rows"),
]

html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False

SHORT_TYPES = {
    r"jaxlib\._jax\.Array": "Array",
    r"(Float|Shaped)\[Any, '": r"\1[Array, '",
    r"Callable\[\[Float\[(\w+), 'n d'\], Float\[\1, 'm d'\]\], Float\[\1, 'n m'\]\]": "Kernel",
}


def shorten_types(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Write the types of a signature as the code does."""
    return _shorten(signature), _shorten(returns)


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("autodoc-process-signature", shorten_types)


def _shorten(annotations: str | None) -> str | None:
    for long, short in SHORT_TYPES.items():
        annotations = annotations and re.sub(long, short, annotations)
    return annotations
