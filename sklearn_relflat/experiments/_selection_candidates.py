"""What is recorded of the candidates of one grid on one outer split."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold

from sklearn_relflat import (
    compare_measures,
    density_radius,
    flatness_diagnosis,
    relative_flatness,
    smoothed_risk,
)
from sklearn_relflat._selection.calibration import calibrated, combined
from sklearn_relflat.experiments._selection_grids import Sample
from sklearn_relflat.experiments._statistics import rounded

#: Column of a measure, by its name in the package; all of the model that is fitted on
#: the whole training sample.
MEASURES: dict[str, str] = {
    "tr": "hessian_trace",
    "ev": "hessian_max_eigenvalue",
    "fr": "fisher_rao_norm",
    "pb": "pac_bayes_flatness",
    "wn": "weight_norm",
    "sam": "sam_sharpness",
    "asam": "asam_sharpness",
}
#: Column of a relative flatness, with its options.
KAPPAS: dict[str, dict[str, Any]] = {
    "kc": {},
    "ks": {"loss": "squared_error"},
    "kn": {"normalize": "std"},
}
# PAC-Bayes bisects for a standard deviation, to this relative error.
_OPTIONS: dict[str, dict[str, Any]] = {
    "pac_bayes_flatness": {"n_draws": 4, "rtol": 0.1},
    "hessian_max_eigenvalue": {"rtol": 0.05},
}
#: Candidates that a calibration cross-validates, as SmoothedRiskSearchCV does.
N_REFERENCES = 3
_N_BINS = 15
_NOISE = 0.5
_N_NOISES = 3


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, compute: Callable[[], Any]) -> Any:
        """Compute, and add the time.

        Parameters
        ----------
        name : str
            What it is spent on.
        compute : callable
            Takes nothing.

        Returns
        -------
        result : object
            What it returns.
        """
        start = time.perf_counter()
        result = compute()
        spent = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        return result


def calibration_error(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Return the expected calibration error of the predicted class.

    Parameters
    ----------
    probabilities : ndarray of shape (n_samples, n_classes)
        Predicted; classes are 0, 1, ...
    y : ndarray of shape (n_samples,)
        Labels.

    Returns
    -------
    error : float
        Mean distance of confidence and accuracy over 15 bins of equal width, each as
        often as it is hit.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == y
    bins = np.minimum((confidence * _N_BINS).astype(int), _N_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=_N_BINS)
    return float(np.abs(gaps).sum() / len(y))


def records_of(
    candidates: list[Any], sample: Sample, n_folds: int, seed: int
) -> list[dict[str, Any]]:
    """Fit, cross-validate and measure the candidates of a grid.

    Parameters
    ----------
    candidates : list of Pipeline
        Not fitted.
    sample : Sample
        The outer split.
    n_folds : int
        Folds of the training sample.
    seed : int
        Of the draws.

    Returns
    -------
    records : list of dict
        One a candidate, then one of the grid, with ``radius``, ``calibrated`` radius,
        the conditions of `flatness_diagnosis` and the seconds of each step.
    """
    with warnings.catch_warnings():
        # Not to have converged is a property of a candidate, as its loss is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _Grid(candidates, sample, n_folds, seed).records()


class _Grid:
    """The candidates of a grid with what is known of them."""

    def __init__(
        self, candidates: list[Any], sample: Sample, n_folds: int, seed: int
    ) -> None:
        self.candidates, self.sample, self.seed = candidates, sample, seed
        self.clock = Clock()
        self.fitted = [
            self.clock.timed("fit", partial(clone(c).fit, sample.X, sample.y))
            for c in candidates
        ]
        folds = StratifiedKFold(n_folds).split(sample.X, sample.y)
        self.folds = list(folds)
        self.reasons: list[str] = []

    def risk(self, model: Any, radius: float, shape: str = "isotropic") -> float:
        """Smoothed risk on the training sample, as SmoothedRiskSearchCV has it."""
        result = smoothed_risk(
            model,
            self.sample.X,
            self.sample.y,
            radius=radius,
            shape=shape,
            random_state=self.seed,
        )
        return result.value

    def records(self) -> list[dict[str, Any]]:
        """All records."""
        columns: list[dict[str, float | None]] = []
        fold_losses = []
        for candidate, model in zip(self.candidates, self.fitted, strict=True):
            losses, found = self.clock.timed(
                "cv", partial(self._cross_validated, candidate)
            )
            fold_losses.append(losses)
            found["t"] = self.risk(model, 0.0)
            found |= self.clock.timed("kappa", partial(self._kappas, model))
            found |= self._measures(model)
            found |= self._held_out(model)
            columns.append(found)
        grid = self._smoothed(columns, np.array(fold_losses)) | self._diagnosis()
        grid["seconds"] = {
            name: rounded(value, 3) for name, value in self.clock.seconds.items()
        }
        grid |= {
            "n_features": self.sample.X.shape[1],
            "n_test": len(self.sample.y_test),
        }
        if self.reasons:
            grid["reasons"] = "; ".join(dict.fromkeys(self.reasons))
        records = [
            {"i": i} | {name: rounded(value) for name, value in found.items()}
            for i, found in enumerate(columns)
        ]
        return [*records, grid]

    def _cross_validated(
        self, candidate: Any
    ) -> tuple[np.ndarray, dict[str, float | None]]:
        """Losses of the folds, and what a search would have in its results."""
        X, y = self.sample.X, self.sample.y
        losses, hits, kappas, training = [], [], [], []
        for train, test in self.folds:
            model = clone(candidate).fit(X[train], y[train])
            losses.append(smoothed_risk(model, X[test], y[test], radius=0.0).mean_loss)
            hits.append(float(model.score(X[test], y[test])))
            flatness = relative_flatness(
                model, X[train], y[train], random_state=self.seed
            )
            kappas.append(flatness.value)
            training.append(flatness.mean_loss)
        found: dict[str, float | None] = {f"a{k}": hit for k, hit in enumerate(hits)}
        found |= {
            "l": float(np.mean(losses)),
            "l_se": float(np.std(losses, ddof=1) / math.sqrt(len(losses))),
            "fk": float(np.mean(kappas)),
            "ft": float(np.mean(training)),
        }
        return np.array(losses), found

    def _kappas(self, model: Any) -> dict[str, float | None]:
        """Relative flatness of the output layer."""
        return {
            name: self._tried(name, partial(self._kappa, model, options))
            for name, options in KAPPAS.items()
        }

    def _kappa(self, model: Any, options: dict[str, Any]) -> float:
        """One relative flatness."""
        X, y = self.sample.X, self.sample.y
        return float(relative_flatness(model, X, y, random_state=self.seed, **options))

    def _measures(self, model: Any) -> dict[str, float | None]:
        """Competing measures of the whole network."""
        return {
            name: self.clock.timed(
                name,
                partial(self._tried, name, partial(self._measure, model, measure)),
            )
            for name, measure in MEASURES.items()
        }

    def _measure(self, model: Any, measure: str) -> float:
        """One measure of all layers."""
        table = compare_measures(
            model,
            self.sample.X,
            self.sample.y,
            layers=["all"],
            measures={measure: _OPTIONS.get(measure, {})},
            random_state=self.seed,
        )
        return float(next(iter(table["value"])))

    def _tried(self, name: str, compute: Callable[[], float]) -> float | None:
        """Compute, or say why there is no value."""
        try:
            return compute()
        except (ValueError, RuntimeError) as error:
            self.reasons.append(f"{name}: {str(error)[:80]}")
            return None

    def _held_out(self, model: Any) -> dict[str, float | None]:
        """Quality on what was held out, also under noise of the features."""
        X, y = self.sample.X_test, self.sample.y_test
        probabilities = np.asarray(model.predict_proba(X), dtype=np.float64)
        scale = _NOISE * self.sample.X.std(axis=0)
        # All candidates of a grid get the same noise.
        rng = np.random.RandomState(self.seed)
        accuracies = []
        for _ in range(_N_NOISES):
            noisy = (X + scale * rng.normal(size=X.shape)).astype(X.dtype)
            accuracies.append(model.score(noisy, y))
        return {
            "L": smoothed_risk(model, X, y, radius=0.0).mean_loss,
            "A": float((probabilities.argmax(axis=1) == y).mean()),
            "E": calibration_error(probabilities, y),
            "N": float(np.mean(accuracies)),
        }

    def _smoothed(
        self, columns: list[dict[str, float | None]], fold_losses: np.ndarray
    ) -> dict[str, Any]:
        """Smoothed risks, at the density's radius and at the calibrated one."""
        found: dict[str, Any] = {}
        for column, shape in {"sd": "isotropic", "sw": "within_class"}.items():
            radius = self.clock.timed(column, partial(self._radius, shape))
            found[f"radius_{column}"] = rounded(radius)
            for values, model in zip(columns, self.fitted, strict=True):
                values[column] = self.clock.timed(
                    column, partial(self.risk, model, radius, shape)
                )
        calibrated_radius = self.clock.timed(
            "sc", partial(self._calibrated, columns, fold_losses)
        )
        found["radius_sc"] = rounded(calibrated_radius)
        for values, model in zip(columns, self.fitted, strict=True):
            if calibrated_radius is None:
                # As SmoothedRiskSearchCV does where no radius is right.
                values["sc"] = values["l"]
                continue
            values["sc"] = self.clock.timed(
                "sc", partial(self.risk, model, calibrated_radius)
            )
        return found

    def _radius(self, shape: str) -> float:
        """Radius of the features that enter the models, the same for all of them."""
        Z = self.fitted[0][:-1].transform(self.sample.X)
        labels = self.sample.y if shape == "within_class" else None
        return float(density_radius(Z, labels, shape=shape))

    def _calibrated(
        self, columns: list[dict[str, float | None]], fold_losses: np.ndarray
    ) -> float | None:
        """Radius at which references have their cross-validated loss."""
        training = np.array([values["t"] for values in columns])
        chosen = np.argsort(training, kind="stable")[:N_REFERENCES]
        references = [
            calibrated(int(i), partial(self.risk, self.fitted[i]), fold_losses[i])
            for i in chosen
        ]
        solved = [reference for reference in references if reference.radius is not None]
        if solved:
            return combined(solved)[0]
        self.reasons.append("radius_sc: no reference reaches its cross-validated loss")
        return None

    def _diagnosis(self) -> dict[str, Any]:
        """Conditions of the theory, on all candidates."""
        diagnosis = self.clock.timed(
            "diagnosis",
            partial(
                flatness_diagnosis,
                {str(i): model for i, model in enumerate(self.fitted)},
                self.sample.X,
                self.sample.y,
                layer="input",
                n_draws=4,
                random_state=self.seed,
            ),
        )
        found: dict[str, Any] = {}
        minima = []
        for condition in diagnosis.conditions:
            if condition.name == "minimum reached":
                minima.append(condition.verdict)
            elif condition.name != "representative":
                # The features that enter the models are the same for all of them.
                key = condition.name.replace(" ", "_")
                found[key] = condition.verdict
                found[f"{key}_value"] = rounded(condition.value)
        found["minimum_fails"] = rounded(minima.count("fails") / len(minima), 3)
        return found
