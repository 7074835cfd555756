"""Private copies of modules: the same function, and nothing shared but numbers."""

import functools
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from sklearn_relflat._models.plain_math import PlainMath, plain_attention
from sklearn_relflat._models.private_copy import ModuleCopies, refresh_weights


class Listed(nn.Module):
    """Modules and parameters in plain lists, dicts, partials and bound methods."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.steps = [self.a, torch.tanh, self.b]
        self.table = {"weight": self.a.weight}
        self.partial = functools.partial(F.linear, weight=self.b.weight)
        self.method = self.last

    def last(self, x):
        return x + self.a(x)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return self.method(self.partial(x)) + F.linear(x, self.table["weight"])


class Counting(nn.Module):
    """Writes to its buffers in every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        self.calls += 1
        return self.out(x)


def hooked():
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    module[0].register_forward_hook(lambda m, a, out: 2 * out)
    module[1].register_forward_pre_hook(lambda m, a: (a[0] + 1,))
    return module


def patched():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    module[0].forward = types.MethodType(
        lambda self, x: -F.linear(x, self.weight), module[0]
    )
    return module


def old_style(wrap):
    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated by torch, used by many
            return nn.Sequential(wrap(nn.Linear(4, 4)), nn.Linear(4, 3))

    return make


def pruned():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    return module


MODULES = {
    "batch norm": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
    ),
    "listed": Listed,
    "counting": Counting,
    "hooked": hooked,
    "patched": patched,
    "parametrized": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
    "weight norm": old_style(weight_norm),
    "spectral norm": old_style(spectral_norm),
    "pruned": pruned,
    "lstm": lambda: nn.LSTM(4, 3, num_layers=2),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "half": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_same_function_of_the_same_numbers(name):
    module = MODULES[name]()
    x = torch.randn(5, 4)
    module(x[:, None] if name == "attention" else x)  # weights of hooks are fresh
    module.eval()
    arguments = x[:, None] if name == "attention" else x
    copy = ModuleCopies().of(module).eval()
    refresh_weights(copy)
    expected, found = module(arguments), copy(arguments)
    if isinstance(expected, tuple):
        expected, found = expected[0], found[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    own = dict(module.named_parameters())
    for key, parameter in copy.named_parameters():
        assert parameter is not own[key]
        assert parameter.data_ptr() == own[key].data_ptr()
        assert parameter.requires_grad
    originals = {id(m) for m in module.modules()}
    assert not any(id(m) in originals for m in copy.modules())


@pytest.mark.parametrize("name", MODULES)
def test_nothing_reaches_the_original(name):
    module = MODULES[name]().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    tables = [
        {k: len(v) for k, v in vars(m).items() if "hooks" in k}
        for m in module.modules()
    ]
    copy = ModuleCopies().of(module).eval()
    x = torch.randn(5, 4)
    for part in copy.modules():
        part.register_forward_hook(lambda *_: None, with_kwargs=True)
        part.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    copy(x[:, None] if name == "attention" else x)
    assert all(m.training for m in module.modules())
    assert tables == [
        {k: len(v) for k, v in vars(m).items() if "hooks" in k}
        for m in module.modules()
    ]
    for key, values in module.state_dict().items():
        assert torch.equal(values, before[key])
    assert all(p.grad is None for p in module.parameters())


def test_half_precision_becomes_single():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).bfloat16()
    copies = ModuleCopies()
    copy = copies.of(module).eval()
    assert copies.is_widened
    assert copy(torch.randn(2, 4)).dtype == torch.float32
    assert module[0].weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_script_module_is_shared():
    script = torch.jit.script(nn.Linear(4, 3))
    copies = ModuleCopies()
    copy = copies.of(nn.Sequential(script, nn.ReLU()))
    assert copies.shared == [script]
    assert copy[0] is script


# ---------------------------------------------------------------------------
# Plain formulas
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.tril(torch.ones(5, 5, dtype=torch.bool))},
        {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
    ],
    ids=["plain", "causal", "scale", "boolean", "added"],
)
def test_attention_by_its_formula(options):
    q, k, v = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(plain_attention(q, k, v, **options), expected)
    with PlainMath(torch.device("cpu")):
        found = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(found, expected)


def test_groups_of_query_heads():
    q = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 5, 6, dtype=torch.float64)
    found = plain_attention(q, k, v, enable_gqa=True)
    repeated = [t.repeat_interleave(2, 1) for t in (k, v)]
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, *repeated))


def test_a_query_that_sees_nothing_gets_zeros():
    q = torch.randn(1, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    assert not plain_attention(q, q, q, attn_mask=mask)[0, 1].any()


def test_no_half_precision_inside():
    layer = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    with PlainMath(torch.device("cpu")), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_draws_are_noted():
    notes = []
    with PlainMath(torch.device("cpu"), notes):
        F.dropout(torch.ones(3), 0.5, training=False)
        nn.Dropout().eval()(torch.ones(3))
        torch.rand(2, generator=torch.Generator())
    assert notes == []
    with PlainMath(torch.device("cpu"), notes):
        F.dropout(torch.ones(3), 0.5)
        torch.randn(2)
    assert "dropout" in notes
    assert "randn" in notes
