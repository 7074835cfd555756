"""Modules that break what a measure might assume, and harmless ones beside them.

Each builder takes a random generator and gives a `Case`: a module, the same function
without cuts (`oracle`, if that is another module), the layer to measure, and what
counts as right: "value", "refusal", or "either".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

M, D, K = 4, 5, 3


@dataclass
class Case:
    """What to measure, and what is right."""

    module: nn.Module
    layer: str | None
    right: str = "either"
    oracle: nn.Module | None = None
    shape: tuple[int, ...] = (M,)
    outputs: tuple[int, ...] = (K,)
    couples: bool = False
    integers: bool = False


class Net(nn.Module):
    """A small network: `front`, the activation, `back`, with room for mischief."""

    def __init__(self, act=F.relu, front=None, back=None):
        super().__init__()
        self.front = front or nn.Linear(M, D)
        self.back = back or nn.Linear(D, K)
        self.act = act

    def hidden(self, x):
        return self.act(self.front(x))

    def forward(self, x):
        return self.back(self.hidden(x))


ACTIVATIONS = [F.relu, torch.tanh, F.gelu, F.softplus, F.leaky_relu, F.silu]


def _act(rng):
    return ACTIVATIONS[rng.integers(len(ACTIVATIONS))]


def _either_layer(rng):
    return [None, "front", "back"][rng.integers(3)]


def variant(**methods):
    """A subclass of `Net` with other methods."""
    return type("Variant", (Net,), methods)


# ---------------------------------------------------------------------------
# Harmless
# ---------------------------------------------------------------------------
def mlp(rng):
    return Case(Net(_act(rng)), _either_layer(rng), "value")


def sequential(rng):
    layers = [nn.Linear(M, D), nn.ReLU(), nn.BatchNorm1d(D), nn.Linear(D, D)]
    module = nn.Sequential(*layers, nn.Dropout(0.4), nn.Tanh(), nn.Linear(D, K))
    module[2].running_mean.normal_()
    return Case(module, [None, "0", "3", "6"][rng.integers(4)], "value")


def residual(rng):
    def hidden(self, x):
        h = self.act(self.front(x))
        return h + torch.sin(h)

    return Case(variant(hidden=hidden)(_act(rng)), _either_layer(rng), "value")


def conv1d(rng):
    module = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3, padding=1), nn.Tanh(),
        nn.Conv1d(3, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, K),
    )  # fmt: skip
    return Case(module, ["1", "3", "6"][rng.integers(3)], "value", shape=(6,))


def conv2d(rng):
    module = nn.Sequential(
        nn.Conv2d(1, 2, 2, dilation=2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2, K),
    )  # fmt: skip
    return Case(module, ["0", "4"][rng.integers(2)], "value", shape=(1, 4, 4))


class Tokens(nn.Module):
    """A linear layer at every token, and their mean."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(M, D), nn.Linear(D, K)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x)).mean(1))


def tokens(rng):
    layer = [None, "inner", "out"][rng.integers(3)]
    return Case(Tokens(), layer, "value", shape=(3, M))


class Attention(nn.Module):
    """An encoder layer and a head."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(M, 2, 6, batch_first=True)
        self.out = nn.Linear(M, K)

    def forward(self, x):
        return self.out(self.block(x).mean(1))


def attention(rng):
    layer = [None, "out", "block.linear1", "block.self_attn.out_proj"][rng.integers(4)]
    return Case(Attention(), layer, "value", shape=(3, M))


class Recurrent(nn.Module):
    """An LSTM and a head."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(M, D, batch_first=True), nn.Linear(D, K)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def lstm(rng):
    return Case(Recurrent(), [None, "out"][rng.integers(2)], "value", shape=(3, M))


def frozen_parameters(rng):
    module = Net(_act(rng)).requires_grad_(False)
    return Case(module, _either_layer(rng), "value")


def logged_detach(rng):
    def hidden(self, x):
        h = self.act(self.front(x))
        self.log = [h.detach().mean().item()]
        return h

    return Case(variant(hidden=hidden)(_act(rng)), "front", "value")


