"""Routes of relative flatness against the brute-force Hessian; its invariances."""

import functools

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import layerwise_relative_flatness, relative_flatness
from sklearn_relflat._curvature import estimate
from tests.cases import CASES, sequential
from tests.oracles import (
    gauss_newton_hessian,
    kappa_max,
    kappa_trace,
    layer_hessian,
    normalized,
    scales,
)

BY_ID = {case.id: case for case in CASES}
PAIRS = [(case.id, layer) for case in CASES for layer in case.layers]
cases_and_layers = pytest.mark.parametrize(("case_id", "layer"), PAIRS)


@functools.cache
def reference(case_id, layer, kind="hessian"):
    """Weight and Hessian (or Gauss-Newton matrix) of a case, float64."""
    case = BY_ID[case_id]
    net = case.fitted()
    X, y = case.data()
    module = case.logits_module(net)
    weight = dict(module.named_parameters(remove_duplicate=False))[f"{layer}.weight"]
    if kind == "hessian":
        hessian = layer_hessian(module, layer, case.risk(net, X, y))
    else:
        hessian = gauss_newton_hessian(module, layer, case.criterion_of(net), X, y)
    return weight.detach(), hessian


def measure(case_id, layer, dtype=torch.float64, net=None, **options):
    case = BY_ID[case_id]
    X, y = case.data(dtype)
    return relative_flatness(net or case.fitted(dtype), X, y, layer=layer, **options)


# ---------------------------------------------------------------------------
# The definition
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["auto", "exact"])
@cases_and_layers
def test_equals_definition(case_id, layer, method):
    result = measure(case_id, layer, method=method)
    expected = kappa_trace(*reference(case_id, layer))
    assert result.value == pytest.approx(expected, rel=1e-9)
    assert result.stderr == 0.0


@cases_and_layers
def test_equals_definition_in_single_precision(case_id, layer):
    result = measure(case_id, layer, torch.float32)
    expected = kappa_trace(*reference(case_id, layer))
    assert result.value == pytest.approx(expected, rel=1e-4)


@cases_and_layers
def test_gauss_newton_equals_its_definition(case_id, layer):
    result = measure(case_id, layer, curvature="gauss_newton", method="exact")
    expected = kappa_trace(*reference(case_id, layer, "gauss_newton"))
    assert result.value == pytest.approx(expected, rel=1e-9)


@cases_and_layers
def test_kappa_max_equals_its_definition(case_id, layer):
    result = measure(case_id, layer, statistic="max_eigenvalue")
    expected = kappa_max(*reference(case_id, layer))
    assert result.value == pytest.approx(expected, rel=1e-9)


def slow_scales(case_id, layer):
    """Standard deviations of the unfolded features, position by position."""
    case = BY_ID[case_id]
    net, (X, _) = case.fitted(), case.data()
    module = dict(net.module_.named_modules())[layer]
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.module_.eval()
    with torch.no_grad():
        net.module_(X)
    handle.remove()
    phi = seen[0]
    if isinstance(module, nn.Conv2d):
        phi = torch.nn.functional.unfold(
            phi, module.kernel_size, padding=module.padding, stride=module.stride
        ).transpose(1, 2)
    return scales(phi.reshape(-1, module.weight[0].numel()))


NORMALIZED = [
    (case_id, layer)
    for case_id in ("relu", "tanh", "batch_norm", "conv2d", "tokens", "binary", "sum")
    for layer in BY_ID[case_id].layers
]


@pytest.mark.parametrize("method", ["auto", "exact"])
@pytest.mark.parametrize(("case_id", "layer"), NORMALIZED)
def test_normalization_is_a_change_of_variables(case_id, layer, method):
    result = measure(case_id, layer, normalize="std", method=method)
    changed = normalized(*reference(case_id, layer), slow_scales(case_id, layer))
    assert result.value == pytest.approx(kappa_trace(*changed), rel=1e-9)


