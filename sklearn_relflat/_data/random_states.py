"""The global random states of a process, which belong to all its threads."""

import random

import numpy as np
import torch
from torch import Tensor


class RandomStates:
    """The random states of torch, NumPy and Python at one time.

    Putting them back rewinds the streams of all threads. Nothing in the package draws
    from them: this is for modules and data sets of the user's that do.
    """

    def __init__(self) -> None:
        self._cuda = (
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        )
        self._cpu: Tensor = torch.get_rng_state()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the user's global state
        self._python = random.getstate()

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)  # noqa: NPY002 - the user's global state
        random.setstate(self._python)
