"""Configuration of the documentation."""

import os
import shutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from api_reference import write_page
from worth_table import write_table

project = "sklearn_relflat"
author = "the sklearn_relflat developers"
copyright = f"2026, {author}"
version = release = installed_version("sklearn-relflat")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    # MathJax in the built pages, so that formulas need no network.
    "sphinx-mathjax-offline",
]
if os.environ.get("READTHEDOCS"):  # elsewhere the build needs no network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
templates_path = ["_templates"]
exclude_patterns = ["_build", "jupyter_execute", "user_guide/_worth_table.md"]

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# Made by scikit-learn on every estimator; their text links to its own user guide.
autodoc_default_options = {
    "exclude-members": ", ".join(
        f"set_{method}_request"
        for method in (
            "fit",
            "partial_fit",
            "predict",
            "predict_proba",
            "predict_log_proba",
            "decision_function",
            "transform",
            "inverse_transform",
            "score",
        )
    )
}
numpydoc_show_class_members = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The gallery is executed by every build, and its cells are the key of the cache: after
# a change of the package `make clean` makes the pictures anew. Notebooks are stored
# without outputs. They are executed where readers will see them; elsewhere
# `make notebooks` does that, once.
nb_execution_mode = "cache"
if not os.environ.get("READTHEDOCS"):
    nb_execution_excludepatterns = ["notebooks/*"]
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "warn"  # a warning in a cell is one of the build
# For the kernels: sharper pictures, and no warnings about their own connection.
os.environ["MATPLOTLIBRC"] = str(DOCS / "matplotlibrc")
os.environ["JUPYTER_PATH"] = os.pathsep.join(
    [str(DOCS), *os.environ.get("JUPYTER_PATH", "").split(os.pathsep)]
).rstrip(os.pathsep)

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_relflat"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]
html_theme_options = {
    "logo": {
        "alt_text": "sklearn_relflat",
        "image_light": "_static/logo_light.svg",
        "image_dark": "_static/logo_dark.svg",
    },
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
# The theme's own default is an error on the console.
html_context = {"default_mode": "auto"}
WITHOUT_SIDEBAR = ["index", "install", "notation", "changelog", "contributing"]
html_sidebars = {page: [] for page in WITHOUT_SIDEBAR}
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def collect_notebooks() -> None:
    """Copy the notebooks into the documentation, with a page that lists them."""
    folder = DOCS / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    notebooks = sorted((DOCS.parent / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        shutil.copyfile(notebook, folder / notebook.name)
    listed = "\n".join(notebook.stem for notebook in notebooks)
    toctree = f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    text = toctree if notebooks else "There are no notebooks yet.\n"
    (folder / "index.md").write_text(f"# Notebooks\n\n{text}", encoding="utf-8")


def strip_code_blocks(app: Sphinx, doctree: nodes.document) -> None:
    """Drop the empty line that keeps doctest from reading a closing fence."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext().rstrip()
        if text != block.astext() and block.rawsource == block.astext():
            block.rawsource, block.children = text, []
            block.append(nodes.Text(text))


# A card of the gallery has `:img-top: picture://gallery/page`, and gets the first
# picture of that page, which is there once the page has been executed: none is stored.
PICTURE, GALLERY = "picture://", "gallery/index"


def pages_with_cards(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Pages to write again in every build: a picture may have changed."""
    return [GALLERY]


def fill_cards(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the pictures of pages on their cards."""
    if docname != GALLERY:
        return
    for card in doctree.findall(nodes.image):
        if card["uri"].startswith(PICTURE):
            page = card["uri"].removeprefix(PICTURE)
            picture = next(app.env.get_doctree(page).findall(nodes.image), None)
            if picture is None:
                raise ExtensionError(f"There is no picture on {page} for its card.")
            card["uri"] = picture["uri"]
            card["candidates"] = picture["candidates"]


def setup(app: Sphinx) -> None:
    """Register the project's own event handlers."""
    app.connect("doctree-read", strip_code_blocks)
    app.connect("env-get-updated", pages_with_cards)
    app.connect("doctree-resolved", fill_cards)


collect_notebooks()
write_page(DOCS)
write_table(DOCS)
