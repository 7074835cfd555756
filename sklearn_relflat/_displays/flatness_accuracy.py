"""The candidates of a search: how good they are, against how flat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BAND_STYLE,
    BLUE,
    ERROR_STYLE,
    GREEN,
    ORANGE,
    add_legend,
    check_matplotlib,
    frame_of,
    open_axes,
    readable_ticks,
    set_scale,
    styled,
)
from sklearn_relflat._displays.labels import flatness_label, shortened
from sklearn_relflat._displays.search_results import (
    Candidates,
    by_rule,
    by_smoothed_risk,
    named_rule,
)
from sklearn_relflat._selection.flattest_within import FlattestWithin


class FlatnessAccuracyDisplay:
    """Candidates of a search: their score against their flatness or smoothed risk.

    It is recommended to use `from_estimator` or `from_cv_results` to create a
    `FlatnessAccuracyDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    candidates : Candidates
        What is drawn: ``x`` and ``y`` with ``x_stderr`` and ``y_stderr``, which of them
        are ``admitted``, the ``band`` of their scores, the ``chosen`` one, and the
        ``references``, the cross-validated losses that a radius was calibrated by.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the candidates.
    figure_ : matplotlib Figure
        Figure that contains them.
    errorbar_ : matplotlib ErrorbarContainer
        The admitted candidates, bars of one standard error.
    others_ : matplotlib ErrorbarContainer or None
        The other ones.
    references_ : matplotlib ErrorbarContainer or None
        Cross-validated losses of the references of `SmoothedRiskSearchCV`.
    band_ : matplotlib Artist or None
        The scores that are admitted.
    chosen_ : matplotlib Line2D or None
        A ring around the chosen candidate.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    FlattestWithin : The rule that admits and chooses.
    SmoothedRiskSearchCV : The search that judges by the smoothed risk.

    Notes
    -----
    Of `GridSearchCV` the picture has the mean score on the held-out parts, against the
    flatness on the training parts, both with the standard error over the folds. Its
    folds share samples, so that these errors are rather too small.

    `SmoothedRiskSearchCV` has one score, the smoothed risk. It is drawn against the
    training loss: where the one rises while the other falls, candidates overfit. The
    errors of two candidates are not independent, so admitted are those that the search
    itself could not tell from the best (``is_unresolved``).

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import FlatnessAccuracyDisplay, SmoothedRiskSearchCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X, y = StandardScaler().fit_transform(X)[:200], y[:200]
    >>> grid = {"C": [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0]}
    >>> search = SmoothedRiskSearchCV(LogisticRegression(max_iter=10000), grid)
    >>> display = FlatnessAccuracyDisplay.from_estimator(search.fit(X, y))
    >>> plt.show()
    >>> display.candidates.params[display.candidates.chosen]
    {'C': 1.0}
    """

    def __init__(self, *, candidates: Candidates) -> None:
        self.candidates = candidates

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        *,
        metric: str | None = None,
        flatness: str | None = None,
        split: str | None = None,
        ax: Any = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        chosen_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the candidates of a fitted search.

        Parameters
        ----------
        search : GridSearchCV or its relatives, or SmoothedRiskSearchCV
            The search. Where its ``refit`` is a `FlattestWithin`, that says which
            scores to read and which candidates are admitted.
        metric, flatness, split : str, default=None
            As in `from_cv_results`; ``refit="name"`` names a metric, too.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs, band_kwargs, chosen_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : FlatnessAccuracyDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the search is not fitted, or is none.
        """
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"{cls.__name__}.from_estimator expects a fitted search, with "
                f"cv_results_, got {search!r}. Call its fit first."
            )
        refit = getattr(search, "refit", None)
        if metric is None and isinstance(refit, str):
            metric = refit
        return cls.from_cv_results(
            search.cv_results_,
            rule=refit if isinstance(refit, FlattestWithin) else None,
            metric=metric,
            flatness=flatness,
            split=split,
            best_index=getattr(search, "best_index_", None),
            ax=ax,
            errorbar_kwargs=errorbar_kwargs,
            band_kwargs=band_kwargs,
            chosen_kwargs=chosen_kwargs,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        rule: FlattestWithin | None = None,
        metric: str | None = None,
        flatness: str | None = None,
        split: str | None = None,
        best_index: int | None = None,
        ax: Any = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        chosen_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the results of a search.

        Parameters
        ----------
        cv_results : dict of str to array-like of shape (n_candidates,)
            The ``cv_results_`` of a search.
        rule : FlattestWithin, default=None
            Says which candidates are admitted, by the scores that it names itself; None
            admits all.
        metric : str, default=None
            Key of the score in ``scoring``; None is that of the rule, or "accuracy".
        flatness : str, default=None
            Key of the flatness or smoothed risk in ``scoring``, larger is better; None
            is that of the rule, or "relative_flatness".
        split : {"train", "test"}, default=None
            Where the flatness was measured; None is that of the rule, or "train".
        best_index : int, default=None
            The chosen candidate. None marks what the rule chooses, the smallest
            smoothed risk, or nothing.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs, band_kwargs, chosen_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : FlatnessAccuracyDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_cv_results")
        as_ruled = metric is flatness is split is None
        if "smoothed_risk" in cv_results and as_ruled and rule is None:
            candidates = by_smoothed_risk(cv_results, best_index)
        else:
            names = named_rule(rule, metric, flatness, split)
            admits = as_ruled and rule is not None
            candidates = by_rule(cv_results, names, admits, best_index)
        return cls(candidates=candidates).plot(
            ax,
            errorbar_kwargs=errorbar_kwargs,
            band_kwargs=band_kwargs,
            chosen_kwargs=chosen_kwargs,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        chosen_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a point for each candidate.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs : dict, default=None
            Keywords of `Axes.errorbar` for the candidates.
        band_kwargs : dict, default=None
            Keywords of `Axes.axhspan` for the scores that are admitted.
        chosen_kwargs : dict, default=None
            Keywords of `Axes.plot` for the ring around the chosen candidate.

        Returns
        -------
        display : FlatnessAccuracyDisplay
            Itself.
        """
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        found = self.candidates
        others, admitted = ~found.admitted, found.admitted
        self.errorbar_ = self._draw(admitted, found.of_admitted, errorbar_kwargs)
        self.others_ = None
        if others.any():
            hollow = {"mfc": self.ax_.get_facecolor(), **(errorbar_kwargs or {})}
            self.others_ = self._draw(others, found.of_others, hollow)
        self.references_ = self._draw_references()
        set_scale(self.ax_.xaxis, found.x)
        set_scale(self.ax_.yaxis, found.y)
        self.band_ = self._draw_band(band_kwargs)
        self.chosen_ = self._draw_chosen(chosen_kwargs)
        readable_ticks(self.ax_.xaxis)
        readable_ticks(self.ax_.yaxis)
        self.ax_.set_xlabel(_axis_label(found.x_key, found.x_where))
        self.ax_.set_ylabel(_axis_label(found.y_key, found.y_where))
        drawn = (
            self.errorbar_,
            self.others_,
            self.references_,
            self.band_,
            self.chosen_,
        )
        self.legend_ = add_legend(self.ax_, handles=[a for a in drawn if a is not None])
        return self

    def _draw(
        self, rows: np.ndarray, label: str, kwargs: Mapping[str, Any] | None
    ) -> Any:
        """Draw some of the candidates."""
        found = self.candidates
        style = {"color": BLUE, "marker": "o", "linestyle": "", **ERROR_STYLE}
        return self.ax_.errorbar(
            found.x[rows],
            found.y[rows],
            xerr=None if found.x_stderr is None else found.x_stderr[rows],
            yerr=None if found.y_stderr is None else found.y_stderr[rows],
            **styled({"label": label, **style}, kwargs),
        )

    def _draw_references(self) -> Any:
        """Draw the cross-validated losses, beside the smoothed risks."""
        found = self.candidates
        if found.references is None:
            return None
        return self.ax_.errorbar(
            found.x,
            found.references,
            yerr=found.references_stderr,
            color=GREEN,
            marker="s",
            markersize=10.0,
            # Where they agree, the smoothed risk is seen within.
            markerfacecolor="none",
            linestyle="",
            label="cross-validated loss",
            **ERROR_STYLE,
        )

    def _draw_band(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Shade the scores that are admitted."""
        from matplotlib.patches import Patch

        if self.candidates.band is None:
            return None
        low, high = self.candidates.band
        label = f"within {high - low:.2g} of the best"
        style = {"facecolor": BLUE, "label": label, **BAND_STYLE}
        return self.ax_.axhspan(low, high, **styled(style, kwargs, Patch))

    def _draw_chosen(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Put a ring around the chosen candidate."""
        found = self.candidates
        if found.chosen is None:
            return None
        style = {
            "color": ORANGE,
            "marker": "o",
            "markersize": 13.0,
            "markeredgewidth": 2.5,
            "markerfacecolor": "none",
            "linestyle": "",
            "label": f"chosen: {shortened(found.params[found.chosen])}",
        }
        x, y = found.x[found.chosen], found.y[found.chosen]
        (ring,) = self.ax_.plot([x], [y], **styled(style, kwargs))
        return ring

    def frame(self) -> Any:
        """Return the numbers of the picture.

        Returns
        -------
        frame : pandas.DataFrame
            A row for each candidate: ``params``, the two quantities under their names
            with ``<name>_stderr``, ``is_admitted`` and ``is_chosen``.
        """
        found = self.candidates
        none = np.full(len(found.x), np.nan)
        columns = {
            "params": found.params,
            found.x_key: found.x,
            f"{found.x_key}_stderr": none if found.x_stderr is None else found.x_stderr,
            found.y_key: found.y,
            f"{found.y_key}_stderr": none if found.y_stderr is None else found.y_stderr,
            "is_admitted": found.admitted,
            "is_chosen": np.arange(len(found.x)) == found.chosen,
        }
        if found.references is not None:
            columns["cross_validated_loss"] = found.references
        return frame_of(columns, f"{type(self).__name__}.frame")


def _axis_label(key: str, where: str) -> str:
    """Name of a quantity, and where it was measured."""
    if key.endswith("relative_flatness"):
        return flatness_label()
    return f"{key.replace('_', ' ')} {where}".strip()
