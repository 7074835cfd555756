"""Coverage of the intervals that ``method="sampled"`` gives: value +- 1.96 stderr.

Run ``python benchmarks/sampling_coverage.py``. Each setting is a small model on data
that make sampling hard; over many seeds, the share of the intervals that hold the exact
value has to be between 0.92 and 0.99. Where too few draws could tell an error, the
result is exact instead: these are counted apart, and their error has to be zero.
Writes ``results/sampling_coverage.json`` and ``.md``.
"""

import argparse

import numpy as np
import torch
from _environment import environment, write_results
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from sklearn_relflat import layerwise_relative_flatness, relative_flatness


def mlp(n_outputs: int, activation, width: int = 12) -> nn.Module:
    """Return a net with two hidden layers."""
    return nn.Sequential(
        nn.Linear(6, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, n_outputs),
    )


def heavy_tailed(rng, n: int) -> np.ndarray:
    """Return features of which a few samples are far out."""
    return rng.standard_t(2.5, size=(n, 6))


def normal(rng, n: int) -> np.ndarray:
    """Return features without surprises."""
    return rng.normal(size=(n, 6))


def one_dominates(rng, n: int) -> np.ndarray:
    """Return weights of which one outweighs all others."""
    return np.r_[1e6, np.ones(n - 1)]


CE, POISSON, MSE = nn.CrossEntropyLoss, nn.PoissonNLLLoss, nn.MSELoss
#: Name: criterion, activation, outputs, samples, features, weights, layer, rtol, scale.
SETTINGS = {
    "heavy tails, ReLU": (CE, nn.ReLU, 40, 200, heavy_tailed, None, "2", 0.03, 1),
    "heavy tails, tanh": (CE, nn.Tanh, 40, 200, heavy_tailed, None, "2", 0.05, 1),
    "heavy tails, few": (CE, nn.ReLU, 60, 30, heavy_tailed, None, "0", 0.1, 1),
    "heavy tails, MSE": (MSE, nn.ReLU, 60, 60, heavy_tailed, None, "2", 0.05, 1),
    "Poisson": (POISSON, nn.ReLU, 30, 100, normal, None, "2", 0.1, 1),
    "Poisson, heavy tails": (
        POISSON,
        nn.Tanh,
        40,
        100,
        heavy_tailed,
        None,
        "2",
        0.1,
        1,
    ),
    "n = 1": (CE, nn.ReLU, 50, 1, normal, None, "2", 0.1, 1),
    "n = 2": (CE, nn.ReLU, 50, 2, normal, None, "2", 0.1, 1),
    "n = 3": (CE, nn.Tanh, 50, 3, normal, None, "2", 0.1, 1),
    "n = 5": (MSE, nn.ReLU, 80, 5, normal, None, "2", 0.1, 1),
    "n = 3, 3 classes": (CE, nn.ReLU, 3, 3, normal, None, "2", 0.1, 1),
    "n = 12": (CE, nn.ReLU, 50, 12, normal, None, "0", 0.1, 1),
    "a dominating weight": (CE, nn.ReLU, 50, 60, normal, one_dominates, "2", 0.1, 1),
    "saturated": (CE, nn.ReLU, 40, 100, normal, None, "2", 0.1, 30),
    "saturated, few": (CE, nn.ReLU, 40, 8, normal, None, "2", 0.1, 30),
    "loose": (CE, nn.Tanh, 40, 200, normal, None, "0", 0.3, 1),
    "tight": (CE, nn.Tanh, 40, 100, normal, None, "0", 0.01, 1),
    "several layers": (CE, nn.ReLU, 40, 100, normal, None, None, 0.05, 1),
}


def run(name: str, n_seeds: int) -> dict:
    """Measure one setting: coverage, and how often the result was exact."""
    criterion, act, k, n, draw, weigh, layer, rtol, scale = SETTINGS[name]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    module = mlp(k, act)
    with torch.no_grad():
        module[-1].weight *= scale
    X = torch.tensor(draw(rng, n))
    if criterion is CE:
        y = torch.tensor(rng.integers(k, size=n))
    else:
        y = torch.tensor(np.floor(np.abs(rng.normal(size=(n, k)))))
    kind = NeuralNetClassifier if criterion is CE else NeuralNetRegressor
    net = kind(module, criterion=criterion, train_split=None, batch_size=-1)
    net.initialize().module_.double()
    options = {} if weigh is None else {"sample_weight": weigh(rng, n)}
    measure = relative_flatness
    if layer is None:
        measure = layerwise_relative_flatness
        layer = "0"
    else:
        options["layer"] = layer

    def one(**how):
        result = measure(net, X, y, **options, **how)
        return result[layer] if isinstance(result, dict) else result

    exact = one(method="exact").value
    hits, sampled, width = [], 0, []
    for seed in range(n_seeds):
        result = one(method="sampled", rtol=rtol, random_state=seed)
        error = abs(result.value - exact)
        if result.method == "sampled":
            sampled += 1
            hits.append(error <= 1.96 * result.stderr)
            width.append(result.stderr / abs(exact))
        elif error > 1e-9 * abs(exact):
            raise AssertionError(f"{name}, seed {seed}: {result} where {exact!r}")
    return {
        "coverage": float(np.mean(hits)) if hits else None,
        "sampled": sampled,
        "exact": n_seeds - sampled,
        "median_relative_stderr": float(np.median(width)) if width else 0.0,
        "rtol": rtol,
    }


def main() -> None:
    """Measure all settings and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--only", default="", help="part of a setting's name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    lines = ["| setting | coverage | sampled | exact | relative stderr (rtol) |"]
    lines.append("|---|---|---|---|---|")
    for name in SETTINGS:
        if args.only in name:
            rows[name] = row = run(name, args.seeds)
            cover = "-" if row["coverage"] is None else f"{row['coverage']:.3f}"
            lines.append(
                f"| {name} | {cover} | {row['sampled']} | {row['exact']} | "
                f"{row['median_relative_stderr']:.3f} ({row['rtol']}) |"
            )
            print(lines[-1], flush=True)
    if not args.only:
        payload = {"environment": environment(0), "seeds": args.seeds, "rows": rows}
        write_results("sampling_coverage", payload, "\n".join(lines))


if __name__ == "__main__":
    main()
