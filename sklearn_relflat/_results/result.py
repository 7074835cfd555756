"""The family of results: each as text, as a frame and as HTML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from html import escape
from typing import Any, ClassVar

from tabulate import tabulate

from sklearn_relflat._results.html import guide_link, html_table
from sklearn_relflat._results.tables import make_table


class Result(ABC):
    """What all results have in common.

    `rows` are the numbers for programs, `cells` and `_sentence` what a person reads of
    them; frame, text and HTML are made of these.
    """

    #: Page of the user guide that says what the numbers mean.
    guide: ClassVar[str]

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers, one dict a row, all with the same keys."""

    @abstractmethod
    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown: short texts by column."""

    @abstractmethod
    def _sentence(self) -> str:
        """Say what the numbers tell."""

    @property
    def title(self) -> str:
        """What the result is about."""
        return ""

    @property
    def remarks(self) -> list[str]:
        """Lines below the table besides the sentence."""
        return []

    def frame(self) -> Any:
        """Return the numbers of the result.

        Returns
        -------
        table : DataFrame or list of dict
            A DataFrame where pandas is installed, else a list that prints as a table.
        """
        return make_table(self.rows())

    def __str__(self) -> str:
        """Return the table with what it says."""
        table = tabulate(
            self.cells(), headers="keys", tablefmt="simple", disable_numparse=True
        )
        lines = [line.rstrip() for line in table.splitlines()]
        above = [self.title, ""] if self.title else []
        return "\n".join([*above, *lines, "", self._sentence(), *self.remarks])

    def _repr_html_(self) -> str:
        """Return the result for a notebook."""
        above = f"<p>{escape(self.title)}</p>" if self.title else ""
        below = "".join(f"<p>{escape(text)}</p>" for text in self.remarks)
        return (
            f"{above}{html_table(self.cells())}"
            f"<p><strong>{escape(self._sentence())}</strong></p>{below}"
            f"<p>{guide_link(self.guide, 'What these numbers mean')}</p>"
        )


class NumberResult(Result):
    """A result of which one number is the point: a line, and a frame of one row.

    It is a dataclass.
    """

    # Fields that are no single numbers or names, and not part of the row.
    _not_in_row: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __float__(self) -> float:
        """Return the number."""

    def rows(self) -> list[dict[str, Any]]:
        """Return the attributes that are single numbers or names.

        Returns
        -------
        rows : list of dict
            One row.
        """
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return [{n: getattr(self, n) for n in names if n not in self._not_in_row}]

    def __str__(self) -> str:
        """Return the line."""
        return repr(self)


class TableReport(Result):
    """A report about models, whose sentence was made with it."""

    sentence: str

    def _sentence(self) -> str:
        """Say what the numbers tell."""
        return self.sentence

    def __repr__(self) -> str:
        """Return the sentence: what matters of the report in a line."""
        return f"<{type(self).__name__}: {self.sentence}>"
