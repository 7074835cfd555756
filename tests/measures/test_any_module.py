"""Whole-network measures of modules whose layers are of any kind, by brute force."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from sklearn_relflat import (
    asam_sharpness,
    compare_measures,
    fisher_rao_norm,
    hessian_max_eigenvalue,
    hessian_trace,
    layerwise_relative_flatness,
    pac_bayes_flatness,
    relative_flatness,
    sam_sharpness,
    weight_norm,
)

Y = torch.arange(12) % 3


class Mobile(nn.Module):
    """A depthwise convolution."""

    shape = (1, 5, 5)

    def __init__(self):
        super().__init__()
        self.a, self.dw = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 2, groups=3)
        self.norm, self.out = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(F.silu(self.norm(self.dw(F.relu6(self.a(x))))).mean((2, 3)))


class Transformer(nn.Module):
    """A packed input projection, and a matrix of positions."""

    shape = (3, 4)

    def __init__(self):
        super().__init__()
        self.embed, self.pos = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4))
        self.att = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        h = self.embed(x) + self.pos
        return self.out((h + self.att(h, h, h)[0]).mean(1))


class Recurrent(nn.Module):
    """An embedding and an LSTM."""

    shape = None

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(5, 3), nn.LSTM(3, 3, batch_first=True)
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.rnn(self.embed(x))[0][:, -1])


class Cosine(nn.Linear):
    """A layer that is not what its class says."""

    def forward(self, x):
        return 4 * F.linear(F.normalize(x), F.normalize(self.weight))


class CosineHead(nn.Module):
    """A net that ends in a cosine layer."""

    shape = (4,)

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(4, 4), Cosine(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.a(x)))


KINDS = [Mobile, Transformer, Recurrent, CosineHead]
kinds = pytest.mark.parametrize("kind", KINDS)


def fitted(kind):
    """A net in float64 with its data."""
    net = NeuralNetClassifier(
        kind, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=5
    ).initialize()
    net.module_.double().eval()
    shape = net.module_.shape
    if shape is None:
        return net, torch.randint(0, 5, (12, 3))
    return net, torch.randn(12, *shape, dtype=torch.float64)


def brute_force(module, X, names=None):
    """Weights and their Hessian, flat, in the order of the parameters."""
    weights = [
        p for k, p in module.named_parameters() if p.dim() > 1 and names in (None, k)
    ]
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(module(X), Y)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        rows = [
            torch.autograd.grad(e, weights, retain_graph=True, materialize_grads=True)
            for e in flat
        ]
    hessian = torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])
    return torch.cat([w.detach().reshape(-1) for w in weights]), hessian


@kinds
def test_hessian_measures_of_all_weights(kind):
    net, X = fitted(kind)
    w, hessian = brute_force(net.module_, X)
    trace = hessian_trace(net, X, Y, layer="all", method="exact", random_state=0)
    if trace.stderr == 0:
        assert trace.value == pytest.approx(float(hessian.trace()), rel=1e-9)
    else:
        assert abs(trace.value - float(hessian.trace())) < 5 * trace.stderr
    top = hessian_max_eigenvalue(net, X, Y, layer="all", random_state=0).value
    assert top == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)
    assert weight_norm(net, X, layer="all").value == pytest.approx(float(w @ w))
    assert trace.n_weights == len(w)


@kinds
def test_random_probes_of_the_trace(kind):
    net, X = fitted(kind)
    _, hessian = brute_force(net.module_, X)
    found = hessian_trace(
        net, X, Y, layer="all", method="sampled", rtol=0.05, random_state=0
    )
    assert abs(found.value - float(hessian.trace())) <= 5 * found.stderr


@kinds
def test_fisher_rao_norm_by_its_definition(kind):
    net, X = fitted(kind)
    weights = [p for p in net.module_.parameters() if p.dim() > 1]
    inner = []
    for x, y in zip(X, Y, strict=True):
        loss = F.cross_entropy(net.module_(x[None]), y[None])
        gradients = torch.autograd.grad(loss, weights)
        parts = zip(weights, gradients, strict=True)
        inner.append(float(sum((w.detach() * g).sum() for w, g in parts)))
    expected = np.sqrt(np.mean(np.square(inner)))
    found = fisher_rao_norm(net, X, Y, method="weights").value
    assert found == pytest.approx(expected, rel=1e-9)


@kinds
def test_sharpnesses_and_the_table(kind):
    net, X = fitted(kind)
    for measure in (sam_sharpness, asam_sharpness):
        assert measure(net, X, Y, layer="all").value > 0
    options = {"layer": "all", "metric": "loss", "random_state": 0}
    assert pac_bayes_flatness(net, X, Y, **options).value > 0
    table = compare_measures(net, X, Y, random_state=0)
    assert "all" in set(table["layer"])
    assert not table["value"].isna().any()
    unmeasured = set(table.attrs["not_measured"])
    flat = table[table["measure"] == "relative_flatness"]
    assert not unmeasured & set(flat["layer"])
    assert unmeasured or kind is Transformer


def test_single_weights_by_the_name_of_module_or_parameter():
    net, X = fitted(Recurrent)
    own = dict(net.module_.named_parameters())
    for layer, name in (
        ("embed", "embed.weight"),
        ("rnn.weight_hh_l0", "rnn.weight_hh_l0"),
    ):
        _, hessian = brute_force(net.module_, X, name)
        found = hessian_trace(net, X, Y, layer=layer)
        assert found.value == pytest.approx(float(hessian.trace()), rel=1e-9)
        expected = float(own[name].detach().square().sum())
        assert weight_norm(net, X, layer=layer).value == pytest.approx(expected)
    both = weight_norm(net, X, layer="rnn").value
    matrices = [own["rnn.weight_hh_l0"], own["rnn.weight_ih_l0"]]
    assert both == pytest.approx(
        sum(float(w.detach().square().sum()) for w in matrices)
    )
    with pytest.raises(ValueError, match=r"'bias9'.* does not exist.*'embed'"):
        hessian_trace(net, X, Y, layer="bias9")


def test_what_cannot_be_counted_or_read_is_said():
    net, X = fitted(Mobile)
    with pytest.raises(ValueError, match=r"\['dw'\].*method='weights'"):
        fisher_rao_norm(net, X, Y)
    with pytest.raises(ValueError, match="curvature='hessian'"):
        hessian_trace(net, X, Y, layer="dw", curvature="gauss_newton")
    table = layerwise_relative_flatness(net, X, Y)
    assert list(table) == ["a", "out"]
    with pytest.raises(ValueError, match=r"'dw' was not measured: .*groups=3"):
        table["dw"]
    with pytest.raises(ValueError, match="forward of its own"):
        relative_flatness(*fitted(CosineHead), Y)


# ---------------------------------------------------------------------------
# Derivatives that are not there
# ---------------------------------------------------------------------------
class Cut(nn.Module):
    """A part of the network behind a cut of the graph."""

    how = "none"

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.kernel = nn.Parameter(torch.randn(4, 4))

    def body(self, x):
        return torch.tanh(self.a(x) @ self.kernel)

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                h = self.body(x)
        elif self.how == "detach":
            h = self.body(x).detach()
        elif self.how == "checkpoint":
            h = checkpoint(self.body, x, use_reentrant=True)
        else:
            h = self.body(x)
        return self.out(h)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("layer", ["a", "kernel", "all"])
@pytest.mark.parametrize("how", ["no_grad", "detach", "checkpoint"])
def test_zeros_of_a_cut_graph_are_refused(how, layer):
    Cut.shape = (4,)
    net, X = fitted(Cut)
    net.module_.how = how
    for measure in (hessian_max_eigenvalue, hessian_trace, sam_sharpness):
        with pytest.raises(ValueError, match=r"differentiate"):
            measure(net, X, Y, layer=layer)
    behind = hessian_trace(net, X, Y, layer="out").value
    net.module_.how = "none"
    assert behind == pytest.approx(hessian_trace(net, X, Y, layer="out").value)


class Partly(nn.Module):
    """A matrix that acts inside and outside of the graph, by a mode."""

    shape = (4,)

    def __init__(self, mode="plain"):
        super().__init__()
        self.mode = mode
        self.kernel = nn.Parameter(torch.randn(4, 4))
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        kernel = self.kernel
        h = torch.tanh(x @ kernel)
        if self.mode == "detached factor":
            h = h * (1 + kernel.detach().square().sum())
        elif self.mode == "data":
            h = h + x @ kernel.data
        elif self.mode == "item":
            h = h / float(kernel.abs().max())
        elif self.mode == "no_grad":
            with torch.no_grad():
                norm = kernel.norm()
            h = h / norm
        elif self.mode == "numpy":
            h = h + torch.from_numpy(kernel.detach().numpy().sum(0))
        elif self.mode == "straight_through":
            rounded = (4 * kernel).round() / 4
            h = torch.tanh(x @ (kernel + (rounded - kernel).detach()))
        elif self.mode == "shift that cancels":
            z = x @ kernel
            e = (z - z.max(1, keepdim=True).values.detach()).exp()
            h = e / e.sum(1, keepdim=True)
        elif self.mode == "look only":
            kernel.detach().abs().max().item()
        return self.out(h)


CUTS = ["detached factor", "data", "item", "no_grad", "numpy", "straight_through"]


@pytest.mark.parametrize("mode", CUTS)
def test_a_weight_that_acts_outside_of_the_graph_as_well_is_refused(mode):
    net, X = fitted(partial(Partly, mode))
    derivatives = (
        hessian_max_eigenvalue,
        hessian_trace,
        sam_sharpness,
        asam_sharpness,
        partial(fisher_rao_norm, method="weights"),
    )
    for layer in ("kernel", "all"):
        for measure in derivatives:
            with pytest.raises(ValueError, match=r"'kernel' changes .* differentiate"):
                measure(net, X, Y, layer=layer)
    # No derivative in the matrix is needed here.
    assert hessian_trace(net, X, Y, layer="out").value > 0
    options = {"metric": "loss", "random_state": 0}
    found = pac_bayes_flatness(net, X, Y, layer="kernel", **options)
    assert found.method == "bisection"


@pytest.mark.parametrize("mode", ["plain", "shift that cancels", "look only"])
def test_numbers_that_nothing_comes_of_do_no_harm(mode):
    net, X = fitted(partial(Partly, mode))
    _, hessian = brute_force(net.module_, X)
    found = hessian_trace(net, X, Y, layer="all", method="exact").value
    assert found == pytest.approx(float(hessian.trace()), rel=1e-8)


def test_a_frozen_backbone_counts_in_the_norm_of_outputs():
    net, X = fitted(FrozenBackbone)
    frozen = fisher_rao_norm(net, X, Y).value
    net.module_.mode = torch.enable_grad
    assert frozen == pytest.approx(fisher_rao_norm(net, X, Y).value, rel=1e-12)
    net.module_.mode = torch.no_grad
    with pytest.raises(ValueError, match=r"'back\.0' cannot be differentiated"):
        fisher_rao_norm(net, X, Y, method="weights")


class FrozenBackbone(nn.Module):
    """A backbone that runs without gradients."""

    shape = (4,)

    def __init__(self):
        super().__init__()
        self.mode = torch.inference_mode
        self.back = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        with self.mode():
            h = self.back(x)
        return self.out(h)


def test_a_looser_eigenvalue_costs_fewer_products():
    class Wide(CosineHead):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(4, 30), Cosine(30, 3)

    net, X = fitted(Wide)
    exact = float(torch.linalg.eigvalsh(brute_force(net.module_, X)[1])[-1])
    passes = []
    for rtol in (1e-8, 1e-3, 0.3):
        table = compare_measures(
            net, X, Y, layers=["all"], random_state=0,
            measures={"hessian_max_eigenvalue": {"rtol": rtol}},
        )  # fmt: skip
        passes.append(table["passes"][0])
        assert table["value"][0] == pytest.approx(exact, rel=max(rtol, 1e-6))
    assert passes[0] > passes[1] > passes[2]


def test_a_derivative_that_does_not_exist_names_its_sample():
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(5, 4), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.out(torch.cat([h.mean(1), h.var(1).sqrt()], 1))

    Pooling.shape = (7, 5)
    net, X = fitted(Pooling)
    X[3] = 0  # its variance is zero, and the root has no slope there
    for measure in (
        lambda: relative_flatness(net, X, Y, layer="a"),
        lambda: relative_flatness(net, X, Y, layer="a", statistic="max_eigenvalue"),
        lambda: hessian_max_eigenvalue(net, X, Y, layer="a"),
        lambda: sam_sharpness(net, X, Y, layer="a"),
    ):
        with pytest.raises(ValueError, match=r"'a'.*samples \[3\]"):
            measure()


def test_out_of_memory_stays_what_it_is():
    backward = [0, 0]

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            backward[0] += 1
            if backward[0] == backward[1]:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return g

    class Hungry(CosineHead):
        def forward(self, x):
            return self.out(torch.tanh(Failing.apply(self.a(x))))

    net, X = fitted(Hungry)
    for measure in (relative_flatness, hessian_max_eigenvalue):
        for k in range(1, 10):
            backward[:] = 0, k
            try:
                measure(net, X, Y, layer="a")
            except torch.OutOfMemoryError:
                continue
            assert backward[0] < k, "an error of memory was swallowed"


def test_how_layers_are_named():
    net, X = fitted(CosineHead)
    names = ["a"]
    expected = list(layerwise_relative_flatness(net, X, Y, layers=names))
    for layers in (("a",), {"a"}, iter(names), map(str, names), np.array(names)):
        assert list(layerwise_relative_flatness(net, X, Y, layers=layers)) == expected
    for layer in (0, b"a", [None], [3]):
        with pytest.raises(TypeError, match="Expected layer"):
            hessian_trace(net, X, Y, layer=layer)
    with pytest.raises(TypeError, match="Expected layers"):
        compare_measures(net, X, Y, layers=[None], measures=["weight_norm"])
    with pytest.raises(ValueError, match="empty list"):
        layerwise_relative_flatness(net, X, Y, layers=[])
    with pytest.raises(ValueError, match="Expected rtol"):
        relative_flatness(net, X, Y, layer="a", rtol="0.1")
    with pytest.raises(TypeError, match="options of 'hessian_trace' as a dict"):
        compare_measures(net, X, Y, measures={"hessian_trace": None})
    with pytest.raises(ValueError, match=r"\['method'\], got \['foo'\]"):
        compare_measures(net, X, Y, measures={"fisher_rao_norm": {"foo": 1}})
