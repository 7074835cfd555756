"""Cost of relative flatness in units of plain passes over the same data.

Run ``python benchmarks/relative_flatness.py [--data FOLDER]``. LeNet5 on 5,000 images
in batches of 500, with one thread and with two; then one layer in float64 against the
definition computed the published way, and peak memory against the number of samples.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _data import add_data_option, load_images
from _environment import environment, medians, ratio_table, write_results
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import layerwise_relative_flatness, relative_flatness

BATCH = 500
PROCESSES = 3
CHEAP = 5
EPOCHS = 3


class LeNet5(nn.Sequential):
    """LeNet5 for 32 x 32 colour images (ReLU, max-pooling)."""

    def __init__(self) -> None:
        super().__init__()
        for name, module in {
            "conv1": nn.Conv2d(3, 6, 5),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(6, 16, 5),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(400, 120),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(120, 84),
            "relu4": nn.ReLU(),
            "fc3": nn.Linear(84, 10),
        }.items():
            self.add_module(name, module)


def trained_net(X: torch.Tensor, y: torch.Tensor, seed: int) -> NeuralNetClassifier:
    """Train LeNet5 for a few epochs."""
    torch.manual_seed(seed)
    return NeuralNetClassifier(
        LeNet5,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        batch_size=BATCH,
        max_epochs=EPOCHS,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    ).fit(X, y)


def lenet_rows(X: torch.Tensor, y: torch.Tensor, seed: int, repeats: int) -> list[dict]:
    """Ratios for LeNet5, with the number of threads that is set."""
    net = trained_net(X, y, seed)
    module, criterion = net.module_, nn.CrossEntropyLoss()
    module.eval()
    slices = [slice(i, i + BATCH) for i in range(0, len(X), BATCH)]

    def forward() -> None:
        with torch.no_grad():
            for part in slices:
                module(X[part])

    def forward_backward() -> None:
        for part in slices:
            module.zero_grad()
            criterion(module(X[part]), y[part]).backward()

    cheap = {
        "forward": forward,
        "output layer, closed form": lambda: relative_flatness(net, X, y),
    }
    measured = {
        "forward_backward": forward_backward,
        "fc2, exact": lambda: relative_flatness(net, X, y, layer="fc2"),
        "all five layers, exact": lambda: layerwise_relative_flatness(net, X, y),
        "all five layers, one sampled factor": lambda: layerwise_relative_flatness(
            net, X, y, method="sampled", rtol=float("inf"), random_state=0
        ),
    }
    # A few per cent are at stake in the first row, so it is repeated more often.
    seconds = medians(cheap, CHEAP * repeats) | medians(measured, repeats)
    rows = []
    for name, unit, limit in (
        ("output layer, closed form", "forward", 1.10),
        ("fc2, exact", "forward_backward", 0.8),
        ("all five layers, exact", "forward_backward", 12.0),
        ("all five layers, one sampled factor", "forward_backward", 2.0),
    ):
        rows.append(
            {
                "what": name,
                "against": unit.replace("_", " + "),
                "threads": torch.get_num_threads(),
                "seconds": seconds[name],
                "unit_seconds": seconds[unit],
                "ratio": seconds[name] / seconds[unit],
                "limit": limit,
            }
        )
    return rows


def lenet_processes(threads: int) -> list[dict]:
    """Ratios for LeNet5, the medians of several processes.

    Where the tensors of a process happen to lie in memory moves its times by several
    per cent, for as long as it lives.
    """
    options = [*sys.argv[1:], f"--lenet={threads}"]
    runs = [output_of(*options) for _ in range(PROCESSES)]
    rows = []
    for same in zip(*runs, strict=True):
        numbers = {
            key: statistics.median(row[key] for row in same)
            for key in ("seconds", "unit_seconds", "ratio")
        }
        met = numbers["ratio"] <= same[0]["limit"]
        ratios = [row["ratio"] for row in same]
        rows.append({**same[0], **numbers, "ratios": ratios, "met": met})
    return rows


def published_kappa(
    weight: torch.Tensor, phi: torch.Tensor, y: torch.Tensor, head: nn.Module
) -> float:
    """Relative flatness by the definition, one double backward pass per weight entry.

    The naive reference: the whole data set in one graph, d * m passes, and a tensor of
    shape (d, m, d, m).
    """
    weight = weight.detach().clone().requires_grad_()
    risk = nn.functional.cross_entropy(head(phi @ weight.T), y)
    (gradient,) = torch.autograd.grad(risk, weight, create_graph=True)
    d, m = weight.shape
    hessian = torch.empty(d, m, d, m, dtype=weight.dtype)
    for i in range(d):
        for j in range(m):
            (hessian[i, j],) = torch.autograd.grad(
                gradient[i, j], weight, retain_graph=True
            )
    traces = torch.einsum("stut->su", hessian)
    return float((traces * (weight @ weight.T).detach()).sum())


def definition_row(seed: int) -> dict:
    """One layer 120 -> 84 in float64, 2,000 samples, against the published way."""
    torch.manual_seed(seed)
    X = torch.randn(2000, 120, dtype=torch.float64)
    y = torch.randint(0, 10, (2000,))
    module = nn.Sequential(nn.Linear(120, 84, bias=False), nn.ReLU(), nn.Linear(84, 10))
    net = NeuralNetClassifier(
        module.double(), criterion=nn.CrossEntropyLoss, batch_size=500
    ).initialize()
    seconds = medians({"ours": lambda: relative_flatness(net, X, y, layer="0")}, 9)
    ours = float(relative_flatness(net, X, y, layer="0"))
    start = time.perf_counter()
    theirs = published_kappa(net.module_[0].weight, X, y, net.module_[1:])
    elapsed = time.perf_counter() - start
    return {
        "what": "120 -> 84 layer, 2,000 samples, float64, times faster",
        "against": "definition, d * m double backward passes",
        "threads": torch.get_num_threads(),
        "seconds": seconds["ours"],
        "unit_seconds": elapsed,
        "ratio": elapsed / seconds["ours"],
        "limit": 1000.0,
        "met": elapsed / seconds["ours"] >= 1000 and abs(ours / theirs - 1) <= 1e-10,
        "relative_difference": abs(ours / theirs - 1),
    }


def output_of(*options: str, **environ: str) -> Any:
    """Run this script in a process of its own; return the JSON that it prints."""
    process = subprocess.run(
        [sys.executable, __file__, *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    return json.loads(process.stdout)


def peak_memory(n: int) -> int:
    """Peak resident memory above the inputs of measuring n samples, in bytes."""
    # Freed blocks go back to the system at once: glibc otherwise raises the threshold
    # by itself, and its cache is measured instead.
    return int(output_of(f"--memory-of={n}", MALLOC_MMAP_THRESHOLD_="65536"))


def memory(kind: str) -> int:
    """Resident memory of this process, VmRSS (now) or VmHWM (peak), in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024


