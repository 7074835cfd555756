"""The smoothed risk against sampling in NumPy, and its limits."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_diabetes, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn

from sklearn_relflat._density.density_radius import density_radius
from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk

X, y = make_classification(
    40, 5, n_informative=4, n_redundant=0, n_classes=3, random_state=0
)
WEIGHT = np.random.default_rng(0).uniform(0.5, 2.0, size=40)
N_BRUTE = 20_000


def directions(rng, n, m):
    drawn = rng.normal(size=(n, m))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def cross_entropy(logits, labels):
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def brute_force(function, Z, labels, radius, root=None, weights=None, loss=None):
    """Mean loss at perturbed features with its standard error, by sampling."""
    rng = np.random.default_rng(1)
    m = Z.shape[1]
    root = np.eye(m) if root is None else root
    norms = np.linalg.norm(np.linalg.solve(root, Z.T), axis=0)
    loss = cross_entropy if loss is None else loss
    weights = np.ones(len(Z)) if weights is None else weights
    means, errors = np.empty(len(Z)), np.empty(len(Z))
    for i, z in enumerate(Z):
        xi = radius * norms[i] * directions(rng, N_BRUTE, m) @ root.T
        values = loss(function(z + xi), np.full(N_BRUTE, labels[i]))
        means[i], errors[i] = values.mean(), values.std() / np.sqrt(N_BRUTE)
    weights = weights / weights.sum()
    return (weights * means).sum(), np.sqrt((weights**2 * errors**2).sum())


def agrees(result, expected, stderr):
    return abs(result.value - expected) < 5 * np.hypot(result.stderr, stderr)


def softmax_model():
    return LogisticRegression(C=10.0, max_iter=1000).fit(X, y)


def perceptron(max_iter=400, activation="relu"):
    options = {"max_iter": max_iter, "activation": activation, "random_state": 0}
    mlp = MLPClassifier((6,), **options)
    with warnings.catch_warnings():
        # Where the training stops does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mlp.fit(X, y)


def forward(mlp, hidden=None):
    """Raw outputs of a perceptron, from its inputs or its hidden units on."""

    def from_inputs(Z):
        return np.maximum(Z @ mlp.coefs_[0] + mlp.intercepts_[0], 0)

    def from_hidden(H):
        return H @ mlp.coefs_[1] + mlp.intercepts_[1]

    return from_hidden if hidden else lambda Z: from_hidden(from_inputs(Z))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


IMAGES = np.random.default_rng(2).normal(size=(40, 1, 3, 3)).astype(np.float32)


def conv_net():
    torch.manual_seed(0)
    return NeuralNetClassifier(
        Conv, criterion=nn.CrossEntropyLoss, batch_size=7
    ).initialize()


def patches(images):
    """Unfolded features of the convolution, (n, m, P)."""
    blocks = [
        images[:, 0, i : i + 2, j : j + 2].reshape(len(images), 4)
        for i in range(2)
        for j in range(2)
    ]
    return np.stack(blocks, axis=2)


def conv_outputs(net, phi):
    """Raw outputs for unfolded features."""
    w = {k: p.detach().double().numpy() for k, p in net.module_.named_parameters()}
    z = np.einsum("dm,nmp->ndp", w["conv.weight"].reshape(3, 4), phi)
    hidden = np.maximum(z + w["conv.bias"][:, None], 0).reshape(len(phi), -1)
    return hidden @ w["head.weight"].T + w["head.bias"]


# ---------------------------------------------------------------------------
# The number
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("weights", [None, WEIGHT])
@pytest.mark.parametrize("shape", ["isotropic", "within_class", "covariance"])
@pytest.mark.parametrize("make", [softmax_model, perceptron])
def test_is_the_mean_over_perturbed_inputs(make, shape, weights):
    model = make()
    function = model.decision_function if make is softmax_model else forward(model)
    root = None
    if shape != "isotropic":
        centred = X - X.mean(axis=0)
        if shape == "within_class":
            centred = X - np.stack([X[y == k].mean(axis=0) for k in y])
        root = np.linalg.cholesky(ledoit_wolf(centred, assume_centered=True)[0])
    found = smoothed_risk(
        model,
        X,
        y,
        radius=0.7,
        shape=shape,
        n_draws=400,
        sample_weight=weights,
        random_state=0,
    )
    assert agrees(found, *brute_force(function, X, y, 0.7, root, weights))
    base = cross_entropy(function(X), y)
    np.testing.assert_allclose(found.mean_loss, np.average(base, weights=weights))


def test_hidden_layer():
    mlp = perceptron()
    Z = np.maximum(X @ mlp.coefs_[0] + mlp.intercepts_[0], 0)
    expected = brute_force(forward(mlp, hidden=True), Z, y, 0.7)
    options = {"radius": 0.7, "n_draws": 400, "random_state": 0}
    found = smoothed_risk(mlp, X, y, layer="coefs.1", **options)
    assert agrees(found, *expected)
    assert smoothed_risk(mlp, X, y, layer=None, **options).value == found.value


def test_input_and_convolution_of_images():
    net = conv_net()
    flat = IMAGES.reshape(40, -1).astype(float)

    def of_pixels(Z):
        return conv_outputs(net, patches(Z.reshape(-1, 1, 3, 3)))

    found = smoothed_risk(net, IMAGES, y, radius=0.7, n_draws=400, random_state=0)
    assert agrees(found, *brute_force(of_pixels, flat, y, 0.7))
    assert (found.n_features, found.layer) == (9, "input")

    # One orthogonal matrix for all patches of a sample.
    rng = np.random.default_rng(3)
    phi = patches(IMAGES.astype(float))
    draws = []
    for _ in range(4000):
        q, r = np.linalg.qr(rng.normal(size=(40, 4, 4)))
        q = q * np.sign(np.einsum("nkk->nk", r))[:, None, :]
        draws.append(cross_entropy(conv_outputs(net, phi + 0.7 * q @ phi), y).mean())
    expected, stderr = np.mean(draws), np.std(draws) / np.sqrt(len(draws))
    options = {"layer": "conv", "radius": 0.7, "n_draws": 100}
    found = smoothed_risk(net, IMAGES, y, random_state=0, **options)
    assert agrees(found, expected, stderr)
    assert found.n_features == 4


def test_error_rate():
    mlp = perceptron()

    def wrong(logits, labels):
        return (logits.argmax(axis=1) != labels).astype(float)

    found = smoothed_risk(
        mlp, X, y, radius=0.7, n_draws=400, metric="error_rate", random_state=0
    )
    assert agrees(found, *brute_force(forward(mlp), X, y, 0.7, loss=wrong))
    assert found.mean_loss == pytest.approx(1 - mlp.score(X, y))
    binary = LogisticRegression().fit(X, y > 0)
    found = smoothed_risk(
        binary, X, y > 0, radius=0.7, n_draws=400, metric="error_rate", random_state=0
    )
    expected = brute_force(
        lambda Z: np.stack([0 * Z[:, 0], binary.decision_function(Z)], axis=1),
        X,
        (y > 0).astype(int),
        0.7,
        loss=wrong,
    )
    assert agrees(found, *expected)


def test_binary_loss_and_pipeline():
    scaled = make_pipeline(StandardScaler(), LogisticRegression(C=5.0)).fit(X, y > 0)
    Z = scaled[0].transform(X)

    def loss(logits, labels):
        return -np.log(expit(np.where(labels, logits, -logits)))

    found = smoothed_risk(scaled, X, y > 0, radius=0.5, n_draws=200, random_state=0)
    expected = brute_force(scaled[-1].decision_function, Z, y > 0, 0.5, loss=loss)
    assert agrees(found, *expected)


@pytest.mark.parametrize("shape", ["isotropic", "covariance"])
def test_squared_error_of_a_linear_model_is_exact(shape):
    data, target = load_diabetes(return_X_y=True)
    model = Ridge().fit(data, target)
    found = smoothed_risk(model, data, target, radius=0.5, shape=shape)
    assert (found.method, found.stderr, found.n_draws) == ("exact", 0.0, 0)
    root = None
    if shape == "isotropic":
        kappa = relative_flatness(model, data, target).value
        np.testing.assert_allclose(found.rise, 0.25 * kappa / 20)
    else:
        centred = data - data.mean(axis=0)
        root = np.linalg.cholesky(ledoit_wolf(centred, assume_centered=True)[0])

    def loss(outputs, targets):
        return (outputs - targets) ** 2

    expected, stderr = brute_force(
        model.predict, data[:20], target[:20], 0.5, root, loss=loss
    )
    some = smoothed_risk(model, data, target, radius=0.5, shape=shape, per_sample=True)
    assert abs(some.per_sample[:20].mean() - expected) < 5 * stderr


def test_per_sample_values_have_the_mean():
    mlp = perceptron()
    found = smoothed_risk(mlp, X, y, radius=0.7, per_sample=True, random_state=0)
    assert found.per_sample.shape == (40,)
    assert found.per_sample.mean() == pytest.approx(found.value)
    found = smoothed_risk(mlp, X, y, radius=0.7, random_state=0)
    assert found.per_sample is None


# ---------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------
def smooth_perceptron():
    # Samples beside a kink have no second order.
    return perceptron(activation="tanh")


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (softmax_model, "input"),
        (smooth_perceptron, "coefs.0"),
        (smooth_perceptron, "coefs.1"),
        (smooth_perceptron, "input"),
    ],
)
def test_small_radius_is_the_second_order(make, layer):
    model = make()
    first = "coef" if make is softmax_model else "coefs.0"
    kappa = relative_flatness(model, X, y, layer=first if layer == "input" else layer)
    radius = 1e-4
    found = smoothed_risk(
        model, X, y, layer=layer, radius=radius, n_draws=1000, random_state=0
    )
    expected = radius**2 * kappa.value / (2 * kappa.n_features)
    assert abs(found.rise - expected) < 5 * found.stderr + 1e-3 * expected
    assert found.stderr < 0.1 * expected


def test_convolution_at_a_small_radius():
    net = conv_net()
    net.module_.double()
    kappa = relative_flatness(net, IMAGES, y, layer="conv")
    found = smoothed_risk(
        net, IMAGES, y, layer="conv", radius=1e-4, n_draws=400, random_state=0
    )
    expected = 1e-8 * kappa.value / 8
    assert abs(found.rise - expected) < 5 * found.stderr + 1e-3 * expected


def test_radius_zero_is_the_loss_itself():
    found = smoothed_risk(perceptron(), X, y, radius=0)
    assert (found.value, found.stderr) == (found.mean_loss, 0.0)


def test_control_variate_lowers_the_variance():
    """Near zero the second order is all there is, and nothing is left to draw."""
    found = smoothed_risk(softmax_model(), X, y, radius=1e-3, random_state=0)
    assert found.stderr < 1e-3 * found.rise
    found = smoothed_risk(softmax_model(), X, y, radius=0.3, random_state=0)
    assert found.stderr < 0.1 * found.rise


# ---------------------------------------------------------------------------
# Standard errors
# ---------------------------------------------------------------------------
COVERAGE = {
    "perceptron": (perceptron, {"radius": 0.7, "n_draws": 4}, 40),
    "many draws": (perceptron, {"radius": 0.7, "n_draws": 16}, 40),
    "linear": (softmax_model, {"radius": 0.7, "n_draws": 8}, 40),
    "three samples": (perceptron, {"radius": 0.7, "n_draws": 8}, 3),
    "one weight": (perceptron, {"radius": 0.7, "n_draws": 16}, 40),
    "error rate": (
        perceptron,
        {"radius": 0.7, "n_draws": 16, "metric": "error_rate"},
        40,
    ),
}


@pytest.mark.parametrize("name", COVERAGE)
def test_two_standard_errors_hold_the_exact_value(name):
    make, options, n = COVERAGE[name]
    model = make()
    weight = None
    if name == "one weight":
        weight = np.ones(n)
        weight[4] = 50.0
    options = {**options, "sample_weight": weight}
    exact = smoothed_risk(
        model, X[:n], y[:n], random_state=10**6, **{**options, "n_draws": 4000}
    )
    hits = 0
    for seed in range(300):
        found = smoothed_risk(model, X[:n], y[:n], random_state=seed, **options)
        hits += abs(found.value - exact.value) <= 1.96 * found.stderr
    assert 0.92 <= hits / 300 <= 0.99


def pooling_net(n_pixels):
    """One mean over blocks of pixels, as far from independent pixels as nets are."""
    torch.manual_seed(0)
    side = int(n_pixels**0.5)
    module = nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(3 * (side // 8) ** 2, 3),
    )
    return NeuralNet(module, nn.CrossEntropyLoss, batch_size=16).initialize()


@pytest.mark.parametrize(("n", "rough"), [(3, False), (15, True)])
def test_pairs_that_share_a_draw_have_true_standard_errors(n, rough):
    """Four pairs turn one draw; the fewer the features, the less they are apart."""
    images = np.random.default_rng(0).normal(size=(n, 256)).astype(np.float32)
    net = pooling_net(256)
    if rough:
        # Most of the curvature lies in few pixels, and the turns do not mix much.
        images[:, 8:] *= 0.01
        net.module_[1].weight.data *= 30
    options = {"radius": 1.0, "n_draws": 16}
    found = [
        smoothed_risk(net, images, y[:n], random_state=seed, **options)
        for seed in range(300)
    ]
    values = np.array([one.value for one in found])
    exact = smoothed_risk(
        net, images, y[:n], random_state=10**6, **{**options, "n_draws": 2000}
    )
    assert abs(values.mean() - exact.value) < 5 * np.hypot(
        values.std() / 300**0.5, exact.stderr
    )
    hits = [abs(one.value - exact.value) <= 1.96 * one.stderr for one in found]
    assert 0.92 <= np.mean(hits) <= 0.99
    # The pairs are as good as independent: what they say apart has the spread of all.
    by_pair = np.array([one.by_pair for one in found])
    correlations = np.corrcoef(by_pair.T)
    assert abs(correlations[~np.eye(8, dtype=bool)]).max() < 0.25
    assert abs(correlations[~np.eye(8, dtype=bool)].mean()) < 0.03


def test_pairs_that_share_a_draw_go_on_where_a_round_ended():
    """The pairs of a seed are the same however they are asked for."""
    images = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    net = pooling_net(256)
    few, more = (
        smoothed_risk(net, images, y[:5], radius=1.0, n_draws=k, random_state=0)
        for k in (6, 16)
    )
    np.testing.assert_allclose(few.by_pair, more.by_pair[:3], rtol=1e-6)
    rounds = smoothed_risk(
        net, images, y[:5], radius=1.0, n_draws=6, rtol=5e-4, random_state=0
    )
    np.testing.assert_allclose(rounds.by_pair[:8], more.by_pair, rtol=1e-6)
    assert len(np.unique(more.by_pair)) == 8


def test_rtol_draws_until_it_is_reached():
    mlp = perceptron()
    once = smoothed_risk(mlp, X, y, radius=0.7, random_state=0)
    found = smoothed_risk(mlp, X, y, radius=0.7, rtol=0.01, random_state=0)
    assert found.stderr <= 0.01 * found.value < once.stderr
    assert found.n_draws > once.n_draws
    assert abs(found.value - once.value) < 5 * once.stderr
    with pytest.warns(ConvergenceWarning, match="4096 draws"):
        smoothed_risk(mlp, X, y, radius=0.7, rtol=1e-9, n_draws=2048, random_state=0)


class Twice(nn.Module):
    """The modules of a sequence, called by a forward of its own."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        return self.parts(x)