@pytest.mark.parametrize(("case_id", "layer"), NORMALIZED)
def test_kappa_max_normalized(case_id, layer):
    result = measure(case_id, layer, normalize="std", statistic="max_eigenvalue")
    changed = normalized(*reference(case_id, layer), slow_scales(case_id, layer))
    assert result.value == pytest.approx(kappa_max(*changed), rel=1e-9)


@pytest.mark.parametrize("loss", ["squared_error", "brier"])
@pytest.mark.parametrize("layer", ["0", "4"])
def test_another_loss_than_the_training_loss(loss, layer):
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(), case.data()
    one_hot = nn.functional.one_hot(y, 3).double()

    def risk(call):
        outputs = call(X)
        if loss == "squared_error":
            return nn.functional.mse_loss(outputs, one_hot)
        return (outputs.softmax(1) - one_hot).square().sum(1).mean()

    expected = kappa_trace(
        dict(net.module_.named_parameters())[f"{layer}.weight"],
        layer_hessian(net.module_, layer, risk),
    )
    result = relative_flatness(net, X, y, layer=layer, loss=loss)
    assert result.value == pytest.approx(expected, rel=1e-9)
    assert result.loss == loss


@pytest.mark.parametrize("statistic", ["trace", "max_eigenvalue"])
@pytest.mark.parametrize("normalize", [None, "std"])
def test_weight_decay_is_a_penalty(statistic, normalize):
    case, decay = BY_ID["tanh"], 0.3
    net, (X, y) = case.fitted(), case.data()
    weight, hessian = reference("tanh", "2")
    d, m = weight.shape
    penalty = decay * torch.eye(d * m, dtype=torch.float64).reshape(d, m, d, m)
    pair = weight, hessian + penalty
    if normalize == "std":
        pair = normalized(*pair, slow_scales("tanh", "2"))
    expected = {"trace": kappa_trace, "max_eigenvalue": kappa_max}[statistic](*pair)
    result = relative_flatness(
        net,
        X,
        y,
        layer="2",
        weight_decay=decay,
        statistic=statistic,
        normalize=normalize,
    )
    assert result.value == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------------------
# Sums over samples
# ---------------------------------------------------------------------------
SUMMED = [
    ("relu", "0"),
    ("tanh", "2"),
    ("tanh", "4"),
    ("conv2d", "3"),
    ("dense", "conv"),
]


@pytest.mark.parametrize(("case_id", "layer"), SUMMED)
def test_per_sample_contributions(case_id, layer):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(), case.data()
    result = measure(case_id, layer, per_sample=True)
    assert result.per_sample.shape == (len(y),)
    assert np.mean(result.per_sample) == pytest.approx(result.value, rel=1e-12)
    alone = [
        float(relative_flatness(net, X[i : i + 1], y[i : i + 1], layer=layer))
        for i in range(len(y))
    ]
    np.testing.assert_allclose(result.per_sample, alone, rtol=1e-9)


@pytest.mark.parametrize("case_id", ["relu", "tanh", "weights", "ignore", "sum", "mse"])
@pytest.mark.parametrize("normalize", [None, "std"])
def test_integer_weights_are_repetitions(case_id, normalize):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(), case.data()
    weight = np.arange(len(y)) % 3
    index = np.repeat(np.arange(len(y)), weight)
    weighted = relative_flatness(
        net, X, y, layer="2", sample_weight=weight, normalize=normalize
    )
    repeated = relative_flatness(
        net, X[index], y[index], layer="2", normalize=normalize
    )
    assert weighted.value == pytest.approx(repeated.value, rel=1e-9)
    assert weighted.mean_loss == pytest.approx(repeated.mean_loss, rel=1e-12)
    assert weighted.gradient_norm == pytest.approx(repeated.gradient_norm, rel=1e-9)


