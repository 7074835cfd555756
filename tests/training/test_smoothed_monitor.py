"""The smoothed risk in the history of a net, and what other callbacks do with it."""

import inspect
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat.callbacks import Seeded, SmoothedRiskMonitor

X, y = make_classification(
    60, 4, n_informative=3, n_redundant=0, flip_y=0.2, random_state=0
)
X = X.astype(np.float32)
FAST = {"radius": 0.5, "n_draws": 4}


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.hidden = nn.Linear(4, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(16, 2)

    def forward(self, X):
        return self.out(self.dropout(torch.relu(self.norm(self.hidden(X)))))


class SeededClassifier(Seeded, NeuralNetClassifier):
    pass


def net(cls=SeededClassifier, **options):
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "train_split": None,
        "max_epochs": 4,
        "lr": 0.3,
        "verbose": 0,
        "iterator_train__shuffle": True,
        "batch_size": 16,
    }
    seed = {"random_state": 0} if cls is SeededClassifier else {}
    return cls(Net, **{**settings, **seed, **options})


class Own(Callback):
    """Notes the smoothed risk after each epoch, by its own means."""

    def __init__(self, options):
        self.options = options

    def on_epoch_end(self, net, dataset_train=None, **kwargs):
        rows = getattr(dataset_train, "indices", slice(None))
        result = smoothed_risk(net, X[rows], y[rows], random_state=0, **self.options)
        net.history.record("own", result.value)


@pytest.mark.parametrize("train_split", [None, ValidSplit(3)])
@pytest.mark.parametrize(
    "options",
    [
        FAST,
        {"n_draws": 4},
        {"n_draws": 4, "layer": "out", "shape": "covariance"},
        {**FAST, "metric": "error_rate"},
        {**FAST, "loss": "squared_error"},
    ],
)
def test_records_each_epoch(train_split, options):
    """Also with the radius of the input kept: it is that of each epoch."""
    fitted = net(
        train_split=train_split,
        callbacks=[("own", Own(options)), ("risk", SmoothedRiskMonitor(**options))],
    ).fit(X, y)
    recorded = fitted.history[:, "smoothed_risk"]
    np.testing.assert_allclose(recorded, fitted.history[:, "own"], rtol=1e-4)
    lowest = np.minimum.accumulate(recorded)
    best = fitted.history[:, "smoothed_risk_best"]
    assert best == [True, *(recorded[1:] < lowest[:-1]).tolist()]


def test_every_few_epochs():
    fitted = net(
        max_epochs=5,
        callbacks=[("own", Own(FAST)), ("r", SmoothedRiskMonitor(every=2, **FAST))],
    ).fit(X, y)
    own = fitted.history[:, "own"]
    expected = [own[i - i % 2] for i in range(5)]
    recorded = fitted.history[:, "smoothed_risk"]
    np.testing.assert_allclose(recorded, expected, rtol=1e-4)
    assert fitted.history[1, "smoothed_risk"] == fitted.history[0, "smoothed_risk"]
    # A repeated value is no better than itself.
    assert not fitted.history[1, "smoothed_risk_best"]


def test_the_same_few_samples_each_time():
    fitted = net(
        lr=0.0,
        module__dropout=0.5,
        callbacks=[
            ("few", SmoothedRiskMonitor(max_samples=20, name="few", **FAST)),
            ("others", SmoothedRiskMonitor(max_samples=20, random_state=1, **FAST)),
            ("all", SmoothedRiskMonitor(max_samples=60, name="all", **FAST)),
        ],
    )
    # Nothing moves: not even the statistics of the batch normalisation.
    fitted.initialize()
    fitted.module_.norm.momentum = 0.0
    fitted.partial_fit(X, y)
    few, all_of_them = fitted.history[:, "few"], fitted.history[:, "all"]
    assert len(set(few)) == 1
    assert few[0] not in (all_of_them[0], fitted.history[0, "smoothed_risk"])
    whole = smoothed_risk(fitted, X, y, random_state=0, **FAST).value
    assert all_of_them[0] == pytest.approx(whole, rel=1e-4)


def test_early_stopping_without_a_validation_set():
    stop = EarlyStopping(
        monitor="smoothed_risk", patience=3, load_best=True, sink=lambda _: None
    )
    fitted = net(
        max_epochs=60,
        callbacks=[("risk", SmoothedRiskMonitor(**FAST)), ("stop", stop)],
    ).fit(X, y)
    values = fitted.history[:, "smoothed_risk"]
    # EarlyStopping does not count a gain below one in 10,000.
    assert len(values) < 60
    assert len(values) == np.argmin(values) + 1 + 3
    left = smoothed_risk(fitted, X, y, random_state=0, **FAST).value
    assert left == pytest.approx(min(values), rel=1e-4)