@pytest.mark.parametrize("first", ["linear", "conv", "shared"])
def test_a_first_layer_that_pairs_share_changes_nothing(first):
    """A pair of inputs goes once through a first layer that is linear."""
    torch.manual_seed(0)
    if first == "conv":
        layer = nn.Conv2d(1, 2, 2, stride=2, padding=1, padding_mode="circular")
        parts = [layer, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)]
        data = IMAGES
    elif first == "linear":
        parts = [nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3)]
        data = X.astype(np.float32)
    else:
        layer = nn.Linear(5, 5)
        parts = [layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3)]
        data = X.astype(np.float32)
    module = nn.Sequential(*parts).double()
    found, expected = (
        smoothed_risk(
            NeuralNet(m, nn.CrossEntropyLoss, batch_size=16).initialize(),
            data.astype(float),
            y,
            radius=0.7,
            random_state=0,
        )
        for m in (module, Twice(module))
    )
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.mean_loss == pytest.approx(expected.mean_loss, rel=1e-12)
    assert "forward" not in vars(module[0])


def test_same_seed_same_perturbations_for_every_candidate():
    """Batches and dtypes do not matter, so that differences are known well."""
    X32 = X.astype(np.float32)

    def net(batch_size, dtype=torch.float32):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
        return NeuralNetClassifier(
            module, criterion=nn.CrossEntropyLoss, batch_size=batch_size
        ).initialize()

    found = [
        smoothed_risk(candidate, X32, y, radius=0.7, random_state=0).value
        for candidate in (net(40), net(7), net(1), net(16, torch.float64))
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)

    a, b = perceptron(), perceptron(max_iter=380)
    one, two = (smoothed_risk(m, X, y, radius=0.7, random_state=0) for m in (a, b))
    difference = one.by_pair - two.by_pair
    assert difference.mean() == pytest.approx(one.value - two.value)
    assert difference.std() < 0.3 * one.by_pair.std()
    again = smoothed_risk(a, X, y, radius=0.7, random_state=0)
    assert again.value == one.value
    other = smoothed_risk(a, X, y, radius=0.7, random_state=1)
    assert other.value != one.value


