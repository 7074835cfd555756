"""VariableKernelDensity beside scikit-learn's KernelDensity and a loop over pairs.

Run ``python benchmarks/kernel_density.py``. All times of a row are medians of the same
run, measured in turns, on one thread: KernelDensity has no other mode. Errors are the
largest absolute differences, in nats, from log-sum-exp over all pairs with distances
from differences. Writes ``results/kernel_density.json`` and ``.md``.
"""

import argparse
import math
import os
import tracemalloc
from functools import partial

import numpy as np
import torch
from _environment import environment, medians, write_results
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity
from threadpoolctl import threadpool_limits

from sklearn_relflat._density.kernel_density import VariableKernelDensity

N_QUERIES = 1000
N_CHECKED = 100
# Dimension, samples and bandwidth. The last one is where the tree is furthest off.
SETTINGS = [
    (20, 5_000, 1.3),
    (20, 20_000, 1.3),
    (20, 20_000, 0.3),
    (84, 5_000, 1.3),
    (84, 20_000, 1.3),
    (84, 20_000, 0.3),
    (10, 200, 0.05),
]


def brute_force(queries: np.ndarray, samples: np.ndarray, widths) -> np.ndarray:
    """Log-density of Gaussian kernels from all pairs of differences."""
    n, m = samples.shape
    squared = cdist(queries, samples, "sqeuclidean") / widths**2
    log_heights = -m * np.log(widths) - m / 2 * math.log(2 * math.pi) - math.log(n)
    return logsumexp(log_heights - squared / 2, axis=1)


def loop_over_pairs(queries: np.ndarray, samples: np.ndarray, widths) -> list[float]:
    """Log-density of Gaussian kernels, one pair at a time in Python."""
    n, m = samples.shape
    values = []
    for query in queries:
        total = -math.inf
        for sample, width in zip(samples, widths, strict=True):
            difference = (query - sample) / width
            term = -m * math.log(width) - 0.5 * float(difference @ difference)
            high, low = max(total, term), min(total, term)
            total = high + math.log1p(math.exp(low - high))
        values.append(total - m / 2 * math.log(2 * math.pi) - math.log(n))
    return values


def compare_equal_bandwidths(m, n, bandwidth, rng, repeats) -> dict:
    """Time and error of one setting, for both libraries."""
    samples, queries = rng.normal(size=(n, m)), rng.normal(size=(N_QUERIES, m))
    models = {
        "relflat, NumPy": VariableKernelDensity(bandwidth=bandwidth),
        "relflat, torch": VariableKernelDensity(bandwidth=bandwidth, device="cpu"),
        "scikit-learn": KernelDensity(bandwidth=bandwidth),
        "scikit-learn, one leaf": KernelDensity(bandwidth=bandwidth, leaf_size=n),
    }
    for model in models.values():
        model.fit(samples)
    seconds = medians(
        {name: partial(model.score_samples, queries) for name, model in models.items()},
        repeats,
    )
    checked = queries[:N_CHECKED]
    expected = brute_force(checked, samples, np.full(n, bandwidth))
    errors = {
        name: float(np.abs(model.score_samples(checked) - expected).max())
        for name, model in models.items()
    }
    row = {"m": m, "n": n, "bandwidth": bandwidth, "seconds": seconds, "error": errors}
    row["times_faster"] = {
        name: seconds[name] / seconds["relflat, NumPy"]
        for name in ("scikit-learn", "scikit-learn, one leaf")
    }
    return row


def compare_with_loop(rng, repeats) -> dict:
    """Compare a bandwidth for each sample with the loop and with equal bandwidths."""
    m, n, n_queries = 84, 5_000, 200
    samples, queries = rng.normal(size=(n, m)), rng.normal(size=(N_QUERIES, m))
    varying = VariableKernelDensity(delta=0.1).fit(samples)
    equal = VariableKernelDensity(bandwidth=1.0).fit(samples)
    few, widths = queries[:n_queries], varying.bandwidth_
    seconds = medians(
        {
            "loop": partial(loop_over_pairs, few, samples, widths),
            "relflat": partial(varying.score_samples, few),
        },
        repeats,
    )
    all_seconds = medians(
        {
            "varying": partial(varying.score_samples, queries),
            "equal": partial(equal.score_samples, queries),
        },
        repeats,
    )
    expected = brute_force(few, samples, widths)
    looped = np.array(loop_over_pairs(few, samples, widths))
    return {
        "m": m,
        "n": n,
        "n_queries": n_queries,
        "seconds": seconds,
        "times_faster": seconds["loop"] / seconds["relflat"],
        "varying_over_equal": all_seconds["varying"] / all_seconds["equal"],
        "error": float(np.abs(varying.score_samples(few) - expected).max()),
        "error_of_loop": float(np.abs(looped - expected).max()),
    }


