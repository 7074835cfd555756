"""The candidates of a fitted search, fitted again where the search dropped them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from sklearn_relflat._progress.side_by_side import side_by_side
from sklearn_relflat._selection.fits import fit_candidate


def searched_models(
    search: Any,
    X: Any,
    y: Any,
    *,
    sample_weight: Any,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> dict[str, Any]:
    """Return the candidates of a search, fitted on the whole sample.

    The best one is the search's own ``best_estimator_``. The search has kept no other:
    clones are fitted on X and y.

    Parameters
    ----------
    search : estimator
        A fitted search, as `GridSearchCV` is.
    X, y : array-like
        The sample that it was fitted on.
    sample_weight : array-like or None
        Must be None.
    n_jobs : int or None
        Number of processes that fit; None is ``search.n_jobs``.
    verbose : int
        Whether a bar counts the fits.

    Returns
    -------
    models : dict of str to estimator
        By the parameters that the candidates differ in, in the order of the search.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the search is not fitted.
    ValueError
        If there are weights: nothing tells whether the search was fitted with them.
    """
    if not hasattr(search, "cv_results_"):
        raise NotFittedError(
            f"Expected a fitted search, got {type(search).__name__} without "
            "cv_results_. Call its fit first."
        )
    if sample_weight is not None:
        raise ValueError(
            f"Expected fitted models with sample_weight, got the search "
            f"{type(search).__name__}: its candidates would have to be fitted again, "
            "and it does not say whether with weights. Fit them and pass {'a name': "
            "model}."
        )
    everyone = search.cv_results_["params"]
    # Searches that halve list a candidate once a round.
    candidates = {repr(params): params for params in everyone}
    own = {}
    if hasattr(search, "best_estimator_"):
        own[repr(everyone[search.best_index_])] = search.best_estimator_
    missing = [key for key in candidates if key not in own]
    fitted = side_by_side(
        _fitted,
        [(search.estimator, candidates[key], X, y) for key in missing],
        search.n_jobs if n_jobs is None else n_jobs,
        title="fitting candidates",
        unit="fit",
        verbose=verbose,
    )
    models = own | dict(zip(missing, fitted, strict=True))
    names = _names(list(candidates.values()))
    return dict(zip(names, (models[key] for key in candidates), strict=True))


def _fitted(estimator: Any, params: dict[str, Any], X: Any, y: Any) -> Any:
    """Fit one candidate."""
    try:
        return fit_candidate(estimator, params, X, y, {}, error_score="raise").estimator
    except Exception as error:
        error.add_note(f"While fitting the candidate {params!r} on the whole sample.")
        raise


def _names(candidates: list[dict[str, Any]]) -> list[str]:
    """Names of candidates by the parameters in which they differ."""
    keys = dict.fromkeys(key for params in candidates for key in params)
    telling = [
        key
        for key in keys
        if len({repr(params.get(key, keys)) for params in candidates}) > 1
    ]
    names = [
        ", ".join(f"{key}={_short(params[key])}" for key in telling if key in params)
        for params in candidates
    ]
    return [
        f"{name} #{i}" if not name or names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _short(value: Any) -> str:
    """Value of a parameter in a name."""
    if isinstance(value, BaseEstimator | type):
        return value.__name__ if isinstance(value, type) else type(value).__name__
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)
