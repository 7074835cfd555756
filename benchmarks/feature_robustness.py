"""feature_robustness: its time on a last layer, and Theorem 5 on three trained nets.

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

These nets are not trained: that changes no time. For Theorem 5, models are trained to a
minimum in double precision, and E_F is compared with its second-order term while the
perturbations are halved. Writes ``results/feature_robustness.json`` and ``.md``.
"""

import argparse
import os
from functools import partial

import numpy as np
import torch
from _data import add_data_option, load_images
from _environment import environment, medians, write_results
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F

from sklearn_relflat._robustness.feature_robustness import feature_robustness

N_MATRICES = 32
DELTAS = np.geomspace(0.01, 1.0, 10)
N_HEADS = N_MATRICES * len(DELTAS)
BATCH_SIZE = 500
# Hidden layers of LeNet5.
HIDDEN = {"0": "conv1", "3": "conv2", "7": "fc1", "9": "fc2"}
# Sizes for Theorem 5.
HALVED = 0.2 * 0.5 ** np.arange(6)
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


def make_net(module: nn.Module) -> NeuralNetClassifier:
    """Return a net around a module."""
    net = NeuralNetClassifier(
        lambda: module,
        criterion=nn.CrossEntropyLoss,
        batch_size=BATCH_SIZE,
        train_split=None,
    ).initialize()
    module.eval()
    return net


def measure(name: str, module: nn.Sequential, X, y, threads: int, repeats: int) -> dict:
    """Time one net."""
    torch.set_num_threads(threads)
    net = make_net(module)
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


def measure_hidden(X, y, repeats: int) -> list[dict]:
    """Time the hidden layers of LeNet5, beside as many plain forward passes."""
    torch.set_num_threads(1)
    X, y = X[:BATCH_SIZE], y[:BATCH_SIZE]
    module = lenet5()
    net = make_net(module)
    n_passes = 8 * len(DELTAS)

    def passes() -> None:
        """Run plain forward passes."""
        for _ in range(n_passes):
            forward(module, X)

    functions: dict = {"forward": passes}
    for layer, name in HIDDEN.items():
        functions[name] = partial(
            feature_robustness,
            net,
            X,
            y,
            deltas=DELTAS,
            n_matrices=8,
            layer=layer,
            random_state=0,
        )
    seconds = medians(functions, repeats)
    return [
        {
            "layer": name,
            "n_passes": n_passes,
            "seconds": seconds[name],
            "part_of_forward_passes": seconds[name] / seconds["forward"],
        }
        for name in HIDDEN.values()
    ]


def theorem_5(seed: int) -> list[dict]:
    """Compare E_F with its second-order term on trained models."""
    X, y = load_wine(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    models: dict = {"logistic regression": LogisticRegression(max_iter=1000, tol=1e-8)}
    for activation in ("relu", "tanh"):
        models[f"{activation} net"] = MLPClassifier(
            hidden_layer_sizes=(16, 8),
            activation=activation,
            alpha=1.0,
            solver="lbfgs",
            max_iter=3000,
            random_state=0,
        )
    rows = []
    for name, model in models.items():
        result = feature_robustness(
            model.fit(X, y), X, y, deltas=HALVED, n_matrices=64, random_state=seed
        )
        deviation = result.expectation / result.flatness_term - 1
        rows.append(
            {
                "model": name,
                "n_features": result.n_features,
                "kappa": result.flatness,
                "ratio": (result.mean / result.flatness_term).tolist(),
                "ratio_stderr": (result.stderr / result.flatness_term).tolist(),
                "deviation": deviation.tolist(),
                "agreement_radius": result.agreement_radius,
            }
        )
    return rows


def theorem_table(rows: list[dict]) -> list[str]:
    """Write the comparison as Markdown."""
    lines = [
        "| delta | " + " | ".join(f"{row['model']} | factor" for row in rows) + " |",
        "|" + "---:|" * (1 + 2 * len(rows)),
    ]
    for i, delta in enumerate(HALVED):
        cells = [f"{delta:.5g}"]
        for row in rows:
            deviation = row["deviation"]
            cells.append(f"{1 + deviation[i]:.6f}")
            cells.append(f"{deviation[i - 1] / deviation[i]:.2f}" if i else "")
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["of all matrices"]
    for row in rows:
        ratio, error = row["ratio"][-1], row["ratio_stderr"][-1]
        cells += [f"{ratio:.2f} ± {error:.2f}", ""]
    return [*lines, "| " + " | ".join(cells) + " |"]


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
    lines += [
        "",
        "Hidden layers of LeNet5, 8 matrices: time in units of as many plain forward "
        "passes of the whole network as there are matrices and sizes. The second-order "
        "terms and kappa are part of it.",
        "",
        "| layer | part of the forward passes |",
        "|---|---:|",
    ]
    lines += [
        f"| {row['layer']} | {row['part_of_forward_passes']:.2f} |"
        for row in payload["hidden"]
    ]
    lines += [
        "",
        "## Theorem 5",
        "",
        "Last layers, 64 orthogonal matrices, float64, standardised wine data. E_F "
        "over delta^2 / (2m) kappa, without the sampling error of the second order, "
        "and the factor by which its distance from one fell as delta was halved. The "
        "last row is the plain mean over the matrices at the smallest delta, with its "
        "standard error.",
        "",
        "<!-- begin theorem 5 -->",
        "",
        *theorem_table(payload["theorem_5"]),
        "",
        "<!-- end theorem 5 -->",
    ]
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
    images, labels = torch.tensor(X), torch.tensor(y)
    payload["hidden"] = measure_hidden(images, labels, arguments.repeats)
    payload["theorem_5"] = theorem_5(arguments.seed)
    write_results("feature_robustness", payload, table(payload))


if __name__ == "__main__":
    main()
