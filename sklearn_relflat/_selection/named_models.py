"""Fitted models with the names that a report calls them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from sklearn.utils import check_random_state

from sklearn_relflat._models.wrappers import is_search
from sklearn_relflat._selection.searched_models import searched_models


def named_models(
    models: Any,
    X: Any = None,
    y: Any = None,
    *,
    sample_weight: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> dict[str, Any]:
    """Give every fitted model a name.

    Parameters
    ----------
    models : dict of str to estimator, sequence of estimator, or search
        The models. Those of a sequence are called after their class, and after the
        parameters that tell them from others of the class. Of a fitted search, its
        candidates, see `searched_models`.
    X, y, sample_weight : array-like
        What the candidates of a search are fitted on.
    n_jobs, verbose : int or None
        How they are fitted.

    Returns
    -------
    named : dict of str to estimator
        One at least.

    Raises
    ------
    TypeError
        If they are none of these.
    ValueError
        If there is none, or as `searched_models` does.
    sklearn.exceptions.NotFittedError
        If the search is not fitted.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression, RidgeClassifier
    >>> models = [LogisticRegression(C=c) for c in (0.1, 1.0)]
    >>> list(named_models([*models, RidgeClassifier()]))
    ['LogisticRegression(C=0.1)', 'LogisticRegression(C=1.0)', 'RidgeClassifier']
    """
    if is_search(models):
        return searched_models(
            models, X, y, sample_weight=sample_weight, n_jobs=n_jobs, verbose=verbose
        )
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
        if len(named) < len(models):
            raise ValueError(
                f"Expected names that differ as text, got {list(models)!r}. Rename "
                "one of them."
            )
    elif isinstance(models, Sequence) and not isinstance(models, str):
        named = dict(zip(_names(list(models)), models, strict=True))
    else:
        raise TypeError(
            "Expected a dict or a list of fitted models, or a fitted search, got "
            f"{type(models).__name__!r}. Pass {{'a name': model}}."
        )
    if not named:
        raise ValueError(
            f"Expected at least one fitted model, got {models!r}. Pass "
            "{'a name': model}."
        )
    return named


@contextmanager
def about(name: str) -> Iterator[None]:
    """Say of which model an error is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"While measuring the model {name!r}.")
        raise


def one_seed(random_state: Any) -> int:
    """One seed for all models: drawing from one generator in turn would unpair them.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        What the user gave.

    Returns
    -------
    seed : int
        An integer as it is.
    """
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _names(models: list[Any]) -> list[str]:
    """Names of models that came without."""
    kinds = [type(model).__name__ for model in models]
    names = [
        f"{kind}({own})" if (own := _own_parameters(i, models)) else kind
        for i, kind in enumerate(kinds)
    ]
    counts = Counter(names)
    return [
        f"{name} #{i}" if counts[name] > 1 else name for i, name in enumerate(names)
    ]


def _own_parameters(index: int, models: list[Any]) -> str:
    """Return the parameters in which a model differs from others of its class."""
    alike = [
        {
            key: value
            for key, value in model.get_params().items()
            if isinstance(value, int | float | str | bool | tuple | None)
        }
        for model in models
        if type(model) is type(models[index]) and hasattr(model, "get_params")
    ]
    if len(alike) < 2:
        return ""
    own = models[index].get_params()
    different = [
        key
        for key in own
        if len({repr(parameters.get(key)) for parameters in alike}) > 1
    ]
    return ", ".join(f"{key}={own[key]!r}" for key in different)
