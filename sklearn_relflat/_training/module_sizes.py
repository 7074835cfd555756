"""The sizes of a module, set from the data when training begins."""

from typing import Any

import numpy as np
from skorch.callbacks import Callback


class ModuleSizes(Callback):
    """Callback that sets the sizes of a module from the data before training.

    Parameters
    ----------
    n_features : str, default=None
        Parameter of the net that gets the number of columns of X, for example
        "module__n_inputs"; None sets nothing.
    n_outputs : str, default=None
        Parameter of the net that gets the number of classes (largest label + 1) of
        integer y, otherwise the number of columns of y.

    Notes
    -----
    The net is initialized before training begins, so the module needs values of these
    parameters to begin with.

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from sklearn_relflat.callbacks import ModuleSizes
    >>> sizes = ModuleSizes("module__in_features", "module__out_features")
    >>> net = NeuralNetClassifier(
    ...     nn.Linear,
    ...     module__in_features=1,
    ...     module__out_features=1,
    ...     criterion=nn.CrossEntropyLoss,
    ...     train_split=None,
    ...     callbacks=[sizes],
    ...     verbose=0,
    ... )
    >>> X, y = np.zeros((6, 5), dtype="float32"), np.array([0, 1, 2, 0, 1, 2])
    >>> net.fit(X, y).module_
    Linear(in_features=5, out_features=3, bias=True)
    """

    def __init__(
        self, n_features: str | None = None, n_outputs: str | None = None
    ) -> None:
        self.n_features = n_features
        self.n_outputs = n_outputs

    def on_train_begin(
        self, net: Any, X: Any = None, y: Any = None, **kwargs: Any
    ) -> None:
        """Set the sizes, where they are not what the data have.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        **kwargs : dict
            Ignored.

        Raises
        ------
        ValueError
            If X or y has no shape to take the size from.
        """
        sizes = {}
        if self.n_features is not None:
            sizes[self.n_features] = _n_columns(X, "X")
        if self.n_outputs is not None:
            sizes[self.n_outputs] = _n_outputs(y)
        known = net.get_params(deep=False)
        new = {name: n for name, n in sizes.items() if known.get(name) != n}
        if new:
            net.set_params(**new)


def _n_columns(values: Any, name: str) -> int:
    """Return the size of the second dimension."""
    shape = tuple(getattr(values, "shape", ()))
    if len(shape) < 2:
        raise ValueError(
            f"Expected {name} as an array with columns, for ModuleSizes, got "
            f"{type(values).__name__} of shape {shape}. Set the sizes of the "
            "module by hand."
        )
    return int(shape[1])


def _n_outputs(y: Any) -> int:
    """Return the number of outputs for some targets."""
    if len(getattr(y, "shape", ())) > 1:
        return _n_columns(y, "y")
    values = np.asarray(y)
    if values.dtype.kind in "iub":
        return int(values.max()) + 1
    if values.dtype.kind == "f" and values.ndim == 1:
        return 1
    raise ValueError(
        "Expected y as an array of integers or numbers, for ModuleSizes, got "
        f"{type(y).__name__}. Set the sizes of the module by hand."
    )