def test_global_random_state_and_model_stay_as_they_were():
    net = conv_net()
    state = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002 - the one that users have
    before = {k: v.clone() for k, v in net.module_.state_dict().items()}
    training = net.module_.training
    for layer in ("input", "conv", "head"):
        smoothed_risk(net, IMAGES, y, layer=layer, radius=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert all(torch.equal(v, before[k]) for k, v in net.module_.state_dict().items())
    assert net.module_.training is training
    assert not net.module_.conv._forward_hooks


# ---------------------------------------------------------------------------
# The radius
# ---------------------------------------------------------------------------
def test_radius_from_the_density():
    mlp = perceptron()
    found = smoothed_risk(mlp, X, y, random_state=0)
    assert found.radius == pytest.approx(density_radius(X).radius)
    assert found.density.radius == found.radius
    hidden = np.maximum(X @ mlp.coefs_[0] + mlp.intercepts_[0], 0)
    found = smoothed_risk(mlp, X, y, layer=None, random_state=0)
    assert found.radius == pytest.approx(density_radius(hidden).radius, rel=1e-6)
    radius = density_radius(X, y, shape="within_class")
    found = smoothed_risk(mlp, X, y, radius=radius, shape="within_class")
    assert found.radius == radius.radius
    with pytest.raises(ValueError, match=r"radius of shape='isotropic'"):
        smoothed_risk(mlp, X, y, radius=radius)


def test_radius_of_many_samples_is_that_of_some(monkeypatch):
    module = "sklearn_relflat._robustness.smoother._RADIUS_SAMPLES"
    monkeypatch.setattr(module, 20)
    found = smoothed_risk(perceptron(), X, y, random_state=0)
    assert found.density.n_samples == 20
    assert found.n_samples == 40


# ---------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------
def test_modules_that_work_in_place_or_call_a_layer_twice():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)
            self.out = nn.Linear(5, 3)

        def forward(self, x):
            x.mul_(2.0)
            for _ in range(2):
                x = torch.tanh(self.inner(x))
            return self.out(x)

    torch.manual_seed(0)
    net = NeuralNet(InPlace, nn.CrossEntropyLoss, batch_size=9).initialize()
    net.module_.double()
    kept = X.copy()
    found = smoothed_risk(net, X, y, radius=0.3, n_draws=200, random_state=0)
    np.testing.assert_array_equal(X, kept)
    w = {k: p.detach().numpy() for k, p in net.module_.named_parameters()}

    def outputs(Z):
        H = 2 * Z
        for _ in range(2):
            H = np.tanh(H @ w["inner.weight"].T + w["inner.bias"])
        return H @ w["out.weight"].T + w["out.bias"]

    assert agrees(found, *brute_force(outputs, X, y, 0.3))
    kappa = relative_flatness(net, X, y, layer="inner")
    found = smoothed_risk(
        net, X, y, layer="inner", radius=1e-4, n_draws=400, random_state=0
    )
    # The gradient part of a second order in two calls has no closed form here.
    assert found.rise == pytest.approx(
        1e-8 * kappa.value / 10, abs=6 * found.stderr + 1e-3 * found.rise
    )


