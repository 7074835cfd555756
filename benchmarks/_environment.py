"""What every benchmark records beside its numbers."""

import json
import math
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path


def environment(seed: int) -> dict:
    """Return versions, processor and seed of this run."""
    packages = ("numpy", "scipy", "scikit-learn", "torch", "skorch", "sklearn-relflat")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in packages},
        "seed": seed,
    }


def medians(functions: dict, repeats: int) -> dict:
    """Median seconds of each function, measured in turns in one run."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio_table(rows: list[dict], head: str) -> str:
    """Markdown table of ratios with their limits; an infinite one is only reported."""
    lines = [head, "", "| what | against | threads | ratio | must reach | met |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        sign = ">=" if "faster" in row["what"] else "<="
        limit, met = f"{sign} {row['limit']:g}", "yes" if row["met"] else "NO"
        if math.isinf(row["limit"]):
            limit, met = "reported", ""
        lines.append(
            f"| {row['what']} | {row['against']} | {row.get('threads', '')} | "
            f"{row['ratio']:.3g} | {limit} | {met} |"
        )
    return "\n".join(lines)


def write_results(name: str, payload: dict, table: str) -> None:
    """Write a JSON file and a Markdown table beside the benchmarks."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(payload, indent=1) + "\n")
    (folder / f"{name}.md").write_text(table + "\n")
    print(table)