@pytest.mark.parametrize("case_id", ["tanh", "weights", "ignore", "conv2d", "encoder"])
@pytest.mark.parametrize("normalize", [None, "std"])
def test_batches_do_not_matter(case_id, normalize):
    case = BY_ID[case_id]
    X, y = case.data()
    whole, ragged = (
        relative_flatness(
            case.fitted(batch_size=size),
            X,
            y,
            layer=case.layers[0],
            normalize=normalize,
        ).value
        for size in (-1, 3)
    )
    assert ragged == pytest.approx(whole, rel=1e-11)


# Convolutions in both orders of the contraction, tokens, repeated calls, and output
# layers, whose batches are treated together.
@pytest.mark.parametrize(
    ("case_id", "layer"),
    [
        ("conv2d", "0"),
        ("conv1d", "3"),
        ("tokens", "0"),
        ("recurrent", "inner"),
        ("tied", "first"),
        ("weights", "4"),
        ("ignore", "2"),
        ("mse", "4"),
    ],
)
@pytest.mark.parametrize(
    "size",
    [
        "plan._CHUNK_NUMBERS",
        "quadratic_forms._COLUMN_NUMBERS",
        "closed_form._GROUP_NUMBERS",
    ],
)
def test_sizes_of_chunks_do_not_matter(case_id, layer, size, monkeypatch):
    case = BY_ID[case_id]
    X, y = case.data()
    whole, cut = case.fitted(), case.fitted(batch_size=4)
    options = {"layer": layer, "per_sample": True}
    expected = relative_flatness(whole, X, y, **options)
    monkeypatch.setattr(f"sklearn_relflat._curvature.{size}", {"cpu": 1})
    result = relative_flatness(cut, X, y, **options)
    assert result.value == pytest.approx(expected.value, rel=1e-12)
    assert result.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-12)
    np.testing.assert_allclose(result.per_sample, expected.per_sample, rtol=1e-9)


