"""Tasks that run side by side and come back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sklearn.utils.parallel import Parallel, delayed

from sklearn_relflat._progress.bar import progress_bar


def side_by_side(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    n_jobs: int | None,
    *,
    title: str = "",
    unit: str = "task",
    verbose: int | bool = 0,
) -> Iterator[Any]:
    """Call a function for each task, several at a time.

    Parameters
    ----------
    function : callable
        A function that draws no random numbers but from its arguments, so that the
        results do not depend on `n_jobs`.
    tasks : sequence of tuple
        Its arguments.
    n_jobs : int or None
        Number of processes, as in joblib: None is 1 unless in a
        ``joblib.parallel_config`` context, -1 all cores. With 1, each task begins
        when its result is asked for, in this process.
    title, unit : str
        What goes on, and what a task is; for the bar.
    verbose : int or bool, default=0
        Whether a bar counts the results.

    Yields
    ------
    result : object
        The results in the order of the tasks, each as soon as it is there.

    Examples
    --------
    >>> list(side_by_side(pow, [(2, 3), (3, 2)], n_jobs=None))
    [8, 9]
    """
    calls = (delayed(function)(*task) for task in tasks)
    results = Parallel(n_jobs=n_jobs, return_as="generator")(calls)
    yield from progress_bar(
        results, title=title, unit=unit, verbose=verbose, total=len(tasks)
    )
