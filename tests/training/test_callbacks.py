"""Callbacks and mixins of skorch nets: what they record, and the penalty's gradient."""

import inspect
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_validate
from skorch import (
    NeuralNet,
    NeuralNetBinaryClassifier,
    NeuralNetClassifier,
    NeuralNetRegressor,
)
from skorch.callbacks import Checkpoint, EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._selection.scorers import TrainingFlatnessScorer
from sklearn_relflat.callbacks import (
    FlatnessRegularized,
    ModuleSizes,
    RelativeFlatnessMonitor,
    RelativeFlatnessRecorder,
    Seeded,
)

X, y = make_classification(
    60, 4, n_informative=3, n_redundant=0, flip_y=0.1, random_state=0
)
X = X.astype(np.float32)


class Net(nn.Module):
    def __init__(self, n_features=4, n_outputs=2, dropout=0.0, link=None):
        super().__init__()
        self.hidden = nn.Linear(n_features, 6)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(6, n_outputs)
        self.link = link or nn.Identity()

    def forward(self, X):
        return self.link(self.out(self.dropout(torch.tanh(self.hidden(X)))))


class SeededClassifier(Seeded, NeuralNetClassifier):
    pass


class FlatClassifier(Seeded, FlatnessRegularized, NeuralNetClassifier):
    pass


class FlatRegressor(Seeded, FlatnessRegularized, NeuralNetRegressor):
    pass


class FlatBinary(Seeded, FlatnessRegularized, NeuralNetBinaryClassifier):
    pass


class FlatNet(Seeded, FlatnessRegularized, NeuralNet):
    pass


def net(cls=SeededClassifier, module=Net, **options):
    settings = {
        "train_split": None,
        "max_epochs": 4,
        "lr": 0.3,
        "random_state": 0,
        "verbose": 0,
        "iterator_train__shuffle": True,
        "batch_size": 16,
    }
    if issubclass(cls, NeuralNetClassifier):
        settings["criterion"] = nn.CrossEntropyLoss
    return cls(module, **{**settings, **options})


def flatness(fitted, rows=slice(None), **options):
    return relative_flatness(fitted, X[rows], y[rows], **options).value


# ---------------------------------------------------------------------------
# Recorder
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("train_split", [None, ValidSplit(3)])
@pytest.mark.parametrize("options", [None, {"normalize": "std"}])
@pytest.mark.parametrize("layer", [None, "hidden"])
def test_recorder_measures_the_samples_that_were_trained_on(
    train_split, options, layer
):
    recorder = RelativeFlatnessRecorder(layer=layer, options=options)
    fitted = net(train_split=train_split, callbacks=[("rec", recorder)]).fit(X, y)
    train, _ = fitted.get_split_datasets(X, y)
    rows = getattr(train, "indices", slice(None))
    expected = flatness(fitted, rows, layer=layer, **(options or {}))
    assert fitted.training_flatness_.value == pytest.approx(expected, rel=1e-5)
    assert TrainingFlatnessScorer()(fitted) == -fitted.training_flatness_.value


def test_recorder_keeps_no_data():
    many = np.tile(X, (500, 1)), np.tile(y, 500)
    fitted = net(
        callbacks=[("rec", RelativeFlatnessRecorder())], max_epochs=1, batch_size=5000
    )
    fitted.fit(*many)
    assert len(pickle.dumps(fitted)) < 30_000 < many[0].nbytes
    # Nor does a checkpoint that is written in the middle of training.
    recorder = fitted.callbacks_[-2][1]
    recorder.on_epoch_begin(fitted, dataset_train=many[0])
    assert recorder.dataset_ is many[0]
    assert len(pickle.dumps(recorder)) < 1000


def test_recorder_forgets_an_earlier_training():
    fitted = net(callbacks=[("rec", RelativeFlatnessRecorder())]).fit(X, y)
    first = fitted.training_flatness_
    fitted.partial_fit(X[:40], y[:40])
    assert fitted.training_flatness_.value != first.value
    assert fitted.training_flatness_.n_samples == 40
    fitted.set_params(max_epochs=0).fit(X, y)
    assert not hasattr(fitted, "training_flatness_")
    assert not hasattr(clone(fitted), "training_flatness_")


def test_recorder_after_an_interrupted_training():
    class Interrupt(EarlyStopping):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    fitted = net(
        callbacks=[
            ("stop", Interrupt(monitor="train_loss")),
            ("rec", RelativeFlatnessRecorder()),
        ]
    ).fit(X, y)
    assert fitted.training_flatness_.value == pytest.approx(flatness(fitted), rel=1e-5)


