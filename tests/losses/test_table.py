"""Every loss against hand-computed tables, torch's own scalars and double backward."""

import copy
import functools
import itertools
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_relflat._losses.cross_entropy import (
    _variance_around_top,
    _variance_of_pairs,
)
from sklearn_relflat._losses.table import (
    LOSSES,
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    loss_from_criterion,
    resolve_loss,
)

N = 7
LN = math.log
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def normal(*shape, seed=0, scale=1.5):
    rng = np.random.default_rng(seed)
    return torch.tensor(scale * rng.standard_normal(shape))


def labels(*shape, high=4, seed=1):
    return torch.tensor(np.random.default_rng(seed).integers(0, high, shape))


def probabilities(*shape, seed=2):
    return torch.softmax(normal(*shape, seed=seed), 1)


def log_cosh(outputs, y):
    """A smooth loss that the package does not know."""
    return (F.softplus(2 * (outputs - y)) - (outputs - y) - LN(2)).mean()


def double_well(outputs, y):
    """A smooth loss with Hessians of both signs, coupled over the outputs."""
    error = outputs - y
    return ((error.square().sum(1) - 1).square() + error.prod(1)).mean()


class Focal(nn.Module):
    """A criterion that keeps the conventions of torch, with mixed curvature."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs, y):
        loss = F.cross_entropy(outputs, y, reduction="none")
        loss = (1 - torch.exp(-loss)).square() * loss
        return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[
            self.reduction
        ]()


class Temperature(nn.Module):
    """A criterion without the attribute `reduction`, with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, outputs, y):
        return F.cross_entropy(self.scale * outputs, y)


# id -> (criterion or name of the loss, outputs, y)
CASES = {
    "ce": (nn.CrossEntropyLoss(), normal(N, 4), labels(N)),
    "ce-binary": (nn.CrossEntropyLoss(), normal(N, 2), labels(N, high=2)),
    "ce-options": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, ignore_index=2),
        normal(N, 4),
        labels(N),
    ),
    "ce-sum": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), normal(N, 4), labels(N)),
    "ce-probabilities": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1),
        normal(N, 4),
        probabilities(N, 4),
    ),
    "ce-dense": (
        nn.CrossEntropyLoss(WEIGHT, ignore_index=1),
        normal(N, 4, 3),
        labels(N, 3),
    ),
    "ce-dense-2d": (nn.CrossEntropyLoss(), normal(N, 3, 2, 2), labels(N, 2, 2, high=3)),
    "ce-dense-binary": (nn.CrossEntropyLoss(), normal(N, 2, 3), labels(N, 3, high=2)),
    "ce-dense-probabilities": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        normal(N, 3, 2),
        probabilities(N, 3, 2),
    ),
    "nll": (nn.NLLLoss(WEIGHT, ignore_index=3), normal(N, 4), labels(N)),
    "bce": (nn.BCEWithLogitsLoss(), normal(N), labels(N, high=2)),
    "bce-column": (nn.BCELoss(), normal(N, 1), labels(N, high=2).double()),
    "bce-options": (
        nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT.flip(0)),
        normal(N, 4),
        torch.sigmoid(normal(N, 4, seed=5)),
    ),
    "bce-one-versus-rest": (nn.BCEWithLogitsLoss(), normal(N, 4), labels(N)),
    "bce-sum": (nn.BCEWithLogitsLoss(reduction="sum"), normal(N, 4), labels(N)),
    "bce-dense": (
        nn.BCEWithLogitsLoss(pos_weight=WEIGHT[:3, None]),
        normal(N, 3, 2),
        labels(N, 3, 2, high=2),
    ),
    "mse": (nn.MSELoss(), normal(N), normal(N, seed=3)),
    "mse-column": (nn.MSELoss(), normal(N, 1), normal(N, seed=3)),
    "mse-many": (nn.MSELoss(), normal(N, 3), normal(N, 3, seed=3)),
    "mse-sum": (nn.MSELoss(reduction="sum"), normal(N, 3), normal(N, 3, seed=3)),
    "mse-one-hot": (nn.MSELoss(), normal(N, 4), labels(N)),
    "huber": (nn.HuberLoss(delta=0.8), normal(N, 3), normal(N, 3, seed=3)),
    "smooth-l1": (nn.SmoothL1Loss(beta=0.5), normal(N, 3), normal(N, 3, seed=3)),
    "poisson": (nn.PoissonNLLLoss(), normal(N, 2), labels(N, 2, high=6)),
    "poisson-full": (nn.PoissonNLLLoss(full=True), normal(N), labels(N, high=6)),
    "brier": ("brier", normal(N, 4), labels(N)),
    "brier-one-output": ("brier", normal(N, 1), labels(N, high=2).double()),
    "brier-dense": ("brier", normal(N, 3, 2), labels(N, 2, high=3)),
    "soft-margin": (nn.SoftMarginLoss(), normal(N, 3), 2.0 * labels(N, 3, high=2) - 1),
    "poisson-rates": (
        nn.PoissonNLLLoss(log_input=False),
        normal(N).exp(),
        labels(N, high=6),
    ),
    "callable": (log_cosh, normal(N, 3, scale=0.5), normal(N, 3, seed=3, scale=0.5)),
    "callable-column": (log_cosh, normal(N, 1), normal(N, seed=3)),
    "callable-mixed-signs": (double_well, normal(N, 3), normal(N, 3, seed=3)),
    "module": (Focal(), normal(N, 4), labels(N)),
    "module-sum": (Focal("sum"), normal(N, 4), labels(N)),
    "module-without-reduction": (Temperature(), normal(N, 4), labels(N)),
}
cases = pytest.mark.parametrize("case", CASES)


