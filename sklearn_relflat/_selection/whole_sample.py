"""A splitter with one split, whose training and test part are the whole sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import _num_samples


class WholeSample:
    """Splitter for scorers that judge a model from its training sample.

    For ``cv=`` of `GridSearchCV` and its relatives: every candidate is fitted once, on
    everything, and scored on the same samples. That is right for a
    `SmoothedRiskScorer`, whose number estimates the risk from the training sample. With
    a scorer that merely predicts the samples that the model was fitted on, such as
    "accuracy" or "neg_log_loss", it rewards overfitting: the largest model wins.

    See Also
    --------
    SmoothedRiskScorer : A scorer for it.
    SmoothedRiskSearchCV : A search that cross-validates a few candidates besides.

    Examples
    --------
    Accuracy on the training sample prefers the model that interpolates, the smoothed
    risk does not:

    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import SmoothedRiskScorer, WholeSample
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)[:200]
    >>> grid = {"C": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]}
    >>> model = LogisticRegression(max_iter=10000)
    >>> for scoring in ("accuracy", SmoothedRiskScorer()):
    ...     search = GridSearchCV(model, grid, scoring=scoring, cv=WholeSample())
    ...     print(search.fit(X, y[:200]).best_params_)
    {'C': 10.0}
    {'C': 1.0}
    """

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the whole sample twice: to train on and to score on.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples.
        y : object, default=None
            Ignored.
        groups : object, default=None
            Ignored.

        Yields
        ------
        train, test : ndarray of shape (n_samples,)
            All positions.
        """
        n_samples = _num_samples(X)
        yield np.arange(n_samples), np.arange(n_samples)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return 1.

        Parameters
        ----------
        X, y, groups : object, default=None
            Ignored.

        Returns
        -------
        n_splits : int
            1.
        """
        return 1

    def __repr__(self) -> str:
        """Return the call that makes it."""
        return "WholeSample()"