def stable_softmax(rng):
    def hidden(self, x):
        z = self.front(x)
        e = torch.exp(z - z.max(1, keepdim=True).values.detach())
        return e / e.sum(1, keepdim=True)

    return Case(variant(hidden=hidden)(), "front", "value")


def additive_lora(rng):
    class Lora(nn.Linear):
        def __init__(self, i, o):
            super().__init__(i, o)
            self.down, self.up = nn.Linear(i, 2, bias=False), nn.Linear(2, o)

        def forward(self, x):
            return super().forward(x) + self.up(self.down(x))

    front, back = (Lora(M, D), None) if rng.integers(2) else (None, Lora(D, K))
    return Case(Net(_act(rng), front, back), _either_layer(rng), "value")


def straight_through(rng):
    class Quantized(nn.Linear):
        def forward(self, x):
            q = torch.round(self.weight * 8) / 8
            return F.linear(x, self.weight + (q - self.weight).detach(), self.bias)

    return Case(Net(_act(rng), back=Quantized(D, K)), "back", "value")


def parametrized(rng):
    back = parametrizations.weight_norm(nn.Linear(D, K))
    return Case(Net(_act(rng), back=back), "front", "value")


# ---------------------------------------------------------------------------
# A layer that is not w Phi + b
# ---------------------------------------------------------------------------
def _own_linear(forward):
    return lambda rng: _placed(type("Own", (nn.Linear,), {"forward": forward}), rng)


def _placed(kind, rng):
    """A net with a layer of some kind in front or at the end."""
    if rng.integers(2):
        return Case(Net(_act(rng), front=kind(M, D)), "front")
    return Case(Net(_act(rng), back=kind(D, K)), [None, "back"][rng.integers(2)])


cosine = _own_linear(
    lambda self, x: 4 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))
)
equalised = _own_linear(lambda self, x: F.linear(x, self.weight * 1.7, self.bias))
masked = _own_linear(
    lambda self, x: F.linear(
        x,
        self.weight * (torch.arange(self.weight.numel()) % 2).view_as(self.weight),
        self.bias,
    )
)
multiplicative = _own_linear(
    lambda self, x: F.linear(x, self.weight * (1 + self.weight.mean()), self.bias)
)
squashed_weight = _own_linear(
    lambda self, x: F.linear(x, torch.tanh(self.weight), self.bias)
)
capped_late = _own_linear(
    lambda self, x: (
        F.linear(x, self.weight, self.bias)
        if x.abs().max() < 2.0
        else F.linear(x, torch.tanh(self.weight), self.bias)
    )
)


def standardised_conv(rng):
    class Standardised(nn.Conv1d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2), keepdim=True)
            return F.conv1d(x, w / w.std((1, 2), keepdim=True), self.bias)

    module = nn.Sequential(
        nn.Unflatten(1, (1, 6)), Standardised(1, 2, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8, K),
    )  # fmt: skip
    return Case(module, "1", shape=(6,))


def padding_conv(rng):
    class Padding(nn.Conv1d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 1)))

    module = nn.Sequential(
        nn.Unflatten(1, (1, 6)), Padding(1, 2, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(12, K),
    )  # fmt: skip
    return Case(module, "1", shape=(6,))


def grouped_conv(rng):
    module = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, K),
    )  # fmt: skip
    return Case(module, ["1", None][rng.integers(2)], shape=(6,))


def replacing_hook(rng):
    module = Net(_act(rng))
    module.back.register_forward_hook(lambda m, a, o: 3 * torch.tanh(o))
    return Case(module, _either_layer(rng))


def replacing_pre_hook(rng):
    module = Net(_act(rng))
    module.back.register_forward_pre_hook(lambda m, a: (torch.sin(a[0]),))
    return Case(module, _either_layer(rng))


def spectral(rng):
    back = parametrizations.spectral_norm(nn.Linear(D, K))
    return Case(Net(_act(rng), back=back), "front")