class InPlaceOnLargeBatches(nn.Module):
    """Overwrites what a look at two samples does not see overwritten."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.in_place = in_place
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.third = nn.Linear(5, 3)

    def forward(self, x):
        in_place = self.in_place if len(x) > 2 else None
        z = self.first(x)
        phi = z.relu_() if in_place == "first" else z.relu()
        z = self.second(phi)
        if in_place == "features":
            phi.zero_()
        return self.third(z.relu_() if in_place == "second" else z.relu())


@pytest.mark.parametrize("in_place", ["first", "second", "features"])
@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_what_a_module_overwrites_unexpectedly(in_place, method):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(10) % 3
    options = {"method": method, "rtol": 10.0, "random_state": 0}
    if in_place == "features":
        # Before them torch cannot differentiate such a module.
        options["layers"] = ["second", "third"]
    plain, sneaky = (
        layerwise_relative_flatness(
            NeuralNetClassifier(
                InPlaceOnLargeBatches(choice).double(), criterion=nn.CrossEntropyLoss
            ).initialize(),
            X,
            y,
            **options,
        )
        for choice in (None, in_place)
    )
    for name, result in plain.items():
        assert sneaky[name].value == pytest.approx(result.value, rel=1e-12)
        assert sneaky[name].gradient_norm == pytest.approx(
            result.gradient_norm, rel=1e-12
        )
        assert sneaky[name].n_samples == 10


def test_a_module_that_fails_in_place_fails_with_its_own_error():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            z = self.first(x)
            if torch.is_grad_enabled():
                self.second.weight.add_(1.0)
            return self.second(z)

    net = NeuralNetClassifier(Broken, criterion=nn.CrossEntropyLoss).initialize()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        relative_flatness(net, torch.randn(5, 4), torch.arange(5) % 3, layer="first")


def test_a_loss_that_overflows_names_its_sample_among_joined_batches():
    case = BY_ID["mse"]
    X, y = case.data()
    y = y.clone()
    y[6] = 1e200
    with pytest.raises(ValueError, match=r"finite loss.*samples \[6\]"):
        relative_flatness(case.fitted(batch_size=4), X, y)


@pytest.mark.parametrize("case_id", ["tanh", "conv2d"])
def test_further_passes_of_sampling_keep_the_gradient_of_the_first(case_id):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=120)
    options = {"layer": "0", "method": "sampled", "random_state": 0}
    once = relative_flatness(net, X, y, rtol=np.inf, **options)
    often = relative_flatness(net, X, y, rtol=0.0, **options)
    assert (once.method, often.method) == ("sampled", "sampled")
    assert often.gradient_norm == once.gradient_norm
    assert often.mean_loss == once.mean_loss
    assert often.value != once.value


@cases_and_layers
def test_mean_loss_and_gradient_norm(case_id, layer):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(), case.data()
    module = case.logits_module(net)
    risk = case.risk(net, X, y)(module)
    weight = dict(module.named_parameters(remove_duplicate=False))[f"{layer}.weight"]
    (gradient,) = torch.autograd.grad(risk, weight)
    for method in ("auto", "exact", "sampled"):
        result = measure(case_id, layer, method=method, rtol=10.0, random_state=0)
        assert result.mean_loss == pytest.approx(risk.item(), rel=1e-12)
        assert result.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-9)


# ---------------------------------------------------------------------------
# Several layers
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("normalize", [None, "std"])
def test_layerwise_equals_one_by_one(case, normalize):
    X, y = case.data()
    net = case.fitted()
    table = layerwise_relative_flatness(
        net, X, y, layers=case.layers, normalize=normalize
    )
    assert list(table) == list(case.layers)
    for layer, result in table.items():
        alone = relative_flatness(net, X, y, layer=layer, normalize=normalize)
        assert result.value == pytest.approx(alone.value, rel=1e-9)


def test_layerwise_takes_all_layers_in_one_pass():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(batch_size=4), case.data()
    sizes = []
    handle = net.module_.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    table = layerwise_relative_flatness(net, X, y)
    handle.remove()
    assert list(table) == ["0", "2", "4"]
    # A look at three samples and at two of them alone, then every sample once.
    assert sizes == [3, 1, 1, 4, 4, 3]


# ---------------------------------------------------------------------------
# Routes
# ---------------------------------------------------------------------------
def test_auto_takes_the_cheapest_exact_route():
    assert measure("relu", "4").method == "closed_form"
    assert measure("relu", None).layer == "4"
    assert measure("relu", "2").method == "exact"
    assert measure("relu", "4", method="exact").method == "exact"


def test_auto_samples_where_exact_takes_too_many_passes(monkeypatch):
    monkeypatch.setattr(estimate, "MAX_EXACT_PASSES", 1)
    expected = kappa_trace(*reference("tanh", "0"))
    result = measure("tanh", "0", rtol=0.0, random_state=0)
    assert result.method == "sampled"
    assert 0 < abs(result.value - expected) < 4 * result.stderr


def test_only_the_residual_is_sampled_where_outputs_are_few(monkeypatch):
    monkeypatch.setattr(estimate, "MAX_EXACT_PASSES", 2)
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=300)
    full, alone = (
        relative_flatness(net, X, y, layer="0", method=method, rtol=0.0, random_state=0)
        for method in ("sampled", "auto")
    )
    assert alone.method == "sampled"
    assert alone.stderr < full.stderr


def test_many_classes_are_sampled():
    net = NeuralNetClassifier(
        sequential(lambda: nn.Linear(4, 3), nn.ReLU, lambda: nn.Linear(3, 400)),
        criterion=nn.CrossEntropyLoss,
    ).initialize()
    X, y = torch.randn(40, 4), torch.arange(40)
    sampled = relative_flatness(net, X, y, layer="0", rtol=0.05, random_state=0)
    exact = relative_flatness(net, X, y, layer="0", method="exact")
    assert (sampled.method, exact.method) == ("sampled", "exact")
    assert abs(sampled.value - exact.value) < 4 * sampled.stderr
    assert sampled.stderr <= 0.05 * sampled.value


def test_negative_values_are_reported():
    result = measure("tied", "first")
    assert result.value == pytest.approx(kappa_trace(*reference("tied", "first")))
    assert result.value < 0


# ---------------------------------------------------------------------------
# Invariance
# ---------------------------------------------------------------------------
FACTORS = [1e-3, 0.07, 13.0, 1e3]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("normalize", [None, "std"])
@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_invariant_to_layer_wise_rescaling(factor, normalize, layer):
    before = measure("relu", layer, normalize=normalize).value
    net = BY_ID["relu"].fitted()
    with torch.no_grad():
        net.module_[2].weight *= factor
        net.module_[2].bias *= factor
        net.module_[4].weight /= factor
    after = measure("relu", layer, net=net, normalize=normalize).value
    assert after == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("statistic", ["trace", "max_eigenvalue"])
@pytest.mark.parametrize("layer", ["2", "4"])
def test_normalized_is_invariant_to_neuron_wise_rescaling(seed, layer, statistic):
    before, raw = (
        measure("relu", layer, normalize=normalize, statistic=statistic).value
        for normalize in ("std", None)
    )
    net = BY_ID["relu"].fitted()
    i = int(layer)
    factors = torch.tensor(10 ** np.random.default_rng(seed).uniform(-3, 3, 9))
    factors = factors[: net.module_[i].in_features]
    with torch.no_grad():
        net.module_[i - 2].weight *= factors[:, None]
        net.module_[i - 2].bias *= factors
        net.module_[i].weight /= factors
    after, raw_after = (
        measure("relu", layer, net=net, normalize=normalize, statistic=statistic).value
        for normalize in ("std", None)
    )
    assert after == pytest.approx(before, rel=1e-9)
    assert abs(raw_after / raw - 1) > 1e-2


@pytest.mark.parametrize("factor", FACTORS)
def test_normalized_is_invariant_to_rescaled_channels(factor):
    before = measure("conv2d", "3", normalize="std").value
    net = BY_ID["conv2d"].fitted()
    factors = torch.tensor([1.0, factor, 1 / factor], dtype=torch.float64)
    with torch.no_grad():
        net.module_[0].weight *= factors[:, None, None, None]
        net.module_[0].bias *= factors
        net.module_[3].weight /= factors[:, None, None]
    after = measure("conv2d", "3", net=net, normalize="std").value
    assert after == pytest.approx(before, rel=1e-9)


def test_a_constant_feature_has_a_scale():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    X[:, 2] = 1e6 / 3
    result = relative_flatness(net, X, y, layer="0", normalize="std")
    assert np.isfinite(result.value)
    shifted = relative_flatness(net, X, y, layer="0", normalize="std", method="exact")
    assert result.value == pytest.approx(shifted.value, rel=1e-12)


# ---------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------
@cases_and_layers
def test_sampled_is_within_its_error(case_id, layer):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=80)
    exact = relative_flatness(net, X, y, layer=layer, method="exact").value
    result, again = (
        relative_flatness(
            net, X, y, layer=layer, method="sampled", rtol=0.0, random_state=0
        )
        for _ in range(2)
    )
    assert (again.value, again.stderr) == (result.value, result.stderr)
    if result.stderr < 1e-12 * abs(exact):
        # A single factor per sample: sampling leaves nothing to chance.
        assert result.value == pytest.approx(exact, rel=1e-9)
    else:
        assert abs(result.value - exact) < 4 * result.stderr


@pytest.mark.parametrize("layer", ["0", "4"])
@pytest.mark.parametrize("case_id", ["relu", "tanh", "mse", "conv2d"])
@pytest.mark.parametrize("draws", ["one", "more"])
def test_coverage_of_the_confidence_interval(case_id, layer, draws):
    if case_id == "conv2d" and layer == "4":
        layer = "6"
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=120)
    exact = relative_flatness(net, X, y, layer=layer, method="exact").value
    rtol = np.inf if draws == "one" else 0.0
    hits = []
    for seed in range(200):
        result = relative_flatness(
            net, X, y, layer=layer, method="sampled", rtol=rtol, random_state=seed
        )
        hits.append(abs(result.value - exact) <= 1.96 * result.stderr)
    if draws == "one":
        # The spread over samples bounds the error of the sampling from above.
        assert np.mean(hits) >= 0.94
    else:
        assert 0.90 <= np.mean(hits) <= 0.99


def test_sampling_stops_at_rtol():
    case = BY_ID["conv2d"]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=120)
    loose, tight = (
        relative_flatness(
            net, X, y, layer="3", method="sampled", rtol=rtol, random_state=0
        )
        for rtol in (np.inf, 0.0)
    )
    assert 0 < tight.stderr < loose.stderr


def test_few_samples_are_not_sampled():
    # Two equal draws would tell an error of zero.
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data(n=2)
    exact = relative_flatness(net, X, y, layer="0", method="exact")
    for seed in range(10):
        result = relative_flatness(
            net, X, y, layer="0", method="sampled", rtol=0.1, random_state=seed
        )
        assert (result.method, result.stderr) == ("exact", 0.0)
        assert result.value == pytest.approx(exact.value, rel=1e-12)


def test_a_sample_that_outweighs_the_others_is_not_sampled():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=60)
    options = {"layer": "0", "sample_weight": np.r_[1e8, np.ones(59)]}
    exact = relative_flatness(net, X, y, method="exact", **options)
    result = relative_flatness(
        net, X, y, method="sampled", rtol=0.1, random_state=0, **options
    )
    assert result.value == pytest.approx(exact.value, rel=1e-12)
    assert result.stderr == 0.0


def test_sampled_per_sample_values_average_to_the_value():
    result = measure(
        "tanh", "2", method="sampled", rtol=0.0, per_sample=True, random_state=0
    )
    assert np.mean(result.per_sample) == pytest.approx(result.value, rel=1e-12)


# ---------------------------------------------------------------------------
# The result, the model, and bad input
# ---------------------------------------------------------------------------
def test_result_is_a_number_with_a_summary():
    result = measure("relu", "2", normalize="std")
    assert float(result) == result.value
    for part in ("kappa", "'2'", "std-normalized", "cross_entropy", "exact"):
        assert part in repr(result)
    assert "kappa_max" in repr(measure("relu", "2", statistic="max_eigenvalue"))


def snapshot(net):
    module = net.module_
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "gradients": {k: p.grad.clone() for k, p in module.named_parameters()},
        "training": [m.training for m in module.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()
        ],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 - the global state
        "grad_mode": torch.tensor(torch.is_grad_enabled()),
    }


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("case_id", ["batch_norm", "encoder", "tanh"])
def test_the_model_is_untouched(case_id, failure, monkeypatch):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(), case.data()
    net.module_.train()
    next(net.module_.children()).eval()
    for parameter in net.module_.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    next(net.module_.parameters()).requires_grad_(False)
    calls = []

    def interrupt(*args):
        calls.append(args)
        if failure is not None and len(calls) > 3:
            raise failure("stop")

    net.module_.register_forward_hook(interrupt)
    before = snapshot(net)
    options = {"normalize": "std", "method": "sampled", "random_state": None}
    if failure is None:
        layerwise_relative_flatness(net, X, y, layers=case.layers, **options)
    else:
        with pytest.raises(failure, match="stop"):
            layerwise_relative_flatness(net, X, y, layers=case.layers, **options)
    assert_same(snapshot(net), before)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_parameters_and_no_grad_are_no_obstacle(frozen):
    expected = measure("tanh", "0").value
    net = BY_ID["tanh"].fitted()
    net.module_.requires_grad_(not frozen)
    with torch.no_grad():
        assert measure("tanh", "0", net=net).value == expected
    with torch.inference_mode():
        assert measure("tanh", "0", net=net).value == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "fisher"}, r"Expected curvature to be one of .* got 'fisher'"),
        ({"method": "fast"}, r"Expected method to be one of"),
        ({"normalize": "var"}, r"Expected normalize to be one of \[None, 'std'\]"),
        ({"statistic": "max"}, r"Expected statistic to be one of"),
        ({"rtol": -1.0}, r"Expected rtol to be a number of at least 0, got -1.0"),
        ({"weight_decay": float("nan")}, r"Expected weight_decay .* got nan"),
        (
            {"layer": "5"},
            r"Layer '5' .* does not exist. Choose one of \['0', '2', '4'\]",
        ),
        ({"layer": "1"}, r"Layer '1' .* has no weight matrix"),
        (
            {"statistic": "max_eigenvalue", "method": "sampled"},
            r"always exact, got method=\"sampled\"",
        ),
        (
            {"statistic": "max_eigenvalue", "per_sample": True},
            r"no mean over samples, got per_sample=True",
        ),
    ],
)
def test_bad_options(options, message):
    case = BY_ID["relu"]
    X, y = case.data()
    with pytest.raises(ValueError, match=message):
        relative_flatness(case.fitted(), X, y, **options)


def test_missing_targets():
    case = BY_ID["relu"]
    with pytest.raises(
        ValueError, match="Expected y, the targets of the loss, got None"
    ):
        relative_flatness(case.fitted(), case.data()[0])


def test_layers_must_be_a_list():
    case = BY_ID["relu"]
    with pytest.raises(TypeError, match=r"Pass \['0'\]"):
        layerwise_relative_flatness(case.fitted(), *case.data(), layers="0")
    with pytest.raises(TypeError, match=r"Expected layer to be the name .* got 3"):
        relative_flatness(case.fitted(), *case.data(), layer=3)


def test_weights_that_are_not_finite():
    case = BY_ID["relu"]
    net = case.fitted()
    with torch.no_grad():
        net.module_[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"2\.weight"):
        relative_flatness(net, *case.data())


def test_a_loss_that_is_not_finite():
    case = BY_ID["mse"]
    net, (X, y) = case.fitted(), case.data()
    with torch.no_grad():
        net.module_[4].weight.fill_(1e200)
    with pytest.raises(ValueError, match="Expected a finite loss"):
        relative_flatness(net, X, y)


def test_samples_that_are_all_ignored():
    case = BY_ID["ignore"]
    X, y = case.data()
    with pytest.raises(ValueError, match="every sample is ignored or has weight zero"):
        relative_flatness(case.fitted(), X, torch.full_like(y, 1), layer="2")


def test_no_second_derivative_points_to_gauss_newton():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient * ctx.saved_tensors[0]

    class Layer(nn.Module):
        def forward(self, x):
            return Square.apply(x)

    net = NeuralNetClassifier(
        sequential(lambda: nn.Linear(5, 4), Layer, lambda: nn.Linear(4, 3)),
        criterion=nn.CrossEntropyLoss,
    ).initialize()
    X, y = BY_ID["relu"].data(torch.float32)
    for frozen in (False, True):
        net.module_.requires_grad_(not frozen)
        with pytest.raises(ValueError, match='Use curvature="gauss_newton"'):
            relative_flatness(net, X, y, layer="0")
    assert relative_flatness(net, X, y, layer="0", curvature="gauss_newton").value > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@cases_and_layers
def test_equals_definition_on_the_gpu(case_id, layer):
    case = BY_ID[case_id]
    net, (X, y) = case.fitted(), case.data()
    net.module_.cuda()
    net.criterion_.cuda()
    net.device = "cuda"
    result = relative_flatness(net, X, y, layer=layer)
    expected = kappa_trace(*reference(case_id, layer))
    assert result.value == pytest.approx(expected, rel=1e-9)