def prepared(case):
    criterion, outputs, y = CASES[case]
    loss = resolve_loss(criterion, None)
    return loss, outputs, loss.targets(outputs, y)


@functools.cache
def derivatives(case):
    """Oracle: gradients (n, D) and Hessians (n, D, D) sample by sample, by autograd."""
    loss, outputs, targets = prepared(case)
    gradients, hessians = [], []
    for i in range(N):

        def of_sample(flat, i=i):
            one = flat.reshape(outputs[i : i + 1].shape)
            return loss.value(one, targets[i : i + 1])[0]

        flat = outputs[i].reshape(-1)
        gradients.append(torch.autograd.functional.jacobian(of_sample, flat))
        hessians.append(torch.autograd.functional.hessian(of_sample, flat))
    return torch.stack(gradients), torch.stack(hessians)


def outer(c, s):
    """s c c^T per sample, in the flattened outputs."""
    c = c.reshape(len(c), -1)
    s = torch.ones(len(c), dtype=c.dtype) if s is None else s
    return torch.einsum("n,ni,nj->nij", s, c, c)


# --- hand-computed values ----------------------------------------------------------
# p = (1, 2, 5)/8 for the logits (0, ln 2, ln 5), sigmoid(ln 3) = 3/4.
P = [0.0, LN(2), LN(5)]
P_HESSIAN = [[7 / 64, -2 / 64, -5 / 64], [-2 / 64, 12 / 64, -10 / 64]]
P_HESSIAN += [[-5 / 64, -10 / 64, 15 / 64]]
W3 = torch.tensor([1.0, 2.0, 4.0])
# criterion, outputs and y of one sample, value, denominator, gradient, Hessian
TABLE = {
    "ce": (
        nn.CrossEntropyLoss(), P, 2, LN(8 / 5), 1,
        [1 / 8, 2 / 8, -3 / 8], P_HESSIAN,
    ),
    "ce-weight": (
        nn.CrossEntropyLoss(W3), P, 1, 2 * LN(4), 2,
        [2 / 8, -12 / 8, 10 / 8], 2 * np.array(P_HESSIAN),
    ),
    "ce-smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.3), P, 0,
        0.8 * LN(8) + 0.1 * LN(4) + 0.1 * LN(1.6), 1,
        [1 / 8 - 0.8, 2 / 8 - 0.1, 5 / 8 - 0.1], P_HESSIAN,
    ),
    "ce-ignored": (
        nn.CrossEntropyLoss(ignore_index=1), P, 1, 0, 0, [0] * 3, np.zeros((3, 3)),
    ),
    "ce-probabilities": (
        nn.CrossEntropyLoss(W3), P, [0.5, 0.25, 0.25],
        0.5 * LN(8) + 0.5 * LN(4) + LN(1.6), 1,
        [2 / 8 - 0.5, 4 / 8 - 0.5, 10 / 8 - 1], 2 * np.array(P_HESSIAN),
    ),
    "bce": (nn.BCEWithLogitsLoss(), LN(3), 1, LN(4 / 3), 1, -1 / 4, [[3 / 16]]),
    "bce-pos-weight": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), LN(3), 1,
        2 * LN(4 / 3), 1, -1 / 2, [[3 / 8]],
    ),
    "bce-one-versus-rest": (
        nn.BCEWithLogitsLoss(), [LN(3), 0.0], 0, (LN(4 / 3) + LN(2)) / 2, 1,
        [-1 / 8, 1 / 4], [[3 / 32, 0], [0, 1 / 8]],
    ),
    "mse": (
        nn.MSELoss(), [1.0, 3.0], [0.0, 1.0], 2.5, 1, [1, 2], np.eye(2),
    ),
    "mse-sum": (
        nn.MSELoss(reduction="sum"), [1.0, 3.0], [0.0, 1.0], 5, 1, [2, 4],
        2 * np.eye(2),
    ),
    "huber": (
        nn.HuberLoss(), [0.5, 3.0], [0.0, 0.0], 1.3125, 1, [0.25, 0.5],
        [[0.5, 0], [0, 0]],
    ),
    "smooth-l1": (
        nn.SmoothL1Loss(beta=2.0), [1.0, 3.0], [0.0, 0.0], 1.125, 1, [0.25, 0.5],
        [[0.25, 0], [0, 0]],
    ),
    "poisson": (
        nn.PoissonNLLLoss(), [LN(2), 0.0], [3.0, 1.0], (3 - 3 * LN(2)) / 2, 1,
        [-0.5, 0], [[1, 0], [0, 0.5]],
    ),
    "brier": (
        "brier", [0.0, LN(3)], 0, 9 / 8, 1, [-9 / 16, 9 / 16],
        [[-9 / 64, 9 / 64], [9 / 64, -9 / 64]],
    ),
    "brier-one-output": ("brier", LN(3), 0, 9 / 8, 1, 9 / 16, [[-9 / 64]]),
    "autograd": (
        lambda f, y: (f - y).pow(4).mean(), 3.0, 1.0, 16, 1, 32, [[48]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE)
def test_hand_computed(row):
    criterion, outputs, y, value, denominator, gradient, hessian = TABLE[row]
    loss = resolve_loss(criterion, None)
    outputs = torch.tensor([outputs], dtype=torch.float64)
    y = torch.tensor([y])
    targets = loss.targets(outputs, y)
    assert loss.value(outputs, targets).item() == pytest.approx(value, abs=1e-14)
    assert loss.denominator(outputs, targets).tolist() == [denominator]
    np.testing.assert_allclose(
        loss.gradient(outputs, targets)[0], gradient, rtol=0, atol=1e-14
    )
    hessian = np.array(hessian)
    total = sum(outer(c, s) for c, s in loss.factors(outputs, targets))
    np.testing.assert_allclose(total[0], hessian, rtol=0, atol=1e-14)
    root = np.arange(hessian.size).reshape(hessian.shape) / 3 + np.eye(len(hessian))
    inner = loss.hessian_inner(outputs, targets, torch.tensor(root))
    assert inner.item() == pytest.approx((root @ root.T * hessian).sum(), abs=1e-13)


# --- torch's own scalar
def ce_options():
    names = ("weight", "smoothing", "ignore_index", "reduction", "kind")
    options = itertools.product(
        (None, WEIGHT), (0.0, 0.3), (-100, 2), ("mean", "sum"),
        ("labels", "dense", "probabilities", "dense probabilities"),
    )  # fmt: skip
    for values in options:
        option = dict(zip(names, values, strict=True))
        if option["ignore_index"] == -100 or "probabilities" not in option["kind"]:
            yield option


def in_batches(loss, outputs, y, size=3):
    """Empirical risk from ragged batches, as the conventions define it."""
    value = denominator = 0.0
    for f, t in zip(outputs.split(size), y.split(size), strict=True):
        targets = loss.targets(f, t)
        value = value + loss.value(f, targets).sum()
        denominator = denominator + loss.denominator(f, targets).sum()
    return value if loss.reduction == "sum" else value / denominator


@pytest.mark.parametrize(
    "option", list(ce_options()), ids=lambda o: "-".join(map(str, o.values()))
)
def test_cross_entropy_agrees_with_torch(option):
    kind = option.pop("kind")
    criterion = nn.CrossEntropyLoss(
        option["weight"],
        label_smoothing=option["smoothing"],
        ignore_index=option["ignore_index"],
        reduction=option["reduction"],
    )
    outputs = normal(N, 4, 3) if "dense" in kind else normal(N, 4)
    y = labels(*outputs.shape[::2]) if "dense" in kind else labels(N)
    if "probabilities" in kind:
        y = probabilities(*outputs.shape)
    actual = in_batches(loss_from_criterion(criterion), outputs, y)
    torch.testing.assert_close(actual, criterion(outputs, y), rtol=1e-13, atol=0)


@pytest.mark.parametrize("weight", [None, WEIGHT, WEIGHT[:1]], ids=str)
@pytest.mark.parametrize("pos_weight", [None, WEIGHT, WEIGHT[2]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy_agrees_with_torch(weight, pos_weight, reduction):
    criterion = nn.BCEWithLogitsLoss(weight, pos_weight=pos_weight, reduction=reduction)
    outputs, y = normal(N, 4), torch.sigmoid(normal(N, 4, seed=4))
    actual = in_batches(loss_from_criterion(criterion), outputs, y)
    torch.testing.assert_close(actual, criterion(outputs, y), rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3), (N, 3, 2)], ids=str)
@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss,
        functools.partial(nn.HuberLoss, delta=0.7),
        functools.partial(nn.SmoothL1Loss, beta=0.7),
        nn.PoissonNLLLoss,
        functools.partial(nn.PoissonNLLLoss, full=True),
        nn.SoftMarginLoss,
    ],
    ids=str,
)
def test_pointwise_agrees_with_torch(criterion, shape, reduction):
    criterion = criterion(reduction=reduction)
    outputs, y = normal(*shape), labels(*shape, high=6).double()
    actual = in_batches(loss_from_criterion(criterion), outputs, y)
    torch.testing.assert_close(actual, criterion(outputs, y), rtol=1e-13, atol=0)


