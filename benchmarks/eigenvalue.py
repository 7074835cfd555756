"""Time of the largest eigenvalue of the Hessian, against power iteration and ARPACK.

Run ``python benchmarks/eigenvalue.py [--data FOLDER]``. LeNet5, all weights, 1,000
images. The power iteration is PyHessian's algorithm: one batch, the graph of the
gradient kept, until the Rayleigh quotient changes by less than a relative 1e-3. In
the row for ARPACK the graph is built anew for every product.
"""

import argparse
from typing import Any

import torch
from _data import add_data_option, load_images
from _environment import environment, medians, ratio_table, write_results
from relative_flatness import trained_net
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from sklearn_relflat import hessian_max_eigenvalue

N_SAMPLES = 1000
RTOL = 1e-2
POWER_TOL = 1e-3
MAX_POWER = 100
REPEATS = 3


class Products:
    """Products with the Hessian in all weight matrices, by plain torch."""

    def __init__(self, module: nn.Module, X: Any, y: Any, *, keep: bool) -> None:
        self.weights = [p for p in module.parameters() if p.dim() > 1]
        self.module, self.X, self.y, self.keep = module, X, y, keep
        self.gradients: Any = None
        self.n_products = 0

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """Multiply a flat vector."""
        self.n_products += 1
        if self.gradients is None or not self.keep:
            loss = nn.functional.cross_entropy(self.module(self.X), self.y)
            self.gradients = torch.autograd.grad(loss, self.weights, create_graph=True)
        parts = vector.split([w.numel() for w in self.weights])
        inner = sum(
            (g * part.reshape(g.shape)).sum()
            for g, part in zip(self.gradients, parts, strict=True)
        )
        products = torch.autograd.grad(inner, self.weights, retain_graph=self.keep)
        return torch.cat([product.flatten() for product in products])

    def start(self) -> torch.Tensor:
        """Random unit vector."""
        generator = torch.Generator().manual_seed(0)
        n = sum(w.numel() for w in self.weights)
        vector = torch.randn(n, generator=generator)
        return vector / vector.norm()


def power_iteration(products: Products) -> float:
    """Largest eigenvalue in absolute value, as PyHessian computes it."""
    vector, value = products.start(), None
    for _ in range(MAX_POWER):
        image = products(vector)
        new = float(vector @ image)
        vector = image / image.norm()
        if value is not None and abs(new - value) / (abs(value) + 1e-6) < POWER_TOL:
            return new
        value = new
    return new


def arpack(products: Products) -> float:
    """Largest eigenvalue by ARPACK with its usual number of vectors."""
    start = products.start()

    def multiply(vector: Any) -> Any:
        return products(torch.as_tensor(vector, dtype=torch.float32)).double().numpy()

    operator = LinearOperator((len(start), len(start)), multiply, dtype="float64")
    values = eigsh(
        operator, k=1, which="LA", v0=start.double().numpy(), tol=RTOL, ncv=20,
        return_eigenvectors=False,
    )  # fmt: skip
    return float(values[0])


def main() -> None:
    """Write the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, images, labels = load_images(arguments.data, N_SAMPLES)
    X, y = torch.from_numpy(images), torch.from_numpy(labels)
    net = trained_net(X, y, arguments.seed)
    module = net.module_.eval()
    found: dict[str, tuple[float, int]] = {}

    def ours() -> None:
        result = hessian_max_eigenvalue(
            net, X, y, layer="all", rtol=RTOL, random_state=0
        )
        found["ours"] = (result.value, result.n_products)

    def by(name: str, method: Any, *, keep: bool) -> Any:
        def run() -> None:
            products = Products(module, X, y, keep=keep)
            found[name] = (method(products), products.n_products)

        return run

    seconds = medians(
        {
            "ours": ours,
            "power iteration": by("power iteration", power_iteration, keep=True),
            "ARPACK": by("ARPACK", arpack, keep=False),
        },
        REPEATS,
    )
    exact = hessian_max_eigenvalue(
        net, X, y, layer="all", rtol=1e-6, random_state=1
    ).value
    rows = []
    for other, tolerance in (("power iteration", POWER_TOL), ("ARPACK", RTOL)):
        ratio = seconds["ours"] / seconds[other]
        rows.append(
            {
                "what": f"hessian_max_eigenvalue, rtol {RTOL:g}, "
                f"{found['ours'][1]} products, "
                f"error {abs(found['ours'][0] / exact - 1):.1e}",
                "against": f"{other}, tol {tolerance:g}, {found[other][1]} products, "
                f"error {abs(found[other][0] / exact - 1):.1e}",
                "ratio": ratio,
                "limit": 1.0,
                "met": ratio <= 1.0,
                "threads": 1,
                "seconds": [seconds["ours"], seconds[other]],
            }
        )
    head = f"LeNet5, all weights, {N_SAMPLES:,} images of {name}"
    payload = {"environment": environment(arguments.seed), "rows": rows}
    write_results("eigenvalue", payload, ratio_table(rows, head))


if __name__ == "__main__":
    main()
