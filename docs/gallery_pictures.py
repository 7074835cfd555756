"""The pictures on the cards of the gallery: those of the pages that the cards open.

A card has ``:img-top: picture://gallery/page``, and gets the first picture of that
page, which exists when the page has been executed. So no picture is stored.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

SCHEME = "picture://"
PAGES = ("gallery/index",)


def pages_with_cards(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Pages to write again in every build: a picture may have changed."""
    return [page for page in PAGES if page in env.all_docs]


def fill_cards(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the pictures of pages on their cards."""
    if docname not in PAGES:
        return
    for card in doctree.findall(nodes.image):
        if card["uri"].startswith(SCHEME):
            page = card["uri"].removeprefix(SCHEME)
            picture = next(app.env.get_doctree(page).findall(nodes.image), None)
            if picture is None:
                raise ExtensionError(f"There is no picture on {page} for its card.")
            card["uri"] = picture["uri"]
            card["candidates"] = picture["candidates"]
