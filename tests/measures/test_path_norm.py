"""The path norm by walking every path."""

import itertools

import numpy as np
import pytest
import torch
from skorch import NeuralNet
from torch import nn

from sklearn_relflat._measures.path_norm import path_norm
from tests.cases import CASES, Case, sequential

BY_ID = {case.id: case for case in CASES}


def walked(matrices):
    """Sum over all paths of the products of squared weights, path by path."""
    sizes = [matrices[0].shape[1], *[len(w) for w in matrices]]
    total = 0.0
    for path in itertools.product(*[range(size) for size in sizes]):
        product = 1.0
        for w, (start, stop) in zip(matrices, itertools.pairwise(path), strict=True):
            product *= float(w[stop, start]) ** 2
        total += product
    return total


@pytest.mark.parametrize("name", ["relu", "leaky", "inplace", "nll", "weights"])
def test_all_paths(name):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    layers = [m for m in net.module_.modules() if isinstance(m, nn.Linear)]
    expected = walked([layer.weight.detach() for layer in layers])
    result = path_norm(net, X, y)
    assert result.value == pytest.approx(expected, rel=1e-9)
    assert (result.layer, result.mean_loss) == ("all", None)


def test_batch_normalization_is_a_factor_of_its_channel():
    case = BY_ID["batch_norm"]
    net, (X, y) = case.fitted(), case.data()
    first, norm, last = net.module_[0], net.module_[1], net.module_[4]
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0, generator=torch.manual_seed(0))
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    merged = (factor[:, None] * first.weight).detach()
    expected = walked([merged, last.weight.detach()])
    assert path_norm(net, X, y).value == pytest.approx(expected, rel=1e-9)


class Residual(nn.Module):
    """Paths that skip a layer, and a weight that is applied twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.b(x + torch.relu(self.a(torch.relu(self.a(x)))))


def test_paths_that_skip():
    net = NeuralNet(Residual, nn.MSELoss).initialize()
    net.module_.double()
    a, b = net.module_.a.weight.detach(), net.module_.b.weight.detach()
    X = torch.randn(4, 3, dtype=torch.float64)
    expected = walked([b]) + walked([a, a, b])
    found = path_norm(net, X, torch.zeros(4, 2, dtype=torch.float64))
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_convolution_as_a_matrix():
    """Every pixel is a neuron: the convolution is written out as one matrix."""
    module = sequential(
        lambda: nn.Conv2d(1, 2, 2, padding=1),
        nn.ReLU,
        lambda: nn.AvgPool2d(2),
        nn.Flatten,
        lambda: nn.Linear(8, 3),
    )
    case = Case("convolution", module, (1, 3, 3), ("0",))
    net, (X, y) = case.fitted(), case.data()
    conv, pool = net.module_[0], net.module_[2]
    units = torch.eye(9, dtype=torch.float64).reshape(9, 1, 3, 3)
    squared = nn.functional.conv2d(units, conv.weight.detach() ** 2, padding=1)
    pooled = pool(squared).flatten(1).sum(0)
    expected = float((pooled @ net.module_[4].weight.detach().square().T).sum())
    assert path_norm(net, X, y).value == pytest.approx(expected, rel=1e-9)
    # Of the pool the shares are no weights: they are not squared.
    assert squared.shape == (9, 2, 4, 4)


@pytest.mark.parametrize("name", ["tanh", "gelu", "attention", "encoder"])
def test_what_has_no_paths(name):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    with pytest.raises(ValueError, match=r"positively homogeneous.* Use another norm"):
        path_norm(net, X, y)


def test_tokens_have_no_ones():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.out(self.embed(x).mean(1))

    net = NeuralNet(Tokens, nn.CrossEntropyLoss).initialize()
    X = torch.randint(0, 5, (4, 6))
    with pytest.raises(ValueError, match=r"floating numbers.*int64 in X"):
        path_norm(net, X, torch.tensor([0, 1, 2, 0]))


def test_inputs_that_are_no_numbers_to_scale():
    class Table(nn.Module):
        """Looks up a row by a floating feature."""

        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(2, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.out(self.embed(x[:, 0].long()))

    net = NeuralNet(Table, nn.CrossEntropyLoss).initialize()
    X = torch.tensor([[0.0], [1.0], [1.0]])
    with pytest.raises(ValueError, match=r"take an input of numbers.*IndexError"):
        path_norm(net, X, torch.tensor([0, 1, 2]))


def test_inputs_by_name():
    case = BY_ID["dict"]
    net, (X, y) = case.fitted(), case.data()
    parts = [net.module_.left.weight, net.module_.right.weight]
    first = torch.cat([w.detach() for w in parts], 1)
    expected = walked([first, net.module_.head.weight.detach()])
    assert path_norm(net, X, y).value == pytest.approx(expected, rel=1e-9)


def test_a_part_of_the_network_has_no_path_norm():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    for layer in ("2", ["0", "2"], None):
        with pytest.raises(ValueError, match="Expected layer='all' for the path norm"):
            path_norm(net, X, y, layer=layer)
    every = path_norm(net, X, y, layer=["0", "2", "4"]).value
    assert every == path_norm(net, X, y).value


def test_overflow():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    with torch.no_grad():
        net.module_[0].weight *= 1e120
        net.module_[2].weight *= 1e120
    with pytest.raises(ValueError, match="finite path_norm, got inf"):
        path_norm(net, X, np.asarray(y))
