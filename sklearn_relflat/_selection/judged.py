"""Candidates of a search with their risks, and how sure their order is."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import rankdata

from sklearn_relflat._selection.calibration import Reference, calibrated, combined
from sklearn_relflat._selection.fits import Fit, Fits, say
from sklearn_relflat._selection.one_loss import check_one_loss

# Candidates that are compared with the best at the ends of the radius' interval.
_N_LEADING = 6


class CalibrationWarning(UserWarning):
    """The radius could not be calibrated."""


class JudgedCandidates:
    """The candidates with their risks."""

    def __init__(
        self, run: Fits, candidates: list[dict[str, Any]], fitted: list[Fit]
    ) -> None:
        self.run, self.candidates, self.fitted = run, candidates, fitted
        self.references: list[Reference] = []
        self.radius: float | None = None
        self.interval: tuple[float, float] | None = None
        n = len(candidates)
        self.risk, self.stderr = np.full(n, np.nan), np.full(n, np.nan)
        self.training_loss = np.full(n, np.nan)
        self.cross_validated = np.full(n, np.nan)
        self.cross_validated_stderr = np.full(n, np.nan)
        self.is_unresolved = np.zeros(n, dtype=bool)
        losses: dict[int, str] = {}
        for i, fit in enumerate(fitted):
            if fit.estimator is not None:
                result = run.whole_risk(fit.estimator, 0.0)
                self.training_loss[i] = result.mean_loss
                losses[i] = result.metric
        check_one_loss(losses)
        if not losses:
            raise ValueError("Expected a candidate that can be fitted, got none.")

    @property
    def usable(self) -> np.ndarray:
        """Positions of the candidates that were fitted."""
        return np.flatnonzero(np.isfinite(self.training_loss))

    @property
    def best(self) -> int:
        """Position of the candidate with the smallest risk."""
        if not np.isfinite(self.risk).any():
            raise ValueError(
                "Expected a candidate with a finite risk, got none. Scale the "
                "features, or use a smaller radius."
            )
        return int(np.nanargmin(self.risk))

    def calibrate(self, n_references: int) -> None:
        """Cross-validate references, and solve for the radius."""
        usable = self.usable
        chosen = usable[np.argsort(self.training_loss[usable], kind="stable")]
        chosen = chosen[:n_references]
        losses = self._cross_validated(chosen)
        for i, folds in zip(chosen, losses, strict=True):
            model = self.fitted[i].estimator
            reference = calibrated(int(i), partial(self._value, model), folds)
            self.references.append(reference)
            if self.run.search.verbose:
                say(f"Reference {reference}")
        solved = [r for r in self.references if r.radius is not None]
        if solved:
            self.radius, *interval = combined(solved)
            self.interval = (interval[0], interval[1])

    def _value(self, model: Any, radius: float) -> float:
        """Smoothed risk of a model at a radius."""
        return self.run.whole_risk(model, radius).value

    def _cross_validated(self, chosen: np.ndarray) -> np.ndarray:
        """Cross-validate some candidates and keep what came of it."""
        losses = self.run.fold_losses([self.candidates[i] for i in chosen])
        self.cross_validated[chosen] = losses.mean(axis=1)
        self.cross_validated_stderr[chosen] = losses.std(axis=1, ddof=1) / np.sqrt(
            losses.shape[1]
        )
        return losses

    # -----------------------------------------------------------------------
    def judge(self) -> None:
        """Give every candidate its risk."""
        radius = self.run.search.radius
        if radius != "calibrated":
            self.radius = None if radius == "density" else float(radius)
            self._judge_at(radius)
        elif self.radius is not None:
            self._judge_at(self.radius)
        else:
            self._judge_by_folds()

    def _judge_at(self, radius: float | str) -> None:
        """Judge by the smoothed risk at a radius."""
        pairs: dict[int, np.ndarray] = {}
        for i in self.usable:
            result = self.run.whole_risk(self.fitted[i].estimator, radius)
            self.risk[i], self.stderr[i] = result.value, result.stderr
            pairs[int(i)] = result.by_pair
        best = self.best
        for i, by_pair in pairs.items():
            if i != best and len(by_pair) > 1:
                difference = by_pair - pairs[best]
                error = difference.std(ddof=1) / np.sqrt(len(difference))
                self.is_unresolved[i] = abs(difference.mean()) < 2 * error
        if self.interval is not None:
            self._compare_at_ends(best)

    def _compare_at_ends(self, best: int) -> None:
        """See which of the leading candidates would win at another likely radius."""
        order = self.usable[np.argsort(self.risk[self.usable], kind="stable")]
        leading = [int(i) for i in order[:_N_LEADING] if i != best]
        for radius in self.interval or ():
            there = self.run.whole_risk(self.fitted[best].estimator, radius).value
            for i in leading:
                value = self.run.whole_risk(self.fitted[i].estimator, radius).value
                self.is_unresolved[i] |= value < there

    def _judge_by_folds(self) -> None:
        """Cross-validate all candidates, where no radius is right."""
        said = "; ".join(map(str, self.references))
        warnings.warn(
            "The radius cannot be calibrated, and all candidates are cross-validated "
            "instead: no reference overfits so that its smoothed risk reaches its "
            f"cross-validated loss ({said}). Add candidates that overfit, raise "
            "n_references, or perturb another layer.",
            CalibrationWarning,
            stacklevel=4,
        )
        usable = self.usable
        found = self._cross_validated(usable)
        losses = np.full((len(self.candidates), found.shape[1]), np.nan)
        losses[usable] = found
        self.risk, self.stderr = self.cross_validated, self.cross_validated_stderr
        best = self.best
        difference = losses - losses[best]
        error = difference.std(axis=1, ddof=1) / np.sqrt(difference.shape[1])
        self.is_unresolved = np.abs(difference.mean(axis=1)) < 2 * error

    # -----------------------------------------------------------------------
    def results(self) -> dict[str, Any]:
        """Columns in the manner of `GridSearchCV`."""
        n = len(self.candidates)
        score = -self.risk
        failed = ~np.isfinite(self.risk)
        if self.run.search.error_score != "raise":
            score = np.where(failed, self.run.search.error_score, score)
        is_reference = np.zeros(n, dtype=bool)
        is_reference[[reference.index for reference in self.references]] = True
        # What has no score comes last.
        rank = rankdata(np.where(failed, np.inf, self.risk), method="min")
        return {
            **_parameter_columns(self.candidates),
            "params": self.candidates,
            "mean_fit_time": np.array([fit.seconds for fit in self.fitted]),
            "mean_test_score": score,
            "rank_test_score": rank.astype(np.int32),
            "smoothed_risk": self.risk,
            "smoothed_risk_stderr": self.stderr,
            "training_loss": self.training_loss,
            "is_reference": is_reference,
            "cross_validated_loss": self.cross_validated,
            "cross_validated_loss_stderr": self.cross_validated_stderr,
            "is_unresolved": self.is_unresolved,
        }


def _parameter_columns(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """One masked column for each parameter."""
    names = dict.fromkeys(name for candidate in candidates for name in candidate)
    columns = {}
    for name in names:
        column = np.ma.masked_all(len(candidates), dtype=object)
        for i, candidate in enumerate(candidates):
            if name in candidate:
                column[i] = candidate[name]
        columns[f"param_{name}"] = column
    return columns