def test_recorder_goes_behind_what_loads_the_best_parameters(tmp_path):
    best = ("best", EarlyStopping(patience=2, load_best=True))
    recorder = ("rec", RelativeFlatnessRecorder())
    split = {"train_split": ValidSplit(3), "lr": 3.0, "max_epochs": 8}
    with pytest.raises(ValueError, match=r"got 'best' after it.*end of the list"):
        net(callbacks=[recorder, best], **split).fit(X, y)
    fitted = net(callbacks=[best, recorder], **split).fit(X, y)
    rows = fitted.get_split_datasets(X, y)[0].indices
    assert fitted.training_flatness_.value == pytest.approx(
        flatness(fitted, rows), rel=1e-5
    )


def test_recorded_in_a_search():
    found = cross_validate(
        net(callbacks=[("rec", RelativeFlatnessRecorder())]),
        X,
        y,
        scoring=TrainingFlatnessScorer(),
        cv=2,
        return_estimator=True,
        return_indices=True,
    )
    for fitted, rows, score in zip(
        found["estimator"], found["indices"]["train"], found["test_score"], strict=True
    ):
        assert score == pytest.approx(-flatness(fitted, rows), rel=1e-5)


# ---------------------------------------------------------------------------
# Monitor
# ---------------------------------------------------------------------------
class History(RelativeFlatnessRecorder):
    """Notes the flatness after each epoch, by its own means."""

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        rows = getattr(dataset_train, "indices", slice(None))
        net.history.record("own_train", flatness(net, rows))
        if dataset_valid is not None:
            net.history.record("own_valid", flatness(net, dataset_valid.indices))


@pytest.mark.parametrize("shuffle", [True, False])
def test_monitor_records_each_epoch(shuffle):
    """With shuffled batches, samples and targets still belong together."""
    fitted = net(
        iterator_train__shuffle=shuffle,
        train_split=ValidSplit(3),
        callbacks=[("own", History()), ("mon", RelativeFlatnessMonitor(on="both"))],
    ).fit(X, y)
    for split in ("train", "valid"):
        recorded = fitted.history[:, f"{split}_flatness"]
        np.testing.assert_allclose(
            recorded, fitted.history[:, f"own_{split}"], rtol=1e-5
        )
        assert len(set(recorded)) == 4
        best = fitted.history[:, f"{split}_flatness_best"]
        lowest = np.minimum.accumulate(recorded)
        assert best == [True, *(recorded[1:] < lowest[:-1]).tolist()]


def test_monitor_every_few_epochs():
    fitted = net(
        max_epochs=7,
        callbacks=[("own", History()), ("mon", RelativeFlatnessMonitor(every=3))],
    ).fit(X, y)
    own = fitted.history[:, "own_train"]
    expected = [own[i - i % 3] for i in range(7)]
    np.testing.assert_allclose(fitted.history[:, "train_flatness"], expected, rtol=1e-5)
    # It goes on where a training is continued.
    fitted.partial_fit(X, y)
    assert len(set(fitted.history[:, "train_flatness"])) == 5
    assert (
        fitted.history[6:9, "train_flatness"]
        == [fitted.history[6, "train_flatness"]] * 3
    )


def test_monitor_leaves_the_training_alone():
    """Dropout, the order of batches and the module's mode are as without it."""
    plain = net(module__dropout=0.5).fit(X, y)
    fitted = net(
        module__dropout=0.5,
        callbacks=[("mon", RelativeFlatnessMonitor(layer="hidden"))],
    ).fit(X, y)
    for name, value in plain.module_.state_dict().items():
        assert torch.equal(value, fitted.module_.state_dict()[name])


def test_monitor_in_the_printed_table(capsys):
    net(
        verbose=1,
        callbacks=[
            ("a", RelativeFlatnessMonitor()),
            ("b", RelativeFlatnessMonitor(layer="hidden", name="hidden")),
        ],
    ).fit(X, y)
    header = capsys.readouterr().out.splitlines()[0]
    assert "train_flatness" in header
    assert "train_hidden" in header
    assert "best" not in header


