"""What every test and doctest starts from: one thread, fixed seeds, nothing leaked."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before numpy and torch are imported, and for every subprocess: tests run in
# parallel, and sums over several threads need not be the same twice.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pytest
import sklearn
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests, with the reason, where there is no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def global_state() -> dict[str, Any]:
    """Settings of the process that nothing in the package may change for good."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return {
        "working directory": Path.cwd(),
        "scikit-learn configuration": sklearn.get_config(),
        "numpy error handling": np.geterr(),
        "torch default dtype": torch.get_default_dtype(),
        "torch gradients enabled": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch threads": torch.get_num_threads(),
        "open figures": [] if pyplot is None else pyplot.get_fignums(),
    }


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded(_one_thread: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Start from the same seeds in any order, and leave no global setting changed."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what random_state=None draws from
    torch.manual_seed(0)
    before = global_state()
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    # An example shows its figures as a user would, and closes none.
    if pyplot is not None and isinstance(request.node, pytest.DoctestItem):
        pyplot.close("all")
    after = global_state()
    if after["open figures"] != before["open figures"]:
        sys.modules["matplotlib.pyplot"].close("all")
    changed = [name for name in before if after[name] != before[name]]
    assert not changed, f"the test leaves changed: {', '.join(changed)}"
