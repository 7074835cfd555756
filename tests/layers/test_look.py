"""What a look proves: modules that break an assumption, one at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn.modules import module as torch_module

from sklearn_relflat import (
    hessian_trace,
    layerwise_relative_flatness,
    relative_flatness,
)
from tests.trust.brute_force import kappa_of

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X[:3, 0], X[-3:, 0] = -1.0, 2.5
Y = torch.arange(12) % 3


class Net(nn.Module):
    """Two layers, with places to break something."""

    def __init__(self):
        super().__init__()
        self.front, self.back = nn.Linear(4, 5), nn.Linear(5, 3)
        self.double()
        self.prepare()

    def prepare(self):
        """What a subclass keeps besides."""

    def hidden(self, x):
        return torch.tanh(self.front(x))

    def forward(self, x):
        return self.back(self.hidden(x))


def net_of(module, batch_size=12):
    return NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=batch_size
    ).initialize()


def true_kappa(module, layer):
    """Brute force in a function of the weight alone."""
    owner = dict(module.named_modules())[layer]

    def risk(w):
        out = torch.func.functional_call(module, {f"{layer}.weight": w}, (X,))
        return F.cross_entropy(out, Y)

    hessian = torch.autograd.functional.hessian(risk, owner.weight.detach())
    return kappa_of(owner.weight, hessian)[0]


# ---------------------------------------------------------------------------
# Numbers that leave the graph
# ---------------------------------------------------------------------------
class DetachedInPlace(Net):
    def hidden(self, x):
        z = super().hidden(x)
        return 0.5 * z + 0.5 * z.clone().detach_()


class NewTensor(Net):
    def hidden(self, x):
        z = super().hidden(x)
        return z * x.new_tensor(z)


class MadeOfATensor(Net):
    def hidden(self, x):
        z = super().hidden(x)
        return z * torch.tensor(z.tolist(), dtype=z.dtype)


class WithoutDerivative(Net):
    def hidden(self, x):
        return torch.special.bessel_j0(self.front(x))


class InnerGradient(Net):
    def hidden(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z = super().hidden(x)
            (slope,) = torch.autograd.grad(z.sum(), x, retain_graph=True)
        return z * slope.sum(1, keepdim=True)


CUTS = [DetachedInPlace, NewTensor, MadeOfATensor, WithoutDerivative, InnerGradient]


# torch advises against the function, which the module calls.
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("kind", CUTS)
def test_a_cut_is_found_whatever_makes_it(kind):
    net = net_of(kind())
    with pytest.raises(ValueError, match="does not differentiate"):
        relative_flatness(net, X, Y, layer="front")
    with pytest.raises(ValueError, match=r"does not differentiate|be differentiated"):
        hessian_trace(net, X, Y, layer="front")
    found = relative_flatness(net, X, Y, layer="back").value
    assert found == pytest.approx(true_kappa(net.module_, "back"), rel=1e-8)


# ---------------------------------------------------------------------------
# Functions with a backward of the user's own
# ---------------------------------------------------------------------------
class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.3 * g


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g


class Stored(torch.autograd.Function):
    """The first derivative is right, the second misses what was stored."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.slope = s * (1 - s)
        return s

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class Right(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx, g):
        (s,) = ctx.saved_tensors
        return g * s * (1 - s)