def test_other_callbacks_watch_the_monitor(tmp_path):
    checkpoint = Checkpoint(monitor="train_flatness_best", dirname=str(tmp_path))
    fitted = net(
        max_epochs=30,
        callbacks=[
            ("mon", RelativeFlatnessMonitor()),
            ("checkpoint", checkpoint),
            ("stop", EarlyStopping(monitor="train_flatness", patience=3, sink=str)),
        ],
    ).fit(X, y)
    values = fitted.history[:, "train_flatness"]
    assert len(values) == np.argmin(values) + 1 + 3 < 30
    fitted.load_params(checkpoint=checkpoint)
    assert flatness(fitted) == pytest.approx(min(values), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every to be an integer of at least 1, got 0"),
        ({"every": 1.5}, "every to be an integer of at least 1, got 1.5"),
        ({"on": "test"}, 'on to be "train", "valid" or "both", got \'test\''),
        ({"on": "valid"}, "validation data for on='valid', got a net with train_split"),
        ({"layer": "fc"}, r"Choose one of \['hidden', 'out'\]"),
        ({"options": {"curvature": "gn"}}, "curvature to be one of"),
    ],
)
def test_monitor_errors(options, message):
    with pytest.raises(ValueError, match=message):
        net(callbacks=[("mon", RelativeFlatnessMonitor(**options))]).fit(X, y)


# ---------------------------------------------------------------------------
# Every callback
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "cls", [RelativeFlatnessMonitor, RelativeFlatnessRecorder, ModuleSizes]
)
def test_parameters_of_callbacks(cls):
    names = set(inspect.signature(cls).parameters)
    callback = cls()
    assert set(callback.get_params()) == names
    for name in names:
        callback.set_params(**{name: "x"})
        assert clone(callback).get_params()[name] == "x"
    assert pickle.loads(pickle.dumps(callback)).get_params() == callback.get_params()


def test_parameters_in_a_search():
    search = GridSearchCV(
        net(callbacks=[("rec", RelativeFlatnessRecorder())]),
        {"callbacks__rec__layer": ["hidden", "out"]},
        scoring=TrainingFlatnessScorer(),
        cv=2,
        error_score="raise",
    )
    scores = search.fit(X, y).cv_results_["mean_test_score"]
    assert scores[0] != scores[1]


# ---------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------
SIZES = ModuleSizes("module__n_features", "module__n_outputs")


@pytest.mark.parametrize("n_features", [2, 4])
@pytest.mark.parametrize(
    ("cls", "target", "n_outputs"),
    [
        (SeededClassifier, np.arange(60) % 3, 3),
        (SeededClassifier, torch.arange(60) % 5, 5),
        (FlatRegressor, X[:, :3], 3),
        (FlatRegressor, X[:, 0], 1),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_sizes(n_features, cls, target, n_outputs):
    fitted = net(cls, lr=0.01, callbacks=[("sizes", SIZES)])
    fitted.fit(X[:, :n_features], target)
    assert fitted.module_.hidden.in_features == n_features
    assert fitted.module_.out.out_features == n_outputs
    # A second training on the same sizes goes on from the first.
    weight = fitted.module_.out.weight.detach().clone()
    fitted.set_params(lr=0.0).partial_fit(X[:, :n_features], target)
    assert torch.equal(weight, fitted.module_.out.weight)


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        ({"X": X}, y, "Expected X as an array with columns"),
        (X, ["a"] * 60, "Expected y as an array of integers or numbers"),
    ],
)
def test_sizes_of_what_has_none(data, target, message):
    with pytest.raises(ValueError, match=message):
        SIZES.on_train_begin(net(), data, target)


# ---------------------------------------------------------------------------
# Seeds
# ---------------------------------------------------------------------------
def weights(fitted):
    return torch.cat([p.detach().flatten() for p in fitted.module_.parameters()])


def test_seeds():
    options = {"module__dropout": 0.5}
    first = weights(net(**options).fit(X, y))
    torch.manual_seed(17)
    before = torch.get_rng_state()
    again = net(**options).fit(X, y)
    assert torch.equal(first, weights(again))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, weights(again.fit(X, y)))
    assert not torch.equal(first, weights(net(random_state=1, **options).fit(X, y)))
    state = np.random.RandomState(0)
    other = net(random_state=state, **options)
    assert not torch.equal(weights(other.fit(X, y)), weights(other.fit(X, y)))


