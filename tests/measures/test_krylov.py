"""Eigenvalues from products with vectors, against matrices with a known spectrum."""

import pytest
import torch

from sklearn_relflat._measures.krylov import Krylov, extreme_eigenpairs

EPS = torch.finfo(torch.float64).eps
SPECTRA = {
    "outliers": torch.cat([torch.rand(77, dtype=torch.float64), torch.tensor([5, 9])]),
    "indefinite": torch.linspace(-3, 2, 79, dtype=torch.float64),
    "low rank": torch.cat([torch.zeros(75), torch.tensor([-2, 1, 3, 4])]).double(),
    "repeated": torch.cat([torch.zeros(40), torch.full((39,), 2.0)]).double(),
    "zero": torch.zeros(79, dtype=torch.float64),
    "negative": -torch.linspace(1, 2, 79, dtype=torch.float64),
}
ORDERS = {
    "largest": lambda values: values.sort(descending=True).values,
    "smallest": lambda values: values.sort().values,
    "magnitude": lambda values: values[values.abs().argsort(descending=True)],
}
every_spectrum = pytest.mark.parametrize("name", list(SPECTRA))


class Counted:
    """A matrix with these eigenvalues, and the products with it."""

    def __init__(self, values, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(self.normal(len(values), len(values))).Q
        self.matrix = basis @ values.diag() @ basis.T
        self.n_products = 0

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def __call__(self, vector):
        self.n_products += 1
        return self.matrix @ vector


def pairs_of(matrix, k, **options):
    chosen = {
        "order": "largest",
        "rtol": 1e-9,
        "eps": EPS,
        "max_products": 1000,
        "max_basis": 100,
    } | options
    n = len(matrix.matrix)
    return extreme_eigenpairs(matrix, [matrix.normal(n) for _ in range(k)], **chosen)


@every_spectrum
@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("max_basis", [24, 100])
def test_extreme_eigenpairs(name, order, k, max_basis):
    values = SPECTRA[name]
    matrix = Counted(values)
    found = pairs_of(matrix, k, order=order, max_basis=max_basis)
    expected = ORDERS[order](values)[:k]
    if order == "magnitude":
        # Of two values of about the same size either may come first.
        torch.testing.assert_close(
            found.values.abs(), expected.abs(), rtol=1e-8, atol=1e-12
        )
    else:
        torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=1e-12)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(k).double(), rtol=0, atol=1e-12)
    images = found.vectors @ matrix.matrix
    residuals = (images - found.values[:, None] * found.vectors).norm(dim=1)
    assert bool((residuals <= found.residuals + 1e-13).all())


def test_a_looser_tolerance_takes_fewer_products():
    counts = []
    for rtol in (1e-10, 1e-4, 0.1):
        matrix = Counted(SPECTRA["outliers"])
        pairs_of(matrix, 1, rtol=rtol)
        counts.append(matrix.n_products)
    assert counts[0] > counts[1] > counts[2]


def test_no_convergence_within_the_products():
    matrix = Counted(SPECTRA["indefinite"])
    assert pairs_of(matrix, 1, rtol=1e-12, max_products=5) is None
    assert matrix.n_products == 5


def test_what_the_matrix_cannot_reach_ends_the_iteration():
    """Two different eigenvalues: two products, and nothing more to be found."""
    matrix = Counted(SPECTRA["repeated"])
    space = Krylov(matrix, [matrix.normal(79)], 1e-12)
    while not space.is_invariant:
        space.grow()
    assert space.n_done == 2
    torch.testing.assert_close(
        space.ritz().values, torch.tensor([2.0, 0.0]).double(), rtol=1e-10, atol=1e-12
    )


def test_the_basis_stays_orthogonal():
    """An eigenvalue far from the rest, which plain Lanczos finds again and again."""
    values = torch.cat([torch.rand(199), torch.tensor([1e6])]).double()
    matrix = Counted(values)
    space = Krylov(matrix, [matrix.normal(200)], EPS)
    for _ in range(80):
        space.grow()
    assert int((space.ritz().values > 1e5).sum()) == 1
    basis = space.vectors(torch.eye(80).double())
    gram = basis @ basis.T
    torch.testing.assert_close(gram, torch.eye(80).double(), rtol=0, atol=1e-12)
