"""A file of results: a header, and a line for each finished task.

Conventions
-----------
Every line is a JSON object, and one write at the end of the file: what a killed run
leaves is whole lines and at most one torn one, which is ignored, so that its task runs
again. Of two lines for one task the first counts.

Runs that share a file share the work. Before a task, a run locks the byte of the
task's number, far behind the end of the file; the system frees the locks of a process
that dies. Where there are no such locks (Windows, some network drives), each of the
runs does all tasks: twice the work, the same numbers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HEADER_LOCK = 2**40
_FIRST_TASK_LOCK = _HEADER_LOCK + 1
#: Fields of the header that decide which numbers come out.
_IDENTITY = ("experiment", "preset", "config", "seed")


class ResultsFileError(ValueError):
    """A file of results cannot be gone on with."""


def key_of(task: dict[str, Any]) -> str:
    """Text that identifies a task.

    Parameters
    ----------
    task : dict
        JSON scalars.

    Returns
    -------
    key : str
        The same for the same fields in any order.
    """
    return json.dumps(task, sort_keys=True, allow_nan=False)


def rounded(value: Any) -> Any:
    """Round the floating point numbers in JSON values to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


class ResultsFile:
    """The finished tasks of an experiment, on disk.

    Parameters
    ----------
    path : Path
        The file; made if it is not there.
    header : dict
        What the results are of. An existing file has to have the same experiment,
        preset, config and seed.

    Attributes
    ----------
    header : dict
        The header in the file.

    Raises
    ------
    ResultsFileError
        If the file holds other results.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        # One descriptor for everything: closing any other would free the locks.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.header = self._open(json.loads(json.dumps(header)))
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self, header: dict[str, Any]) -> dict[str, Any]:
        """Write the header, or check the one that is there."""
        self._lock(_HEADER_LOCK, wait=True)
        try:
            data = self._bytes()
            if data and not data.endswith(b"\n"):
                self._write(b"\n")
            found = next((line for line in _objects(data) if "config" in line), None)
            if found is None:
                if data.count(b"\n"):
                    raise ResultsFileError(
                        f"Expected results of an experiment in {str(self.path)!r}, got "
                        "a file without their header. Name another folder with --out."
                    )
                self._write_object(header)
                found = header
        finally:
            self._unlock(_HEADER_LOCK)
        for name in _IDENTITY:
            if found.get(name) != header[name]:
                raise ResultsFileError(
                    f"Expected results with the {name} {header[name]!r} in "
                    f"{str(self.path)!r}, got {found.get(name)!r}. Name another folder "
                    "with --out"
                    + (
                        f", or go on with --seed {found.get(name)}."
                        if name == "seed"
                        else ", or move the file away."
                    )
                )
        return found

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the finished tasks.

        Returns
        -------
        lines : dict of str to dict
            By the key of the task, with "task", "records" and "seconds".
        """
        lines: dict[str, dict[str, Any]] = {}
        for line in _objects(self._bytes()):
            if "task" in line and "records" in line:
                lines.setdefault(key_of(line["task"]), line)
        return lines

    def append(
        self, task: dict[str, Any], records: list[dict[str, Any]], seconds: float
    ) -> None:
        """Add a finished task.

        Parameters
        ----------
        task : dict
            The task.
        records : list of dict
            What was measured.
        seconds : float
            Time that it took.
        """
        self._write_object(
            {"task": task, "records": rounded(records), "seconds": round(seconds, 3)}
        )

    def claim(self, number: int) -> bool:
        """Take a task, if no other run has it.

        Parameters
        ----------
        number : int
            Position of the task in the list of all tasks.

        Returns
        -------
        taken : bool
            Whether it is this run's to do.
        """
        return self._lock(_FIRST_TASK_LOCK + number, wait=False)

    def release(self, number: int) -> None:
        """Give a task back, finished or not.

        Parameters
        ----------
        number : int
            Position of the task.
        """
        self._unlock(_FIRST_TASK_LOCK + number)

    def close(self) -> None:
        """Close the file, which gives all tasks back."""
        os.close(self._fd)

    def _lock(self, position: int, *, wait: bool) -> bool:
        """Lock a byte; False if another process has it."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(
                self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, position
            )
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a drive without locks
            return True
        return True

    def _unlock(self, position: int) -> None:
        """Free a byte."""
        if fcntl is not None:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, position)
            except OSError:  # a drive without locks
                return

    def _bytes(self) -> bytes:
        """Everything in the file."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 2**20):
            parts.append(part)
        return b"".join(parts)

    def _write_object(self, value: dict[str, Any]) -> None:
        """Append a line."""
        self._write((json.dumps(value, allow_nan=False) + "\n").encode())

    def _write(self, data: bytes) -> None:
        """Append bytes in one write."""
        written = os.write(self._fd, data)
        if written != len(data):
            raise OSError(
                f"Only {written} of {len(data)} bytes of a result fitted into "
                f"{str(self.path)!r}: is the disk full? Make room and run again."
            )


def _objects(data: bytes) -> list[dict[str, Any]]:
    """JSON objects of whole lines; what is torn is left out."""
    found = []
    for line in data.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:  # torn, or not of ours
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