def test_probability_criteria_mean_cross_entropy_of_logits():
    outputs, y = normal(N, 4), labels(N)
    nll = nn.NLLLoss(WEIGHT, ignore_index=1)
    expected = nll(torch.log_softmax(outputs, 1), y)
    torch.testing.assert_close(
        in_batches(loss_from_criterion(nll), outputs, y), expected
    )
    bce, y = nn.BCELoss(WEIGHT), torch.sigmoid(normal(N, 4, seed=4))
    expected = bce(torch.sigmoid(outputs), y)
    torch.testing.assert_close(
        in_batches(loss_from_criterion(bce), outputs, y), expected
    )


# --- derivatives
@cases
def test_gradient(case):
    loss, outputs, targets = prepared(case)
    gradient = loss.gradient(outputs, targets)
    assert gradient.shape == outputs.shape
    expected = derivatives(case)[0].reshape(outputs.shape)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


@cases
def test_factors(case):
    loss, outputs, targets = prepared(case)
    pairs = list(loss.factors(outputs, targets))
    assert len(pairs) == loss.n_factors(outputs)
    assert all(c.shape == outputs.shape for c, _ in pairs)
    total = sum(outer(c, s) for c, s in pairs)
    torch.testing.assert_close(total, derivatives(case)[1], rtol=0, atol=1e-10)


