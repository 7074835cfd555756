"""Tables and links for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

_DISTRIBUTION = "sklearn-relflat"


@cache
def documentation_url() -> str:
    """Where the documentation is published, from the URLs of the project.

    Returns
    -------
    url : str
        The project URL with the label "Documentation", with a slash at its end; empty
        where there is none, so that links are relative to the documentation's root.
    """
    try:
        labelled = metadata(_DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:  # used from its source, without being installed
        labelled = []
    urls = dict(entry.split(", ", 1) for entry in labelled)
    url = urls.get("Documentation", "")
    return f"{url.rstrip('/')}/" if url else ""


def guide_link(page: str, text: str) -> str:
    """Return a link to a page of the user guide.

    Parameters
    ----------
    page : str
        Name of the page, without folder and suffix.
    text : str
        What is to be read.

    Returns
    -------
    html : str
        The link.
    """
    address = f"{documentation_url()}user_guide/{page}.html"
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table.

    Parameters
    ----------
    rows : sequence of dict
        Rows with the same keys, which are the head. All texts are escaped.

    Returns
    -------
    html : str
        The table.

    Examples
    --------
    >>> html_table([{"a": "<b>"}]).partition("<tbody>")[2]
    '<tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(str(name))}</th>" for name in (*rows, {})[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