def test_without_a_seed_the_global_state_decides():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(weights(net(random_state=None).fit(X, y)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_weights_and_batches_come_from_different_streams():
    fitted = net().initialize()
    initial = weights(fitted)
    with torch.random.fork_rng(), fitted._seeded(1):
        drawn = torch.rand(6, 4)
    assert not torch.allclose(initial[:24].reshape(6, 4), drawn - 0.5)
    assert torch.equal(initial, weights(net().initialize()))


@pytest.mark.gpu
def test_seeds_on_a_gpu():
    first, again = (
        weights(net(device="cuda", module__dropout=0.5).fit(X, y)) for _ in range(2)
    )
    assert torch.equal(first, again)


# ---------------------------------------------------------------------------
# Regularisation
# ---------------------------------------------------------------------------
PENALIZED = {
    "cross-entropy": (FlatClassifier, {}, y),
    "class weights": (
        FlatClassifier,
        {
            "criterion__weight": torch.tensor([0.3, 2.0], dtype=torch.float64),
            "criterion__label_smoothing": 0.1,
        },
        y,
    ),
    "sum": (FlatClassifier, {"criterion__reduction": "sum"}, y),
    "probabilities": (
        FlatClassifier,
        {"criterion": nn.NLLLoss, "module__link": nn.Softmax(1)},
        y,
    ),
    "binary": (FlatBinary, {"module__n_outputs": 1}, y.astype(np.float64)),
    "squared error": (FlatRegressor, {"module__n_outputs": 3}, X[:, :3].astype("d")),
    "poisson": (
        FlatRegressor,
        {
            "module__n_outputs": 1,
            "criterion": nn.PoissonNLLLoss,
        },
        np.abs(X[:, :1].astype("d")),
    ),
}
every_penalty = pytest.mark.parametrize("name", PENALIZED)


def double_net(name, **options):
    """An initialized net in float64 and the batch that is all its data."""
    cls, settings, target = PENALIZED[name]
    fitted = net(cls, flatness_weight=0.7, **{**settings, **options}).initialize()
    fitted.module_.double()
    batch = (torch.tensor(X, dtype=torch.float64), torch.as_tensor(target))
    return fitted, batch


def training_loss(fitted, batch):
    """Loss of a training step, whose gradients are left on the parameters."""
    fitted.module_.zero_grad()
    return fitted.train_step_single(batch)["loss"].item()


@pytest.mark.parametrize("weight", [0.7, -0.7])
@every_penalty
def test_penalty_is_the_relative_flatness(name, weight):
    fitted, batch = double_net(name)
    fitted.set_params(flatness_weight=weight)
    penalized = training_loss(fitted, batch)
    plain = training_loss(fitted.set_params(flatness_weight=0.0), batch)
    kappa = relative_flatness(fitted, batch[0], batch[1], layer="out").value
    assert penalized - plain == pytest.approx(weight * kappa, rel=1e-10)


@every_penalty
def test_gradient_against_finite_differences(name):
    """In every parameter: those before the output layer move its features."""
    fitted, batch = double_net(name)
    training_loss(fitted, batch)
    analytic = {n: p.grad.clone() for n, p in fitted.module_.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in fitted.module_.named_parameters():
        direction = torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
            values.append(training_loss(fitted, batch))
            with torch.no_grad():
                parameter -= step * direction
        numeric = (values[0] - values[1]) / 2e-5
        slope = float((analytic[parameter_name] * direction).sum())
        assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_penalised_least_squares_is_ridge():
    """E_emp + weight * kappa has the ridge solution of alpha = 2 weight ||X||^2."""
    centred = X - X.mean(0)
    target = (centred @ np.arange(1.0, 5.0, dtype=np.float32))[:, None]
    fitted = FlatRegressor(
        nn.Linear,
        module__in_features=4,
        module__out_features=1,
        module__bias=False,
        flatness_weight=0.05,
        max_epochs=20,
        batch_size=-1,
        optimizer=torch.optim.LBFGS,
        lr=1.0,
        train_split=None,
        random_state=0,
        verbose=0,
    ).fit(centred, target)
    ridge = Ridge(alpha=2 * 0.05 * np.square(centred).sum(), fit_intercept=False)
    expected = ridge.fit(centred, target).coef_
    found = fitted.module_.weight.detach().numpy()
    np.testing.assert_allclose(found.ravel(), np.ravel(expected), rtol=1e-4)


def test_penalty_makes_flat():
    values = []
    for weight in (0.0, 0.01, 0.1, 1.0):
        fitted = net(FlatClassifier, flatness_weight=weight, max_epochs=40).fit(X, y)
        values.append(flatness(fitted))
    assert values == sorted(values, reverse=True)
    assert values[0] > 3 * values[-1]


def test_negative_weight_makes_sharp():
    """Training away from flat minima: the objective is E - |weight| kappa."""
    values = []
    for weight in (0.0, -0.01, -0.03):
        fitted = net(FlatClassifier, flatness_weight=weight, max_epochs=40).fit(X, y)
        values.append(flatness(fitted))
    assert values == sorted(values)
    assert values[-1] > 1.2 * values[0]


def test_validation_loss_has_no_penalty():
    fitted = net(
        FlatClassifier, flatness_weight=0.5, train_split=ValidSplit(3), lr=0.0
    ).fit(X, y)
    rows = fitted.get_split_datasets(X, y)[1].indices
    result = relative_flatness(fitted, X[rows], y[rows])
    assert fitted.history[-1, "valid_loss"] == pytest.approx(result.mean_loss, rel=1e-5)
    rows = fitted.get_split_datasets(X, y)[0].indices
    result = relative_flatness(fitted, X[rows], y[rows])
    assert fitted.history[-1, "train_loss"] == pytest.approx(
        result.mean_loss + 0.5 * result.value, rel=1e-4
    )


def test_weight_is_a_parameter_of_the_net():
    template = net(FlatClassifier, flatness_weight=0.5)
    assert template.get_params()["flatness_weight"] == 0.5
    assert clone(template).flatness_weight == 0.5
    search = GridSearchCV(
        template,
        {"flatness_weight": [0.0, 1.0]},
        scoring="neg_log_loss",
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.cv_results_["mean_test_score"][0] != pytest.approx(
        search.cv_results_["mean_test_score"][1]
    )
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))


def test_zero_weight_is_the_plain_net():
    plain = net(module__dropout=0.5).fit(X, y)
    fitted = net(FlatClassifier, module__dropout=0.5).fit(X, y)
    assert torch.equal(weights(plain), weights(fitted))


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.hidden = nn.LazyLinear(6)


class TwoInputs(Net):
    def forward(self, left, right):
        return super().forward(torch.cat([left, right], 1))


class BatchNormed(Net):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (BatchNormed, X),
        (TwoInputs, {"left": X[:, :1], "right": X[:, 1:]}),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), X),
        (nn.Linear(4, 2), X),
    ],
    ids=["batch norm", "dict", "sequential", "linear"],
)
def test_penalised_modules(module, data):
    fitted = net(FlatClassifier, module, flatness_weight=0.2).fit(data, y)
    assert np.isfinite(fitted.history[:, "train_loss"]).all()
    assert not hasattr(fitted, "output_call_")


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_penalised_compiled_module():
    plain, compiled = (
        net(
            FlatClassifier,
            flatness_weight=0.2,
            callbacks=[("rec", RelativeFlatnessRecorder())],
            **options,
        ).fit(X, y)
        for options in ({}, {"compile": True, "compile__backend": "eager"})
    )
    np.testing.assert_allclose(
        compiled.history[:, "train_loss"], plain.history[:, "train_loss"], rtol=1e-6
    )
    assert compiled.training_flatness_.value == pytest.approx(
        plain.training_flatness_.value, rel=1e-5
    )