def print_peak(n: int, seed: int) -> None:
    """Measure n samples and print the peak above what torch itself and X, y take."""
    torch.set_num_threads(1)
    before = memory("VmRSS")
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, batch_size=2000
    ).initialize()
    X, y = torch.randn(n, 64), torch.randint(0, 10, (n,))
    layerwise_relative_flatness(net, X, y)
    print(json.dumps(memory("VmHWM") - before - X.nbytes - y.nbytes))


def memory_row() -> dict:
    """Peak memory at 200,000 samples against 20,000, without the inputs."""
    runs = [(peak_memory(20_000), peak_memory(200_000)) for _ in range(PROCESSES)]
    small, large = (statistics.median(column) for column in zip(*runs, strict=True))
    return {
        "what": "peak memory at n = 200,000 (bytes, inputs not counted)",
        "against": "n = 20,000",
        "threads": 1,
        "seconds": large,
        "unit_seconds": small,
        "ratio": large / small,
        "limit": 1.1,
        "met": large / small <= 1.1,
    }


def main() -> None:
    """Run all rows and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--n-samples", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lenet", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_peak(arguments.memory_of, arguments.seed)
        return
    name, X, y = load_images(arguments.data, arguments.n_samples)
    if arguments.lenet:
        torch.set_num_threads(arguments.lenet)
        images, labels = torch.from_numpy(X), torch.from_numpy(y)
        print(json.dumps(lenet_rows(images, labels, arguments.seed, arguments.repeats)))
        return
    rows = []
    for threads in (1, 2):
        rows += lenet_processes(threads)
    torch.set_num_threads(1)
    rows += [definition_row(arguments.seed), memory_row()]
    payload = {
        "environment": environment(arguments.seed),
        "data": name,
        "n_samples": len(X),
        "batch_size": BATCH,
        "repeats": arguments.repeats,
        "processes": PROCESSES,
        "rows": rows,
    }
    head = (
        f"LeNet5 on {len(X):,} images ({name}) in batches of {BATCH}: medians of "
        f"{arguments.repeats} runs in turns ({CHEAP * arguments.repeats} for the "
        f"closed form), and of {PROCESSES} processes; seed {arguments.seed}."
    )
    write_results("relative_flatness", payload, ratio_table(rows, head))


if __name__ == "__main__":
    main()