def test_integers_and_dicts_name_the_way_out():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.table(x).mean(1))

    net = NeuralNetClassifier(Words, criterion=nn.CrossEntropyLoss).initialize()
    words = np.random.default_rng(0).integers(0, 9, size=(40, 6))
    with pytest.raises(TypeError, match=r"got integers \(torch.int64\). Name a layer"):
        smoothed_risk(net, words, y)
    found = smoothed_risk(net, words, y, layer="out", random_state=0)
    assert found.value > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"radius": -1.0}, ValueError, "'density' or a finite number"),
        ({"radius": "large"}, ValueError, "'density' or a finite number"),
        ({"radius": np.inf}, ValueError, "'density' or a finite number"),
        ({"shape": "round"}, ValueError, "shape to be one of"),
        ({"n_draws": 3}, ValueError, "at least 4"),
        ({"n_draws": 4.0}, ValueError, "at least 4"),
        ({"rtol": 0.0}, ValueError, "rtol to be a positive number"),
        ({"metric": "accuracy"}, ValueError, "'error_rate'"),
        ({"layer": ["coefs.0"]}, TypeError, "name of one layer"),
        ({"layer": "nowhere"}, ValueError, "nowhere"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        smoothed_risk(perceptron(), X, y, **options)


def test_what_cannot_be_smoothed():
    with pytest.raises(ValueError, match="Expected a classifier"):
        smoothed_risk(LinearRegression().fit(X, y), X, y, metric="error_rate")
    net = conv_net()
    with pytest.raises(ValueError, match="features at one position"):
        smoothed_risk(net, IMAGES, y, layer="conv", shape="covariance")
    regressor = MLPRegressor(hidden_layer_sizes=(3,), max_iter=50, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regressor.fit(X, X[:, 0])
    with pytest.raises(ValueError, match="of several samples"):
        smoothed_risk(regressor, X, X[:, 0], shape="within_class")


def test_repr():
    text = repr(smoothed_risk(perceptron(), X, y, random_state=0))
    assert text.startswith("<SmoothedRisk ")
    assert "at radius" in text
    exact = smoothed_risk(LinearRegression().fit(X, y), X, y, radius=0.5)
    assert "(exact)" in repr(exact)
