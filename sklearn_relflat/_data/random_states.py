"""The global random states of a process, which belong to all its threads."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the global random states, of torch, NumPy and Python, after a block.

    Nothing in the package draws from them, but a user's module or data set may. They
    belong to all threads of the process, and putting them back would rewind the streams
    of the others: while there are other threads, they are left alone.
    """
    if threading.active_count() > 1:
        yield
        return
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 - the user's global state
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy)  # noqa: NPY002 - the user's global state
        random.setstate(python)
