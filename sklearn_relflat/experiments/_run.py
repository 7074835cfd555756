"""A run of an experiment, which goes on from where an earlier one was stopped."""

from __future__ import annotations

import datetime
import os
import platform
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sklearn_relflat._progress.bar import progress_bar
from sklearn_relflat.experiments._registry import load_experiment
from sklearn_relflat.experiments._report import write_report
from sklearn_relflat.experiments._results_file import (
    ResultsFile,
    key_of,
    rounded,
)
from sklearn_relflat.experiments._workers import Workers

_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "skorch", "sklearn-relflat")
# How long to wait before looking again what a run beside this one has finished.
_LOOK = 0.5


def run(
    experiment: str,
    preset: str = "quick",
    out: Path | str = "results",
    *,
    data: Path | None = None,
    n_jobs: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it.

    Parameters
    ----------
    experiment : str
        Name of an experiment, or the full name of a module that is one.
    preset : str, default="quick"
        Name of the configuration.
    out : Path or str, default="results"
        Folder for the results, made if it is not there. Earlier ones are gone on with.
    data : Path, default=None
        Folder of CIFAR-10, for experiments that need it.
    n_jobs : int, default=1
        Number of processes. The numbers do not depend on it.
    seed : int, default=0
        Seed of everything random.
    progress : bool, default=True
        Whether to draw a progress bar, and to print what was written.

    Returns
    -------
    result : dict
        What the JSON file holds: "experiment", "preset", "config", "seed", "versions",
        "n_tasks", "seconds" (of all tasks together) and "summary".

    Raises
    ------
    ResultsFileError
        If the folder holds results of another configuration or seed.
    ValueError
        If the preset is not known, or needs data that is not given.
    WorkerError
        If a task fails; the others stay.
    """
    module = load_experiment(experiment)
    name = experiment.rpartition(".")[2]
    if preset not in module.PRESETS:
        raise ValueError(
            f"Expected one of the presets {list(module.PRESETS)} of {name}, got "
            f"{preset!r}."
        )
    if module.NEEDS_DATA and preset == "full" and data is None:
        raise ValueError(
            f"Expected a folder with CIFAR-10 for the full preset of {name}, got "
            "none. Name it with --data, or take --preset quick."
        )
    config = module.PRESETS[preset]
    tasks = module.tasks(config)
    Path(out).mkdir(parents=True, exist_ok=True)
    stem = Path(out) / f"{name}-{preset}"
    header = {
        "experiment": name,
        "preset": preset,
        "config": asdict(config),
        "seed": seed,
        "versions": versions(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    file = ResultsFile(Path(f"{stem}.jsonl"), header)
    try:
        if file.header["versions"] != header["versions"]:
            print(
                f"Note: {file.path} was begun with {file.header['versions']}, and goes "
                f"on with {header['versions']}.",
                file=sys.stderr,
            )
        with _stopped_by_sigterm():
            _measure_all(
                file,
                tasks,
                (n_jobs, experiment, config, seed, data),
                f"{name} ({preset})",
                progress,
            )
        lines = file.read()
    finally:
        file.close()
    done = [lines[key_of(task)] for task in tasks]
    records = [line["task"] | record for line in done for record in line["records"]]
    result = {
        **{key: file.header[key] for key in ("experiment", "preset", "config", "seed")},
        "versions": file.header["versions"],
        "n_tasks": len(tasks),
        "seconds": round(sum(line["seconds"] for line in done), 1),
        "summary": rounded(module.summarize(records, config, seed)),
    }
    messages = write_report(stem, result, module.draw)
    if progress:
        print("\n".join(messages))
    return result


def versions() -> dict[str, Any]:
    """Return what the numbers may depend on.

    Returns
    -------
    versions : dict
        Of Python and packages, and the machine.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder that was not installed
            found[name] = "not installed"
    return found


def _measure_all(
    file: ResultsFile,
    tasks: list[dict[str, Any]],
    job: tuple[int, str, Any, int, Path | None],
    title: str,
    progress: bool,
) -> None:
    """Measure all tasks that are not in the file, together with runs beside this."""
    keys = [key_of(task) for task in tasks]
    known = file.read()
    left = deque(i for i, key in enumerate(keys) if key not in known)
    if not left:
        return
    n_jobs = min(job[0], len(left))
    bar = progress_bar(
        title=title,
        unit="task",
        verbose=progress,
        total=len(tasks),
        initial=len(tasks) - len(left),
        smoothing=0.1,
    )
    workers = Workers(n_jobs, *job[1:])
    try:
        while left or workers.n_busy:
            known = file.read() if left and workers.n_idle else {}
            for _ in range(len(left)):
                if not workers.n_idle:
                    break
                i = left.popleft()
                if keys[i] in known:
                    bar.update()
                elif not file.claim(i):
                    left.append(i)
                # Between the look and the claim another run may have finished it.
                elif keys[i] in file.read():
                    file.release(i)
                    bar.update()
                else:
                    workers.start(i, tasks[i])
            # Also where only tasks of other runs are left: look again after a while.
            for number, task, records, seconds in workers.finished(_LOOK):
                file.append(task, records, seconds)
                file.release(number)
                bar.update()
    finally:
        workers.close()
        bar.close()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