def pruned(rng):
    module = Net(_act(rng))
    oracle = copy.deepcopy(module)
    prune.l1_unstructured(module.front, "weight", amount=0.5)
    with torch.no_grad():
        oracle.front.weight.copy_(module.front.weight)
    return Case(module, "back", "value", oracle)


# ---------------------------------------------------------------------------
# The weight acts elsewhere, too
# ---------------------------------------------------------------------------
def _elsewhere(extra):
    def build(rng):
        def forward(self, x):
            h = self.hidden(x)
            return self.back(h) + extra(self, x, h)

        return Case(
            variant(forward=forward)(_act(rng)), ["front", "back"][rng.integers(2)]
        )

    return build


functional_use = _elsewhere(
    lambda self, x, h: F.linear(F.linear(x, self.front.weight), self.back.weight)
)
weight_in_output = _elsewhere(
    lambda self, x, h: (
        self.back.weight.square().sum() + self.front.weight.square().sum()
    )
)


def list_reference(rng):
    class Listed(Net):
        def __init__(self, act):
            super().__init__(act)
            self.kept = [self.front.weight, self.back.weight]

        def forward(self, x):
            h = self.hidden(x)
            return self.back(h) + F.linear(torch.cos(h), self.kept[1])

    return Case(Listed(_act(rng)), "back")


def tied(rng):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(M, M), nn.Linear(M, M), nn.Linear(M, K)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))

    return Case(Tied(), ["a", "out"][rng.integers(2)], "value")


