"""Worker processes, one task at a time each, which end with the process they serve."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from sklearn_relflat.experiments._registry import load_experiment

# Sums over several threads need not be the same twice, and on few cores
# oversubscribed matrix products are several times slower.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)


class WorkerError(RuntimeError):
    """A task failed."""


class Workers:
    """A few processes that measure tasks of one experiment.

    Parameters
    ----------
    n_jobs : int
        Number of processes.
    experiment : str
        As `load_experiment` takes it.
    config : object
        The configuration.
    seed : int
        The seed.
    data : Path or None
        Folder of the data.
    """

    def __init__(
        self, n_jobs: int, experiment: str, config: Any, seed: int, data: Path | None
    ) -> None:
        # Fresh processes: a forked one may not use threads of torch again.
        context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._busy: dict[Any, tuple[int, dict[str, Any]]] = {}
        self._idle: list[Any] = []
        with _environment(_ONE_THREAD):
            for _ in range(n_jobs):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, experiment, config, seed, data)
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._idle.append(ours)

    @property
    def n_idle(self) -> int:
        """Number of processes without a task."""
        return len(self._idle)

    @property
    def n_busy(self) -> int:
        """Number of processes with a task."""
        return len(self._busy)

    def start(self, number: int, task: dict[str, Any]) -> None:
        """Give a task to an idle process.

        Parameters
        ----------
        number : int
            Position of the task.
        task : dict
            The task.
        """
        connection = self._idle.pop()
        self._busy[connection] = (number, task)
        connection.send(task)

    def finished(
        self, timeout: float
    ) -> list[tuple[int, dict[str, Any], list[dict[str, Any]], float]]:
        """Wait for tasks to end.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most.

        Returns
        -------
        results : list of tuple
            Position, task, records and seconds of each that ended.

        Raises
        ------
        WorkerError
            If a task failed, or its process died.
        """
        results = []
        ready: list[Any] = list(wait(list(self._busy), timeout))
        for connection in ready:
            number, task = self._busy.pop(connection)
            try:
                records, seconds, failure = connection.recv()
            except (EOFError, OSError):
                raise WorkerError(
                    f"The process that measured {task!r} died: out of memory, or "
                    "killed. Run the same command again to go on, with fewer --jobs "
                    "if memory is short."
                ) from None
            if failure:
                raise WorkerError(
                    f"Measuring {task!r} failed. What is finished stays in the file, "
                    f"and the same command goes on from there.\n{failure}"
                )
            self._idle.append(connection)
            results.append((number, task, records, seconds))
        return results

    def close(self) -> None:
        """End all processes, also busy ones."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for connection in [*self._idle, *self._busy]:
            connection.close()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(
    connection: Connection, experiment: str, config: Any, seed: int, data: Path | None
) -> None:
    """Measure what comes through a connection."""
    # Ctrl-C reaches all processes of a terminal; the one that is served ends the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    module = load_experiment(experiment)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        try:
            records = module.measure(task, config, seed, data)
            # Here, where an error still names the task.
            json.dumps(records, allow_nan=False)
        except Exception:
            connection.send(([], 0.0, traceback.format_exc()))
        else:
            connection.send((records, time.perf_counter() - start, ""))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