# Wide roots and narrow ones: the cross-entropy of many classes has a way of its own.
@pytest.mark.parametrize("width", [1, 2, 50])
@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][1].ndim < 3])
def test_hessian_inner(case, width):
    loss, outputs, targets = prepared(case)
    hessian = derivatives(case)[1]
    root = normal(hessian.shape[1], width, seed=8)
    torch.testing.assert_close(
        loss.hessian_inner(outputs, targets, root),
        (hessian * (root @ root.T)).sum((1, 2)),
        rtol=1e-11,
        atol=1e-10,
    )


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_both_variances_of_rows_are_the_mean_squared_distance(shift):
    p = torch.softmax(40 * normal(30, 7, seed=1), 1)
    rows = normal(7, 4, seed=2) + shift
    distances = (rows[:, None] - rows[None, :]).square().sum(2)
    exact = 0.5 * torch.einsum("nk,kl,nl->n", p, distances, p)
    assert float(exact.min()) < 1e-12 < 1e-3 < float(exact.max())
    # Of rows far from the origin the few classes' way loses what a matrix product does.
    torch.testing.assert_close(_variance_around_top(p, rows), exact, rtol=1e-8, atol=0)
    if not shift:
        torch.testing.assert_close(_variance_of_pairs(p, rows), exact)


def test_many_classes_take_no_matrix_of_pairs():
    # A matrix of pairs of classes alone would take 80 GB.
    n_classes = 100_000
    outputs, root = normal(2, n_classes), normal(n_classes, 3, seed=1)
    loss = CrossEntropy()
    targets = loss.targets(outputs, torch.tensor([0, 1]))
    p = torch.softmax(outputs, 1)
    mean = p @ root
    exact = (p[:, :, None] * (root - mean[:, None]).square()).sum((1, 2))
    torch.testing.assert_close(loss.hessian_inner(outputs, targets, root), exact)


def repeated(case, n_draws, seed=0):
    loss, outputs, targets = prepared(case)
    outputs = outputs.repeat_interleave(n_draws, 0)
    targets = targets.repeat_interleave(n_draws, 0)
    generator = torch.Generator().manual_seed(seed)
    return loss.sampled_factor(outputs, targets, generator)


