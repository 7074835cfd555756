"""Whether a forward pass draws from the random streams of the process.

The streams belong to all threads, and a look at their states cannot tell who drew. What
this thread calls can.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_TORCH = {
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like"),
    *("randperm", "normal", "normal_", "uniform_", "random_", "exponential_"),
    *("geometric_", "cauchy_", "log_normal_", "bernoulli", "bernoulli_"),
    *("multinomial", "poisson", "binomial", "gumbel_softmax"),
    *("fractional_max_pool2d", "fractional_max_pool3d"),
}
_DROPOUT = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
#: Position of the argument that says whether they draw.
_TRAINING = {
    **dict.fromkeys((*_DROPOUT, *(f"{name}_" for name in _DROPOUT)), 2),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d"), 2),
    **dict.fromkeys(("rrelu", "rrelu_"), 3),
}


def draws_from_torch(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call draws from the global random stream of torch.

    Parameters
    ----------
    func : callable
        One of torch's functions.
    args : tuple
        Its arguments.
    kwargs : dict
        Its keyword arguments.

    Returns
    -------
    answer : bool
        False with a generator of one's own, and for dropout that is switched off.
    """
    name = getattr(func, "__name__", "")
    if name in _TORCH:
        return kwargs.get("generator") is None
    if name not in _TRAINING:
        return False
    position = _TRAINING[name]
    # torch's dropout functions are on by default.
    on = args[position] if len(args) > position else not name.startswith("rrelu")
    return bool(kwargs.get("training", kwargs.get("train", on)))


@contextmanager
def draws_noted(notes: list[str]) -> Iterator[None]:
    """Note what this thread draws from the streams of NumPy and Python in a block.

    Parameters
    ----------
    notes : list of str
        Gets the names of what was called. A profiler that runs already is left alone,
        and nothing is noted.

    Yields
    ------
    None
    """
    if sys.getprofile() is not None:
        yield
        return

    def note(frame: Any, event: str, called: Any) -> None:
        """Look at a call of a function that is not written in Python."""
        owner = getattr(called, "__self__", None)
        if event == "c_call" and isinstance(
            owner, random.Random | np.random.RandomState
        ):
            notes.append(called.__name__)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