def peak_memory(n: int, n_queries: int, rng) -> dict:
    """Peak of the memory that one evaluation allocates."""
    samples, queries = rng.normal(size=(n, 20)), rng.normal(size=(n_queries, 20))
    model = VariableKernelDensity().fit(samples)
    tracemalloc.start()
    model.score_samples(queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "n": n,
        "n_queries": n_queries,
        "peak_mib": peak / 2**20,
        "all_pairs_mib": n * n_queries * 8 / 2**20,
    }


def table(payload: dict) -> str:
    """Write all results as Markdown."""
    conditions = payload["environment"]
    lines = [
        "# Kernel density: speed, error and memory",
        "",
        "`python benchmarks/kernel_density.py`, one thread, medians of one run, at a "
        f"load of {conditions['load_average']} on {conditions['cores']} cores. The "
        "error is the largest difference in nats from log-sum-exp over all pairs.",
        "",
        f"Equal bandwidths h, {N_QUERIES:,} queries, seconds:",
        "",
        "| m | n | h | NumPy | torch | scikit-learn | one leaf | times faster than "
        "scikit-learn | than one leaf | error | of scikit-learn | of one leaf |",
        "|" + "---:|" * 12,
    ]
    for row in payload["equal_bandwidths"]:
        s, e, t = row["seconds"], row["error"], row["times_faster"]
        lines.append(
            f"| {row['m']} | {row['n']:,} | {row['bandwidth']} "
            f"| {s['relflat, NumPy']:.3f} | {s['relflat, torch']:.3f} "
            f"| {s['scikit-learn']:.3f} | {s['scikit-learn, one leaf']:.3f} "
            f"| **{t['scikit-learn']:.1f}** | **{t['scikit-learn, one leaf']:.1f}** "
            f"| {e['relflat, NumPy']:.0e} | {e['scikit-learn']:.2g} "
            f"| {e['scikit-learn, one leaf']:.0e} |"
        )
    loop = payload["loop"]
    lines += [
        "",
        f"One bandwidth per sample (delta = 0.1), m = {loop['m']}, n = {loop['n']:,}, "
        f"{loop['n_queries']} queries: {loop['seconds']['relflat']:.4f} s against "
        f"{loop['seconds']['loop']:.2f} s for a Python loop over the pairs, "
        f"**{loop['times_faster']:.0f} times** faster; error {loop['error']:.0e}. With "
        f"{N_QUERIES:,} queries, {loop['varying_over_equal']:.2f} times the time of "
        "equal bandwidths.",
        "",
        "Memory that an evaluation allocates at its peak (m = 20, default block size):",
        "",
        "| n | queries | peak, MiB | one number per pair, MiB |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['n']:,} | {row['n_queries']:,} | {row['peak_mib']:.1f} "
        f"| {row['all_pairs_mib']:,.0f} |"
        for row in payload["memory"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    torch.set_num_threads(1)
    conditions = {"threads": 1, "load_average": round(os.getloadavg()[0], 1)}
    payload: dict = {"environment": environment(arguments.seed) | conditions}
    with threadpool_limits(1):
        payload["equal_bandwidths"] = []
        for setting in SETTINGS:
            print("m, n, bandwidth:", *setting, flush=True)
            row = compare_equal_bandwidths(*setting, rng, arguments.repeats)
            payload["equal_bandwidths"].append(row)
        payload["loop"] = compare_with_loop(rng, arguments.repeats)
        payload["memory"] = [
            peak_memory(n, n_queries, rng)
            for n, n_queries in [(5_000, 1_000), (20_000, 1_000), (20_000, 16_000)]
        ]
    write_results("kernel_density", payload, table(payload))


if __name__ == "__main__":
    main()