def called_twice(rng):
    class Twice(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.a, self.out, self.act = nn.Linear(M, M), nn.Linear(M, K), act

        def forward(self, x):
            return self.out(self.act(self.a(self.act(self.a(x)))))

    return Case(Twice(_act(rng)), ["a", "out"][rng.integers(2)], "value")


def tied_embedding(rng):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = nn.Embedding(K, D), nn.Linear(D, D)
            self.out = nn.Linear(D, K, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(torch.tanh(self.inner(self.embed(x).mean(1))))

    layer = ["out", "inner", None][rng.integers(3)]
    return Case(Language(), layer, shape=(2,), integers=True)


# ---------------------------------------------------------------------------
# The graph is cut
# ---------------------------------------------------------------------------
def _cut(hidden, layer="front"):
    def build(rng):
        module = variant(hidden=hidden)(_act(rng))
        oracle = Net(module.act)
        oracle.load_state_dict(module.state_dict())
        chosen = layer if rng.integers(3) else "back"
        return Case(module, chosen, "value" if chosen == "back" else "either", oracle)

    return build


def _under(context):
    def hidden(self, x):
        with context():
            return self.act(self.front(x))

    return hidden


no_grad = _cut(_under(torch.no_grad))
inference = _cut(_under(torch.inference_mode))
detached = _cut(lambda self, x: self.act(self.front(x)).detach())
data_attribute = _cut(lambda self, x: self.act(self.front(x)).data)
through_numpy = _cut(
    lambda self, x: torch.from_numpy(self.act(self.front(x)).detach().numpy().copy())
)
reentrant = _cut(
    lambda self, x: checkpoint(lambda v: self.act(self.front(v)), x, use_reentrant=True)
)
partly_detached = _cut(
    lambda self, x: (
        0.5 * self.act(self.front(x)) + 0.5 * self.act(self.front(x)).detach()
    )
)
behind_no_grad = _cut(lambda self, x: torch.no_grad()(self.act)(self.front(x)), "front")


def nonreentrant(rng):
    def hidden(self, x):
        return checkpoint(lambda v: self.act(self.front(v)), x, use_reentrant=False)

    module = variant(hidden=hidden)(_act(rng))
    oracle = Net(module.act)
    oracle.load_state_dict(module.state_dict())
    return Case(module, ["front", "back"][rng.integers(2)], oracle=oracle)


def scalar_item(rng):
    def hidden(self, x):
        h = self.act(self.front(x))
        return torch.stack([row * row.sum().item() for row in h])

    module = variant(hidden=hidden)(_act(rng))

    def smooth(self, x):
        h = self.act(self.front(x))
        return h * h.sum(1, keepdim=True)

    oracle = variant(hidden=smooth)(module.act)
    oracle.load_state_dict(module.state_dict())
    return Case(module, "front", oracle=oracle)


# ---------------------------------------------------------------------------
# Samples see each other
# ---------------------------------------------------------------------------
def _coupled(hidden):
    def build(rng):
        module = variant(hidden=hidden)(_act(rng))
        return Case(module, _either_layer(rng), "refusal", couples=True)

    return build


batch_mean = _coupled(lambda self, x: (h := self.act(self.front(x))) - h.mean(0))
batch_input_mean = _coupled(lambda self, x: self.act(self.front(x - x.mean(0))))
batch_max = _coupled(lambda self, x: (h := self.front(x)) / (1e-3 + h.abs().max()))
batch_softmax = _coupled(lambda self, x: torch.softmax(self.front(x), 0))
running_sum = _coupled(lambda self, x: self.act(self.front(x)).cumsum(0))
messages = _coupled(
    lambda self, x: torch.softmax(-torch.cdist(x, x), 1) @ self.act(self.front(x))
)
shuffled = _coupled(lambda self, x: self.act(self.front(x)).flip(0))
pairwise = _coupled(lambda self, x: self.act(self.front(x[:, None] - x[None]).mean(1)))


def sorted_and_back(rng):
    def hidden(self, x):
        order = x[:, 0].argsort()
        return self.act(self.front(x[order]))[order.argsort()]

    return Case(variant(hidden=hidden)(_act(rng)), _either_layer(rng))


def tokens_first(rng):
    class TokensFirst(Tokens):
        def forward(self, x):
            return self.out(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))

    layer = [None, "inner", "out"][rng.integers(3)]
    right = "either" if layer == "inner" else "value"
    return Case(TokensFirst(), layer, right, shape=(int(rng.integers(1, 5)), M))


def experts(rng):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(M, D), nn.Linear(M, D), nn.Linear(D, K)

        def forward(self, x):
            first = x[:, 0] > 0
            h = x.new_zeros(len(x), D)
            h[first] = torch.tanh(self.a(x[first]))
            h[~first] = torch.tanh(self.b(x[~first]))
            return self.out(h)

    layer = [None, "a", "b", "out"][rng.integers(4)]
    return Case(Experts(), layer, "either" if layer in ("a", "b") else "value")


def no_running_statistics(rng):
    module = nn.Sequential(
        nn.Linear(M, D), nn.BatchNorm1d(D, track_running_stats=False), nn.Linear(D, K)
    )
    return Case(module, [None, "0", "2"][rng.integers(3)], "refusal", couples=True)


# ---------------------------------------------------------------------------
# The forward pass is no function
# ---------------------------------------------------------------------------
def _random(hidden):
    return lambda rng: Case(
        variant(hidden=hidden)(_act(rng)), _either_layer(rng), "refusal"
    )


dropout_always = _random(lambda self, x: F.dropout(self.act(self.front(x)), 0.5))
torch_noise = _random(lambda self, x: (h := self.front(x)) + 0.3 * torch.randn_like(h))
numpy_noise = _random(
    lambda self, x: self.front(x) * (1 + float(np.random.normal()))  # noqa: NPY002
)


# ---------------------------------------------------------------------------
# What a few samples do not show
# ---------------------------------------------------------------------------
def late_cap(rng):
    def forward(self, x):
        z = self.back(self.hidden(x))
        return z if z.abs().max() < 0.7 else 0.7 * torch.tanh(z / 0.7)

    case = Case(variant(forward=forward)(_act(rng)), _either_layer(rng))
    case.couples = True  # which branch is taken is up to the whole batch
    return case


def row_cap(rng):
    def forward(self, x):
        z = self.back(self.hidden(x))
        return torch.where(z.abs() < 0.7, z, 0.7 * torch.tanh(z / 0.7))

    return Case(variant(forward=forward)(F.relu), _either_layer(rng), "value")


def smooth_branch(rng):
    def hidden(self, x):
        h = torch.relu(self.front(x))
        return torch.where(x[:, :1] > 1.0, h.square(), h)

    return Case(variant(hidden=hidden)(), "front", "value")


def _named(name):
    class Smooth(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sqrt(x * x + 0.1)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x / torch.sqrt(x * x + 0.1)

    Smooth.__name__ = name
    return type(name, (Smooth,), {})


def named_like_torch(rng):
    function = _named(["Abs", "Relu", "Clone", "Max", "Add"][rng.integers(5)])
    return Case(Net(function.apply), "front", "value")


def complex_modulus(rng):
    def hidden(self, x):
        h = self.front(x)
        return torch.complex(h, h.roll(1, 1)).abs()

    return Case(variant(hidden=hidden)(), "front", "value")


def once(rng):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            return g * torch.cos(ctx.saved_tensors[0])

    module = Net(Once.apply)
    oracle = Net(torch.sin)
    oracle.load_state_dict(module.state_dict())
    return Case(module, ["front", "back"][rng.integers(2)], oracle=oracle)


def in_place_sometimes(rng):
    def hidden(self, x):
        h = self.act(self.front(x))
        if x.abs().max() > 1.5:
            h.mul_(1.0)
            x.mul_(1.0)
        return h

    module = variant(hidden=hidden)(F.softplus)
    oracle = Net(module.act)
    oracle.load_state_dict(module.state_dict())
    return Case(module, _either_layer(rng), "value", oracle)


def second_output(rng):
    def forward(self, x):
        h = self.hidden(x)
        return self.back(h), h

    module = variant(forward=forward)(_act(rng))
    oracle = Net(module.act)
    oracle.load_state_dict(module.state_dict())
    return Case(module, _either_layer(rng), oracle=oracle)


def positions(rng):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(M, D), nn.Linear(D, K)

        def forward(self, x):
            return self.out(torch.tanh(self.inner(x))).transpose(1, 2)

    n_positions = int(rng.integers(1, 4))
    layer = [None, "inner", "out"][rng.integers(3)]
    return Case(
        Positions(), layer, "value", shape=(n_positions, M), outputs=(K, n_positions)
    )


def squeezed(rng):
    def forward(self, x):
        return self.back(self.hidden(x)).squeeze()

    module = variant(forward=forward)(_act(rng), back=nn.Linear(D, 1))

    def column(self, x):
        return self.back(self.hidden(x))[:, 0]

    oracle = variant(forward=column)(module.act, back=nn.Linear(D, 1))
    oracle.load_state_dict(module.state_dict())
    return Case(module, _either_layer(rng), "value", oracle=oracle, outputs=())


HARMLESS: list[Callable[[Any], Case]] = [
    mlp, sequential, residual, conv1d, conv2d, tokens, attention, lstm,
    frozen_parameters, logged_detach, stable_softmax, additive_lora, straight_through,
    parametrized,
]  # fmt: skip
BREAKING: list[Callable[[Any], Case]] = [
    cosine, equalised, masked, multiplicative, squashed_weight, capped_late,
    standardised_conv, padding_conv, grouped_conv, replacing_hook, replacing_pre_hook,
    spectral, pruned, functional_use, weight_in_output, list_reference, tied,
    called_twice, tied_embedding, no_grad, inference, detached, data_attribute,
    through_numpy, reentrant, partly_detached, behind_no_grad, nonreentrant,
    scalar_item, batch_mean, batch_input_mean, batch_max, batch_softmax, running_sum,
    messages, shuffled, pairwise, sorted_and_back, tokens_first, experts,
    no_running_statistics, dropout_always, torch_noise, numpy_noise, late_cap, row_cap,
    smooth_branch, named_like_torch, complex_modulus, once, in_place_sometimes,
    second_output, positions, squeezed,
]  # fmt: skip
NAMES = {
    id(build): name
    for name, build in list(globals().items())
    if callable(build) and (build in HARMLESS or build in BREAKING)
}


def oracle_of(case: Case) -> nn.Module:
    """The module whose second derivatives are right, in float64 and eval mode."""
    module = case.module if case.oracle is None else case.oracle
    return copy.deepcopy(module).double().eval()