@cases
def test_sampled_factor_is_unbiased(case):
    n_draws = 1500
    c, s = repeated(case, n_draws)
    draws = outer(c, s).unflatten(0, (N, n_draws))
    error = (draws.mean(1) - derivatives(case)[1]).abs()
    stderr = draws.std(1) / math.sqrt(n_draws)
    assert (error <= 5 * stderr + 1e-12).all()


@cases
def test_sampled_factor_is_reproducible(case):
    (first, s_first), (again, s_again) = repeated(case, 3), repeated(case, 3)
    assert first.shape == (3 * N, *CASES[case][1].shape[1:])
    assert torch.equal(first, again)
    assert s_first is s_again or torch.equal(s_first, s_again)


def test_sampled_cross_entropy_factors_have_the_length_of_the_trace():
    # The draw by curvature leaves no variance in the trace: a draw from p would.
    loss, outputs, targets = prepared("ce-options")
    lengths = repeated("ce-options", 5)[0].square().sum(1).unflatten(0, (N, 5))
    trace = loss.hessian_inner(outputs, targets, torch.eye(4))
    torch.testing.assert_close(lengths, trace[:, None].expand(N, 5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", ["ce-binary", "bce", "mse"])
def test_one_factor_is_the_exact_one_up_to_sign(case):
    loss, outputs, targets = prepared(case)
    (exact, _), = loss.factors(outputs, targets)  # fmt: skip
    sampled, _ = repeated(case, 1)
    torch.testing.assert_close(outer(sampled, None), outer(exact, None))


# --- saturated softmax
def exact_cross_entropy(logits, label):
    """Value, gradient and Hessian with 800 digits, 1 - p does not cancel in them."""
    getcontext().prec = 800
    powers = [Decimal(f).exp() for f in logits]
    p = [power / sum(powers) for power in powers]
    n_classes = range(len(p))
    gradient = [p[k] - (k == label) for k in n_classes]
    hessian = [[p[k] * ((k == j) - p[j]) for j in n_classes] for k in n_classes]
    return -p[label].ln(), gradient, hessian


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("gap", [5.0, 40.0, 300.0, 800.0, -800.0])
def test_saturated_cross_entropy(gap, label):
    logits = [gap, 0.0, -1.5]
    value, gradient, hessian = exact_cross_entropy(logits, label)
    loss, outputs = CrossEntropy(), torch.tensor([logits], dtype=torch.float64)
    targets = loss.targets(outputs, torch.tensor([label]))
    # What underflows in float64 may be zero; everything else to full accuracy.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-300)
    as_float = functools.partial(np.array, dtype=float)
    hessian = as_float(hessian)
    # log p of the right class is only as accurate as its absolute error allows.
    assert loss.value(outputs, targets).item() == pytest.approx(float(value), abs=1e-15)
    close(loss.gradient(outputs, targets)[0], as_float(gradient))
    total = sum(outer(c, s) for c, s in loss.factors(outputs, targets))[0]
    scale = np.sqrt(hessian.diagonal())
    error = np.abs(total.numpy() - hessian)
    assert (error <= 1e-12 * np.outer(scale, scale) + 1e-300).all()
    weight = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])
    differences = weight[:, None] - weight[None, :]
    inner = -0.5 * (np.square(differences).sum(2) * hessian).sum()
    root = torch.tensor(weight)
    close(loss.hessian_inner(outputs, targets, root).item(), inner)
    p = torch.softmax(outputs, 1)
    for variance in (_variance_of_pairs, _variance_around_top):
        close(variance(p, root).item(), inner)
    c, _ = loss.sampled_factor(outputs, targets, torch.Generator().manual_seed(0))
    close(c.square().sum().item(), np.trace(hessian))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("gap", [5.0, 40.0, 300.0, 800.0, -40.0, -800.0])