@pytest.mark.filterwarnings("ignore:.*Lazy modules are a new feature:UserWarning")
def test_penalised_lazy_module():
    fitted = net(FlatClassifier, Lazy, flatness_weight=0.2).fit(X, y)
    assert fitted.module_.hidden.in_features == 4
    assert np.isfinite(fitted.history[:, "train_loss"]).all()


class NoLinearEnd(Net):
    def forward(self, X):
        return torch.tanh(super().forward(X))


class Changing(Net):
    """Trains with another layer than it predicts with."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(6, 2)

    def forward(self, X):
        if not self.training:
            return super().forward(X)
        return self.other(torch.tanh(self.hidden(X)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flatness_weight": -np.inf}, "flatness_weight to be a finite number"),
        ({"flatness_weight": np.nan}, "flatness_weight to be a finite number"),
        ({"module": NoLinearEnd}, "that ends in a linear layer"),
        ({"module": Changing}, "Expected the training step to call layer 'out'"),
        (
            {
                "criterion": nn.MultiLabelSoftMarginLoss,
                "target": np.eye(2, dtype="f")[y],
            },
            "second derivatives are known in closed form.*'MultiLabelSoftMarginLoss'",
        ),
    ],
)
def test_penalty_errors(options, message):
    settings = {"flatness_weight": 0.1, "criterion": nn.CrossEntropyLoss, **options}
    module, target = settings.pop("module", Net), settings.pop("target", y)
    with pytest.raises(ValueError, match=message):
        net(FlatNet, module, **settings).fit(X, target)