def test_a_checkpoint_of_the_smallest_risk(tmp_path):
    checkpoint = Checkpoint(monitor="smoothed_risk_best", dirname=str(tmp_path))
    fitted = net(
        max_epochs=25,
        lr=1.0,
        callbacks=[
            ("risk", SmoothedRiskMonitor(every=2, **FAST)),
            ("checkpoint", checkpoint),
        ],
    ).fit(X, y)
    values = fitted.history[:, "smoothed_risk"]
    assert values[-1] > min(values)
    fitted.load_params(checkpoint=checkpoint)
    left = smoothed_risk(fitted, X, y, random_state=0, **FAST).value
    assert left == pytest.approx(min(values), rel=1e-4)


def test_continued_training_asks_for_the_radius_of_its_own_samples():
    fitted = net(callbacks=[("risk", SmoothedRiskMonitor(n_draws=4))]).fit(X, y)
    fitted.partial_fit(X[:20], y[:20])
    alone = smoothed_risk(fitted, X[:20], y[:20], n_draws=4, random_state=0).value
    assert fitted.history[-1, "smoothed_risk"] == pytest.approx(alone, rel=1e-4)


def test_leaves_the_training_alone():
    """Dropout and the order of batches draw what they draw without it."""
    torch.manual_seed(0)
    plain = net(NeuralNetClassifier, module__dropout=0.5).fit(X, y)
    streams = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    torch.manual_seed(0)
    monitor = SmoothedRiskMonitor(max_samples=30, n_draws=4)
    fitted = net(
        NeuralNetClassifier, module__dropout=0.5, callbacks=[("risk", monitor)]
    ).fit(X, y)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.array_equal(np.random.get_state()[1], streams[1])  # noqa: NPY002
    for name, value in plain.module_.state_dict().items():
        assert torch.equal(value, fitted.module_.state_dict()[name])


def test_leaves_flags_and_gradients_alone():
    fitted = net().fit(X, y)
    fitted.module_.train()
    fitted.module_.norm.eval()
    gradients = [p.grad.clone() for p in fitted.module_.parameters()]
    monitor = SmoothedRiskMonitor(**FAST)
    monitor.on_train_begin(fitted)
    fitted.history.new_epoch()
    monitor.on_epoch_end(fitted, dataset_train=fitted.get_dataset(X, y))
    assert fitted.module_.training
    assert not fitted.module_.norm.training
    for parameter, gradient in zip(fitted.module_.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)


def test_in_the_printed_table(capsys):
    net(verbose=1, callbacks=[("risk", SmoothedRiskMonitor(**FAST))]).fit(X, y)
    header = capsys.readouterr().out.splitlines()[0]
    assert "smoothed_risk" in header
    assert "best" not in header


def test_parameters():
    names = set(inspect.signature(SmoothedRiskMonitor).parameters)
    monitor = SmoothedRiskMonitor()
    assert set(monitor.get_params()) == names
    for name in names:
        monitor.set_params(**{name: "x"})
        assert clone(monitor).get_params()[name] == "x"
    assert pickle.loads(pickle.dumps(monitor)).get_params() == monitor.get_params()


def test_pickles_and_clones_with_its_net():
    fitted = net(callbacks=[("risk", SmoothedRiskMonitor(n_draws=4))]).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted)).partial_fit(X, y)
    assert len(again.history) == 8
    other = clone(fitted).fit(X, y)
    assert other.history[:, "smoothed_risk"] == fitted.history[:, "smoothed_risk"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every to be an integer of at least 1, got 0"),
        ({"max_samples": 1}, r"max_samples to be None .* at least 2, got 1"),
        ({"max_samples": 0.5}, "at least 2, got 0.5"),
        ({"random_state": None}, "random_state to be an integer, .*, got None"),
        ({"random_state": True}, "random_state to be an integer, .*, got True"),
        ({"n_draws": 3}, "n_draws to be an integer of at least 4"),
        ({"layer": "fc"}, r"Choose one of \['hidden', 'out'\]"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        net(callbacks=[("risk", SmoothedRiskMonitor(**options))]).fit(X, y)