def test_saturated_binary_cross_entropy(gap, label):
    value, gradient, hessian = exact_cross_entropy([0.0, gap], label)
    loss, outputs = BinaryCrossEntropy(), torch.tensor([gap], dtype=torch.float64)
    targets = loss.targets(outputs, torch.tensor([label]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-300)
    close(loss.value(outputs, targets).item(), float(value))
    close(loss.gradient(outputs, targets).item(), float(gradient[1]))
    inner = loss.hessian_inner(outputs, targets, torch.eye(1))
    close(inner.item(), float(hessian[1][1]))


@cases
def test_extreme_logits_stay_finite(case):
    if case.startswith(("poisson", "soft-margin", "callable-mixed")):
        pytest.skip("this criterion itself overflows at outputs of 800")
    loss, outputs, targets = prepared(case)
    outputs = 800 * outputs.sign()
    generator = torch.Generator().manual_seed(0)
    assert loss.value(outputs, targets).isfinite().all()
    assert loss.gradient(outputs, targets).isfinite().all()
    assert all(c.isfinite().all() for c, _ in loss.factors(outputs, targets))
    assert loss.sampled_factor(outputs, targets, generator)[0].isfinite().all()


# --- dtype, device, and what must stay untouched
@cases
def test_float32(case):
    loss, outputs, targets = prepared(case)
    outputs = outputs.float()
    y = CASES[case][2]
    targets = loss.targets(outputs, y.float() if y.is_floating_point() else y)
    generator = torch.Generator().manual_seed(0)
    results = [loss.value(outputs, targets), loss.denominator(outputs, targets)]
    results += [loss.gradient(outputs, targets)]
    results += [c for c, _ in loss.factors(outputs, targets)]
    results += [loss.sampled_factor(outputs, targets, generator)[0]]
    assert {result.dtype for result in results} == {torch.float32}
    total = sum(outer(c, s) for c, s in loss.factors(outputs, targets))
    expected = derivatives(case)[1].float()
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@cases
def test_cuda(case):
    criterion, outputs, y = CASES[case]
    loss = resolve_loss(copy.deepcopy(criterion), None)
    outputs = outputs.cuda()
    targets = loss.targets(outputs, y)
    total = sum(
        outer(c.cpu(), None if s is None else s.cpu())
        for c, s in loss.factors(outputs, targets)
    )
    torch.testing.assert_close(total, derivatives(case)[1], rtol=0, atol=1e-10)
    for device in ("cpu", "cuda"):
        generator = torch.Generator(device).manual_seed(0)
        assert loss.sampled_factor(outputs, targets, generator)[0].is_cuda


def test_criterion_is_not_modified():
    criterion = Temperature()
    outputs = normal(N, 4)
    loss = loss_from_criterion(criterion)
    list(loss.factors(outputs, loss.targets(outputs, labels(N))))
    assert criterion.scale.dtype == torch.float32
    assert criterion.scale.grad is None
    focal = Focal()
    loss_from_criterion(focal)
    assert focal.reduction == "mean"


@cases
def test_works_without_grad_mode(case):
    loss, outputs, targets = prepared(case)
    with torch.no_grad():
        total = sum(outer(c, s) for c, s in loss.factors(outputs, targets))
        gradient = loss.gradient(outputs, targets)
    assert (total.requires_grad, gradient.requires_grad) == (False, False)


# --- targets
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("name", ["cross_entropy", "squared_error", "brier"])
def test_integer_labels_of_any_width(name, dtype):
    loss, outputs = LOSSES[name](), normal(N, 4)
    expected = loss.targets(outputs, labels(N))
    assert torch.equal(loss.targets(outputs, labels(N).to(dtype)), expected)


@pytest.mark.parametrize("shape", [(N,), (N, 1)], ids=str)
@pytest.mark.parametrize("y_shape", [(N,), (N, 1)], ids=str)
@pytest.mark.parametrize(
    "name", ["squared_error", "huber", "poisson", "binary_cross_entropy"]
)
def test_a_column_is_reshaped_and_never_broadcast(name, shape, y_shape):
    loss, y = LOSSES[name](), labels(N, high=2).double()
    targets = loss.targets(normal(*shape), y.reshape(y_shape))
    assert torch.equal(targets, y.reshape(shape))


IMAGE = torch.zeros(2, 3, 2, 2)
# loss, outputs, y, message
BAD_TARGETS = {
    "unseen label": ("cross_entropy", normal(3, 4), [0, 4, -1],
        r"labels in 0\.\.3 .*4 outputs.*got -1, 4\. .*LabelEncoder"),
    "float labels": ("cross_entropy", normal(3, 4), [0.0, 1.0, 2.0],
        r"integer class labels, got y of dtype torch\.float32"),
    "bool labels": ("cross_entropy", normal(3, 4), [True, False, True],
        r"integer class labels, got y of dtype torch\.bool"),
    "length": ("cross_entropy", normal(3, 4), [0, 1],
        r"one target per sample, 3 in this batch, got y of shape \(2,\)"),
    "scalar": ("squared_error", normal(3), 1.0, "one target per sample"),
    "column of labels": ("cross_entropy", normal(3, 4), [[0], [1], [2]],
        r"labels of shape \(3,\) .* got \(3, 1\)"),
    "labels of an image": ("cross_entropy", IMAGE, [0, 1],
        r"labels of shape \(2, 2, 2\) for outputs of shape \(2, 3, 2, 2\)"),
    "negative probability": ("cross_entropy", normal(1, 2), [[1.5, -0.5]],
        r"class probabilities .*smallest entry -0\.5"),
    "sum of probabilities": ("cross_entropy", normal(1, 2), [[0.5, 0.6]],
        "class probabilities .*sum that is off by 0.1"),
    "probabilities and ignore_index": (nn.CrossEntropyLoss(ignore_index=0),
        normal(1, 2), [[0.5, 0.5]], "ignore_index=0, got class probabilities"),
    "one output": ("cross_entropy", normal(3, 1), [0, 0, 0],
        r"K >= 2 classes, got \(3, 1\)\. Use 'binary_cross_entropy'"),
    "no class dimension": ("cross_entropy", normal(3), [0, 0, 0],
        r"K >= 2 classes, got \(3,\)"),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), normal(1, 3), [0],
        r"one class weight for each of 3 outputs, got weight of shape \(4,\)"),
    "binary label 2": ("binary_cross_entropy", normal(3), [0, 1, 2],
        r"targets in 0\.\.1, got values between 0\.0 and 2\.0"),
    "one versus rest": ("binary_cross_entropy", normal(3, 2), [0, 1, 2],
        r"labels in 0\.\.1"),
    "weights of samples": (nn.BCEWithLogitsLoss(torch.ones(3)), normal(3), [0, 1, 1],
        "Expected weight that broadcasts .* sample_weight"),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), normal(1, 2), [1],
        r"Expected pos_weight that broadcasts .*\(1, 2\), got shape \(3,\)"),
    "broadcast": ("squared_error", normal(3, 2), [0.0, 1.0, 2.0],
        r"targets of shape \(3, 2\).*got y of shape \(3,\).*never broadcast"),
    "too many targets": ("squared_error", normal(3), np.zeros((3, 2)).tolist(),
        "never broadcast"),
    "one-hot of unseen": ("squared_error", normal(3, 2), [0, 1, 2], "LabelEncoder"),
    "NaN": ("squared_error", normal(2), [0.0, math.nan], "finite targets, got NaN"),
    "negative count": ("poisson", normal(2), [1.0, -1.0],
        r"targets >= 0, got -1\.0"),
    "counts": ("poisson", normal(2, 3), [1, 0], "never broadcast"),
    "brier": ("brier", normal(3, 2), [0, 1, 2], "LabelEncoder"),
    "brier of floats": ("brier", normal(3, 2), [0.0, 1.0, 1.0], "integer class labels"),
    "length for a callable": (log_cosh, normal(3), [0.0], "one target per sample"),
}  # fmt: skip