class Written(Net):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def hidden(self, x):
        return torch.tanh(self.function.apply(self.front(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [Reversed, Rounded, Stored, Right])
def test_a_backward_that_is_not_the_derivative_is_refused(function, dtype):
    net = net_of(Written(function))
    expected = true_kappa(net.module_, "back"), true_kappa(net.module_, "front")
    net.module_.to(dtype)
    inputs = X.to(dtype)
    rel = 1e-8 if dtype is torch.float64 else 1e-4
    found = relative_flatness(net, inputs, Y, layer="back").value
    assert found == pytest.approx(expected[0], rel=rel)
    if function is Right:
        found = relative_flatness(net, inputs, Y, layer="front").value
        assert found == pytest.approx(expected[1], rel=rel)
    elif function is not Stored or dtype is torch.float64:
        # Single precision cannot tell a second derivative from its kinks.
        for measure in (relative_flatness, hessian_trace):
            with pytest.raises(ValueError, match=f"{function.__name__} has a backward"):
                measure(net, inputs, Y, layer="front")


# ---------------------------------------------------------------------------
# Weights that act in another way as well
# ---------------------------------------------------------------------------
class Anchored(Net):
    """Zero, and without slope, at the weights of today: only the curvature tells."""

    def prepare(self):
        self.register_buffer("anchor", self.front.weight.detach().clone())

    def forward(self, x):
        drift = (self.front.weight - self.anchor).square().sum()
        return super().forward(x) + drift * torch.arange(3)


class ForSomeSamples(Net):
    """A second use that the first samples switch off."""

    def forward(self, x):
        use = F.linear(x, self.front.weight)[:, :3]
        return super().forward(x) + F.relu(x[:, :1] - 1.5) * use.square()


class InSomeBatches(Net):
    """A second use that the first batch does not show at all."""

    def forward(self, x):
        out = super().forward(x)
        if bool((x[:, 0] > 1.5).any()):
            out = out + F.linear(x, self.front.weight)[:, :3].square()
        return out


class StoredView(Net):
    def prepare(self):
        self.stored = self.front.weight.t()

    def forward(self, x):
        return super().forward(x) + F.linear(self.hidden(x), self.stored)[:, :3]


class StoredData(Net):
    def prepare(self):
        self.stored = [self.front.weight.data[:3]]

    def forward(self, x):
        return super().forward(x) + F.linear(x, self.stored[0])


class BufferOfTheWeight(Net):
    def prepare(self):
        self.register_buffer("same", self.front.weight.data)

    def forward(self, x):
        return super().forward(x) + F.linear(x, self.same)[:, :3]


class ParameterInTheSameMemory(Net):
    def prepare(self):
        self.same = nn.Parameter(self.front.weight.data)

    def forward(self, x):
        return super().forward(x) + F.linear(x, self.same)[:, :3]


ELSEWHERE = [
    Anchored,
    ForSomeSamples,
    InSomeBatches,
    StoredView,
    StoredData,
    BufferOfTheWeight,
    ParameterInTheSameMemory,
]


@pytest.mark.parametrize("batch_size", [3, 12])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_weight_that_acts_in_another_way_is_refused(kind, batch_size):
    net = net_of(kind(), batch_size)
    with pytest.raises(
        ValueError, match=r"another way|shares its memory|on each other"
    ):
        relative_flatness(net, X, Y, layer="front")


@pytest.mark.parametrize("kind", ELSEWHERE[3:])
def test_weights_in_shared_memory_are_refused_by_measures_of_parameters(kind):
    with pytest.raises(ValueError, match="memory of their own"):
        hessian_trace(net_of(kind()), X, Y, layer="front", method="exact")


class LooksAtWeights(Net):
    """Types and sizes of weights are no use of their numbers."""

    def forward(self, x):
        x = x.to(self.front.weight).type_as(self.back.weight)
        shift = torch.zeros_like(self.back.weight).sum() + self.back.weight.new_zeros(1)
        assert self.front.weight.shape[0] == 5
        return super().forward(x) + shift


class LogsNumbers(Net):
    def forward(self, x):
        z = self.hidden(x)
        self.seen = float(z.detach().abs().max()), self.back.weight.norm().item()
        return self.back(z)


class SwitchesGradients(Net):
    """A block of its own that ends behind the layer."""

    def hidden(self, x):
        with torch.set_grad_enabled(True):
            z = self.front(x)
        return torch.tanh(z)


class ChangesGradients(Net):
    """Hooks on gradients change nothing of what is computed."""

    def prepare(self):
        self.back.register_full_backward_hook(lambda m, gi, go: (3 * gi[0],))
        self.front.register_full_backward_pre_hook(lambda m, go: (2 * go[0],))
        self.front.weight.register_hook(lambda g: 0 * g)

    def hidden(self, x):
        z = super().hidden(x)
        if z.requires_grad:
            z.register_hook(lambda g: 0.1 * g)
        return z


HARMLESS = [LooksAtWeights, LogsNumbers, SwitchesGradients, ChangesGradients]


@pytest.mark.parametrize("batch_size", [5, 12])
@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_no_harm_keeps_its_number(kind, batch_size):
    module = kind()
    plain = Net()
    plain.load_state_dict(module.state_dict())
    net = net_of(module, batch_size)
    for layer in ("front", "back"):
        expected = true_kappa(plain, layer)
        for method in ("auto", "exact"):
            found = relative_flatness(net, X, Y, layer=layer, method=method).value
            assert found == pytest.approx(expected, rel=1e-8)
    both = layerwise_relative_flatness(net, X, Y)
    assert both["front"].value == pytest.approx(true_kappa(plain, "front"), rel=1e-8)
    trace = hessian_trace(net, X, Y, layer="all").value
    assert trace == pytest.approx(hessian_trace(net_of(plain), X, Y, layer="all").value)


def test_global_backward_hooks_are_refused():
    handle = torch_module.register_module_full_backward_hook(
        lambda module, given, got: tuple(2 * g for g in given if g is not None)
    )
    try:
        with pytest.raises(ValueError, match="no global backward hooks"):
            relative_flatness(net_of(Net()), X, Y)
    finally:
        handle.remove()
    assert relative_flatness(net_of(Net()), X, Y).value > 0


# ---------------------------------------------------------------------------
# Samples in the middle that belong together
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("distance", range(1, 9))
def test_two_samples_of_a_batch_that_are_mixed_are_found(distance):
    class Pair(Net):
        def hidden(self, x):
            z = super().hidden(x)
            if len(x) > 12:
                z = z.index_add(0, torch.tensor([4]), z[[4 + distance]].square())
            return z

    generator = np.random.default_rng(0)
    inputs = torch.tensor(generator.normal(size=(20, 4)))
    net = net_of(Pair(), batch_size=20)
    with pytest.raises(ValueError, match="samples"):
        relative_flatness(net, inputs, torch.arange(20) % 3, layer="front")
