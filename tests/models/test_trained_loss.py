"""The loss that is measured is the one that a net is trained with."""

import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNet
from torch import nn

from sklearn_relflat import relative_flatness
from tests.trust.brute_force import kappa_of

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# The first samples do not have all classes.
Y = torch.arange(12) // 4


def net_of(criterion, kind=NeuralNet, **options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    options = {"train_split": None, "batch_size": 12, **options}
    return kind(module, criterion=criterion, **options).initialize()


def true_kappa(net, loss):
    """Brute force in the weight of the last layer."""
    module = net.module_
    weight = module[2].weight.detach()

    def risk(w):
        return loss(torch.func.functional_call(module, {"2.weight": w}, (X,)), Y)

    return kappa_of(weight, torch.autograd.functional.hessian(risk, weight))[0]


def squared(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none").square().mean()


def with_forward(criterion):
    criterion.forward = squared
    return criterion


def with_hook(criterion):
    criterion.register_forward_hook(lambda module, args, value: 3 * value)
    return criterion


def with_pre_hook(criterion):
    criterion.register_forward_pre_hook(lambda module, args: (args[0] / 2, args[1]))
    return criterion


class Called(nn.CrossEntropyLoss):
    def __call__(self, outputs, y):
        return super().__call__(2 * outputs, y)


PATCHED = [
    (with_forward(nn.CrossEntropyLoss()), squared),
    (with_hook(nn.CrossEntropyLoss()), lambda f, y: 3 * F.cross_entropy(f, y)),
    (with_pre_hook(nn.CrossEntropyLoss()), lambda f, y: F.cross_entropy(f / 2, y)),
    (Called(), lambda f, y: F.cross_entropy(2 * f, y)),
]


@pytest.mark.parametrize(("criterion", "loss"), PATCHED)
def test_a_criterion_that_was_changed_is_asked_itself(criterion, loss):
    net = net_of(criterion)
    found = relative_flatness(net, X, Y).value
    assert found == pytest.approx(true_kappa(net, loss), rel=1e-8)


class ByClass(NeuralNet):
    """Mistakes in a class that comes late cost more."""

    def get_loss(self, y_pred, y_true, *args, **kwargs):
        cost = torch.where(y_true == 2, 5.0, 1.0)
        return (F.cross_entropy(y_pred, y_true, reduction="none") * cost).mean()


class AlmostTheSame(NeuralNet):
    def get_loss(self, y_pred, *args, **kwargs):
        loss = super().get_loss(y_pred, *args, **kwargs)
        return loss + 2e-4 * y_pred.square().mean()


class Coupled(NeuralNet):
    """The batch means count for the curvature, and not for value and slope."""

    def get_loss(self, y_pred, *args, **kwargs):
        loss = super().get_loss(y_pred, *args, **kwargs)
        means = y_pred.mean(0)
        return loss + (means - means.detach()).square().sum()


@pytest.mark.parametrize("batch_size", [3, 12])
@pytest.mark.parametrize("kind", [ByClass, AlmostTheSame, Coupled])
def test_another_loss_is_refused(kind, batch_size):
    net = net_of(nn.CrossEntropyLoss, kind, batch_size=batch_size)
    with pytest.raises(ValueError, match=r"is trained with.* Pass loss="):
        relative_flatness(net, X, Y)
    plain = net_of(nn.CrossEntropyLoss)
    found = relative_flatness(net, X, Y, loss="cross_entropy").value
    assert found == pytest.approx(relative_flatness(plain, X, Y).value, rel=1e-12)


def test_single_precision_is_no_other_loss():
    class Same(NeuralNet):
        def get_loss(self, y_pred, y_true, *args, **kwargs):
            return F.cross_entropy(y_pred, y_true, weight=torch.tensor([1.0, 2.0, 0.5]))

    weight = torch.tensor([1.0, 2.0, 0.5])
    net = net_of(nn.CrossEntropyLoss, Same, criterion__weight=weight)
    net.module_.float()
    assert relative_flatness(net, X.float(), Y).value > 0


class DetachedWeights(nn.Module):
    """A focal loss whose weights count as constants."""

    def forward(self, outputs, y):
        ce = F.cross_entropy(outputs, y, reduction="none")
        return ((1 - torch.exp(-ce)).square().detach() * ce).mean()


def test_a_criterion_that_leaves_the_graph_is_refused():
    with pytest.raises(ValueError, match=r"out of torch's graph.*detach"):
        relative_flatness(net_of(DetachedWeights()), X, Y)
    with pytest.raises(ValueError, match=r"out of torch's graph.*detach"):
        relative_flatness(net_of(nn.CrossEntropyLoss), X, Y, loss=DetachedWeights())
