"""Copies of a model with other parameters and the same function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn_relflat._invariance.rescaled_copies import rescaled_copy
from sklearn_relflat._layers.layers import find_layer
from sklearn_relflat._models.view import lossless_view


def reparameterize_layers(
    estimator: Any,
    factors: Mapping[str, float],
    *,
    X: Any = None,
    tol: float | None = None,
) -> Any:
    """Copy a model, rescaling whole layers without changing its function.

    Parameters
    ----------
    estimator : estimator
        A fitted skorch net or multi-layer perceptron of scikit-learn, or a pipeline,
        frozen estimator or search around one. It is not changed.
    factors : dict of str to float
        By how much the outputs of layers are multiplied, by the names of the layers.
        Weight and bias of such a layer (or those of a normalization behind it) are
        multiplied, the weight of the next layer is divided. The output layer has no
        next one, and cannot be rescaled.
    X : array-like, default=None
        Samples on which original and copy are compared. None draws random inputs,
        which takes a model whose first layer is linear.
    tol : float, default=None
        How far the outputs may move, relative to the largest of them. None is 1e-10 in
        double and 1e-4 in single precision; infinity returns the copy in any case, and
        `output_change` tells how far its function moved.

    Returns
    -------
    copy : estimator
        Of the same type, fitted.

    Raises
    ------
    TypeError
        If the model or a layer is not supported.
    ValueError
        If a factor is not positive, a layer has no next one, or the function changes
        by more than `tol`: an activation in between is not positively homogeneous, or
        something else reads the layer's output.

    See Also
    --------
    reparameterize_neurons : A factor for every neuron.
    invariance_report : What this does to the measures of flatness.

    References
    ----------
    .. [1] L. Dinh, R. Pascanu, S. Bengio, Y. Bengio, "Sharp Minima Can Generalize For
       Deep Nets", ICML 2017.

    Examples
    --------
    The predictions stay, and so does the relative flatness; the Hessian's trace can be
    anything:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import (
    ...     hessian_trace,
    ...     relative_flatness,
    ...     reparameterize_layers,
    ... )
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> rescaled = reparameterize_layers(mlp.fit(X, y), {"coefs.0": 10.0})
    >>> bool(np.allclose(rescaled.predict_proba(X), mlp.predict_proba(X)))
    True
    >>> kappa = [relative_flatness(model, X, y).value for model in (mlp, rescaled)]
    >>> bool(np.isclose(*kappa, rtol=1e-9))
    True
    >>> trace = [hessian_trace(model, X, y).value for model in (mlp, rescaled)]
    >>> round(trace[1] / trace[0], 6)
    100.0
    """
    if not isinstance(factors, Mapping):
        raise TypeError(
            "Expected factors as a dict from names of layers to numbers, got "
            f"{factors!r}."
        )
    return rescaled_copy(estimator, dict(factors), X, tol)


def reparameterize_neurons(
    estimator: Any,
    layer: str,
    factors: Any,
    *,
    X: Any = None,
    tol: float | None = None,
) -> Any:
    """Copy a model, rescaling the neurons that a layer reads, with the same function.

    Parameters
    ----------
    estimator : estimator
        A fitted skorch net or multi-layer perceptron of scikit-learn, or a pipeline,
        frozen estimator or search around one. It is not changed.
    layer : str
        The layer whose features are rescaled. Its columns are divided by the factors;
        the rows of the weight layer before it, and its bias (or those of a
        normalization in between), are multiplied by them.
    factors : array-like of shape (n_neurons,)
        Positive factors, one for each neuron (or channel) of the layer before.
    X : array-like, default=None
        As in `reparameterize_layers`, like `tol`.
    tol : float, default=None
        How far the outputs may move.

    Returns
    -------
    copy : estimator
        Of the same type, fitted.

    Raises
    ------
    TypeError
        If the model or the layer is not supported.
    ValueError
        If the factors do not fit, the layer is the first one, or the function changes
        by more than `tol`.

    See Also
    --------
    reparameterize_layers : One factor for a whole layer.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Theorem 4.

    Examples
    --------
    Relative flatness survives this only if the features are normalized:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_relflat import relative_flatness, reparameterize_neurons
    >>> X, y = load_iris(return_X_y=True)
    >>> X = scale(X)
    >>> mlp = MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=1)
    >>> factors = [0.1, 1.0, 10.0, 100.0]
    >>> rescaled = reparameterize_neurons(mlp.fit(X, y), "coefs.1", factors)
    >>> models = (mlp, rescaled)
    >>> kappa = [relative_flatness(m, X, y, normalize="std").value for m in models]
    >>> bool(np.isclose(*kappa, rtol=1e-9))
    True
    >>> raw = [relative_flatness(m, X, y).value for m in models]
    >>> bool(np.isclose(*raw, rtol=0.5))
    False
    """
    view = lossless_view(estimator)
    name = find_layer(view, layer).name
    return rescaled_copy(estimator, {name: factors}, X, tol, before=True)
