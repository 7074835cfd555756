"""feature_robustness on a last layer, in units of forward passes and of its head.

Run ``python benchmarks/feature_robustness.py``, with ``--data`` for CIFAR-10; without,
scikit-learn's digits are scaled up to 32 x 32 pixels. All times of a row are medians of
one run, measured in turns:

forward
    a plain forward pass without gradients over the sample;
head
    one pass of the last layer and the cross-entropy over its captured features, in the
    same batches: what a loop over sizes and matrices could not do without;
robustness
    `feature_robustness` with 32 matrices and 10 sizes: values, standard errors, the
    second-order terms, and kappa.

The nets are not trained: that changes no time. Writes
``results/feature_robustness.json`` and ``.md``.
"""

import argparse
import os
from functools import partial

import numpy as np
import torch
from _data import add_data_option, load_images
from _environment import environment, medians, write_results
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F

from sklearn_relflat._feature_robustness import feature_robustness

N_MATRICES = 32
DELTAS = np.geomspace(0.01, 1.0, 10)
N_HEADS = N_MATRICES * len(DELTAS)
BATCH_SIZE = 500
# A forward pass is allowed 1.5 times, for what surrounds it.
ALLOWED_FORWARD = 1.5


def lenet5() -> nn.Module:
    """LeNet5 for images of 32 x 32 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def perceptron() -> nn.Module:
    """Perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def forward(module: nn.Module, X: torch.Tensor) -> None:
    """Run one pass without gradients."""
    with torch.no_grad():
        for part in X.split(BATCH_SIZE):
            module(part)


def heads(
    layer: nn.Linear, parts: list[tuple[torch.Tensor, torch.Tensor]], *, loss: bool
) -> None:
    """Run all passes of the last layer, with or without the loss."""
    with torch.no_grad():
        for _ in range(N_HEADS):
            for features, y in parts:
                outputs = layer(features)
                if loss:
                    F.cross_entropy(outputs, y, reduction="sum")


def measure(name: str, module: nn.Sequential, X, y, threads: int, repeats: int) -> dict:
    """Time one net."""
    torch.set_num_threads(threads)
    net = NeuralNetClassifier(
        lambda: module,
        criterion=nn.CrossEntropyLoss,
        batch_size=BATCH_SIZE,
        train_split=None,
    ).initialize()
    module.eval()
    with torch.no_grad():
        features = torch.cat([module[:-1](part) for part in X.split(BATCH_SIZE)])
    parts = list(zip(features.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True))
    robustness = partial(
        feature_robustness,
        net,
        X,
        y,
        deltas=DELTAS,
        n_matrices=N_MATRICES,
        random_state=0,
    )
    seconds = medians(
        {
            "forward": partial(forward, module, X),
            "heads": partial(heads, module[-1], parts, loss=True),
            "last layers": partial(heads, module[-1], parts, loss=False),
            "robustness": robustness,
        },
        repeats,
    )
    allowed = ALLOWED_FORWARD * seconds["forward"] + seconds["heads"]
    return {
        "net": name,
        "n": len(X),
        "threads": threads,
        "seconds": seconds,
        "forward_passes": seconds["robustness"] / seconds["forward"],
        "part_of_allowed": seconds["robustness"] / allowed,
    }


def table(payload: dict) -> str:
    """Write all results as Markdown."""
    conditions = payload["environment"]
    lines = [
        "# Feature robustness of a last layer: time",
        "",
        f"`python benchmarks/feature_robustness.py`, {N_MATRICES} orthogonal matrices "
        f"and {len(DELTAS)} sizes, batches of {BATCH_SIZE}, medians of one run, at a "
        f"load of {conditions['load_average']} on {conditions['cores']} cores. Allowed "
        f"are {ALLOWED_FORWARD} forward passes and {N_HEADS} of the head (last layer "
        "and cross-entropy).",
        "",
        f"| net and data | n | threads | forward, s | {N_HEADS} heads, s | without "
        "their loss, s | robustness, s | in forward passes | **part of what is "
        "allowed** |",
        "|---|" + "---:|" * 8,
    ]
    for row in payload["rows"]:
        s = row["seconds"]
        lines.append(
            f"| {row['net']} | {row['n']:,} | {row['threads']} | {s['forward']:.3f} "
            f"| {s['heads']:.3f} | {s['last layers']:.3f} | {s['robustness']:.3f} "
            f"| {row['forward_passes']:.1f} | **{row['part_of_allowed']:.2f}** |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    conditions = {"load_average": round(os.getloadavg()[0], 1)}
    payload: dict = {"environment": environment(arguments.seed) | conditions}
    payload["rows"] = []
    name, X, y = load_images(arguments.data, arguments.samples)
    digits, digit_labels = load_digits(return_X_y=True)
    for threads in arguments.threads:
        for title, module, data, labels in [
            (f"LeNet5, {name}", lenet5(), X, y),
            ("perceptron, digits", perceptron(), digits / 16, digit_labels),
        ]:
            data, labels = torch.tensor(data, dtype=torch.float32), torch.tensor(labels)
            row = measure(title, module, data, labels, threads, arguments.repeats)
            payload["rows"].append(row)
    write_results("feature_robustness", payload, table(payload))


if __name__ == "__main__":
    main()
