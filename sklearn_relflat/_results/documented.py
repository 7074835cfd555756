"""Estimators whose HTML diagrams link to their page of the documentation."""

from __future__ import annotations

from sklearn_relflat._results.html import documentation_url


class Documented:
    """Mixin that tells scikit-learn where the page of an estimator is.

    Put it to the left of scikit-learn's classes. There is no link where the project
    names no published documentation, and none for classes derived outside of the
    package, which have no page here.
    """

    @property
    def _doc_link_module(self) -> str:
        """Package whose classes have pages; none has the empty name."""
        return __name__.partition(".")[0] if documentation_url() else ""

    @property
    def _doc_link_template(self) -> str:
        """Address of a page, to be filled in with module and name of the class."""
        page = "api/generated/{estimator_module}.{estimator_name}.html"
        return documentation_url() + page