@pytest.mark.parametrize("row", BAD_TARGETS)
def test_bad_targets(row):
    loss, outputs, y, message = BAD_TARGETS[row]
    loss = resolve_loss(loss, None)
    with pytest.raises(ValueError, match=message):
        loss.targets(outputs, torch.tensor(y))


# --- which loss
@pytest.mark.parametrize("name", LOSSES)
def test_resolve_by_name(name):
    loss = resolve_loss(name, None)
    assert (loss.name, loss.reduction) == (name, "mean")


def test_resolve_default_and_loss():
    default, other = CrossEntropy(), BinaryCrossEntropy()
    assert resolve_loss(None, default) is default
    assert resolve_loss(other, default) is other
    assert isinstance(resolve_loss(nn.MSELoss(), default), Loss)


def test_subclass_that_keeps_forward_is_its_parent():
    class Mine(nn.CrossEntropyLoss):
        pass

    assert isinstance(loss_from_criterion(Mine(WEIGHT)), CrossEntropy)


def test_subclass_with_its_own_forward_is_differentiated():
    class Pseudo(nn.L1Loss):
        def forward(self, outputs, y):
            loss = (1 + (outputs - y).square()).sqrt() - 1
            return loss if self.reduction == "none" else loss.mean()

    loss, outputs = loss_from_criterion(Pseudo()), torch.zeros(2, dtype=torch.float64)
    inner = loss.hessian_inner(outputs, loss.targets(outputs, outputs), torch.eye(1))
    assert inner.tolist() == [1.0, 1.0]


def test_compiled_criterion():
    class Compiled(nn.Module):
        """What torch.compile wraps around a criterion."""

        def __init__(self, criterion):
            super().__init__()
            self._orig_mod = criterion

    assert loss_from_criterion(Compiled(nn.MSELoss())).name == "squared_error"


class InverseFrequency(nn.Module):
    """A weighted mean, which is no mean over samples."""

    def forward(self, outputs, y):
        return F.cross_entropy(outputs, y, weight=WEIGHT.to(outputs))


# criterion, error, message
REFUSED = {
    "L1": (nn.L1Loss(), TypeError, "got L1Loss, which is piecewise linear.*CrossEntro"),
    "hinge": (nn.HingeEmbeddingLoss(), TypeError, "got HingeEmbeddingLoss"),
    "margin": (nn.MultiMarginLoss(), TypeError, "got MultiMarginLoss"),
    "multi-label": (nn.MultiLabelMarginLoss(), TypeError, "got MultiLabelMarginLoss"),
    "triplet": (nn.TripletMarginLoss(), TypeError, "got TripletMarginLoss"),
    "smooth L1 without beta": (nn.SmoothL1Loss(beta=0.0), TypeError, r"beta=0\)"),
    "two targets": (nn.GaussianNLLLoss(), TypeError, "outputs and one target alone"),
    "divergence": (nn.KLDivLoss(), TypeError, "use CrossEntropyLoss on logits"),
    "class": (nn.MSELoss, TypeError, "criterion instance or callable, got <class"),
    "number": (3, TypeError, "criterion instance or callable, got 3"),
    "reduction": (nn.MSELoss(reduction="none"), ValueError,
        "reduction 'mean' or 'sum', got 'none'. Give loss="),
    "own reduction": (Focal("none"), ValueError, "reduction 'mean' or 'sum'"),
    "negative weight": (nn.CrossEntropyLoss(torch.tensor([1.0, -1.0])), ValueError,
        r"finite weight >= 0 in CrossEntropyLoss, got \[1\.0, -1\.0\]"),
    "infinite weight": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(math.inf)),
        ValueError, "finite pos_weight >= 0"),
    "name": ("log_los", ValueError, "one of .*'cross_entropy'.* got 'log_los'"),
    "nothing": (None, ValueError, "Expected a loss, got None .*'cross_entropy'"),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_refused_criteria(row):
    criterion, error, message = REFUSED[row]
    with pytest.raises(error, match=message):
        resolve_loss(criterion, None)


UNUSABLE = {
    "weighted mean": (InverseFrequency(), "mean over samples of a loss of each"),
    "sum": (lambda f, y: F.cross_entropy(f, y, reduction="sum"), "mean over samples"),
    "batch statistics": (lambda f, y: (f - f.mean(0)).square().mean(), "over samples"),
    "not reduced": (lambda f, y: F.cross_entropy(f, y, reduction="none").tile(2),
        r"scalar from the criterion '<lambda>', got shape \(2,\)"),
    "data dependent": (lambda f, y: f[f > 0].square().sum() / len(f),
        "vmap can evaluate sample by sample, got '<lambda>'"),
}  # fmt: skip


@pytest.mark.parametrize("row", UNUSABLE)
def test_criteria_that_are_no_mean_over_samples(row):
    criterion, message = UNUSABLE[row]
    loss = loss_from_criterion(criterion)
    with pytest.raises(ValueError, match=message):
        loss.targets(normal(N, 4), labels(N))


def test_criterion_without_a_tensor():
    loss = loss_from_criterion(lambda f, y: 1.0)
    with pytest.raises(TypeError, match=r"returns a tensor, got 1\.0"):
        loss.targets(normal(N), normal(N))


def linear_beyond_one(outputs, y):
    return F.huber_loss(outputs, y)


def hinge(outputs, y):
    return (1 - outputs * y).clamp(min=0).mean()


@pytest.mark.parametrize("criterion", [F.l1_loss, hinge])
def test_criterion_without_second_derivative(criterion):
    loss = loss_from_criterion(criterion)
    outputs, y = normal(N), 2.0 * labels(N, high=2) - 1
    targets = loss.targets(outputs, y)
    with pytest.raises(ValueError, match="second derivative is zero on these data"):
        loss.hessian_inner(outputs, targets, torch.eye(1))


def test_smooth_criterion_may_be_linear_on_a_batch():
    loss, outputs = loss_from_criterion(linear_beyond_one), torch.full((2,), 9.0)
    targets = loss.targets(outputs, torch.tensor([2.0, 4.0]))
    assert loss.hessian_inner(outputs, targets, torch.eye(1)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("case", ["ce", "mse-many", "callable", "ce-dense"])
def test_root_of_another_size(case):
    loss, outputs, targets = prepared(case)
    with pytest.raises(ValueError, match=r"Gram matrix of shape \(K, r\), got"):
        loss.hessian_inner(outputs, targets, torch.eye(5))
