"""StopAtTrainingLoss: where a training ends, what it leaves alone, and what it says."""

import copy
import inspect
import pickle
import random

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, ParameterGrid
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import Dataset, ValidSplit
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_relflat import FeatureSplit, relative_flatness
from sklearn_relflat.callbacks import (
    FlatnessRegularized,
    RelativeFlatnessRecorder,
    Seeded,
    StopAtTrainingLoss,
)

X, y = make_classification(
    60, 4, n_informative=3, n_redundant=0, flip_y=0.1, random_state=0
)
X = X.astype(np.float32)


class Net(nn.Module):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(8, 2)

    def forward(self, X):
        return self.out(self.dropout(torch.tanh(self.norm(self.hidden(X)))))


class SeededClassifier(Seeded, NeuralNetClassifier):
    pass


class FlatClassifier(Seeded, FlatnessRegularized, NeuralNetClassifier):
    pass


def net(threshold=0.4, *, cls=SeededClassifier, after=(), stop=None, **options):
    callback = StopAtTrainingLoss(threshold, **(stop or {}))
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "train_split": None,
        "max_epochs": 200,
        "lr": 0.2,
        "random_state": 0,
        "verbose": 0,
        "iterator_train__shuffle": True,
        "batch_size": 16,
        "callbacks": [("stop", callback), *after],
    }
    return cls(Net, **{**settings, **options})


def loss_of(fitted, rows=slice(None)):
    """Training loss by the measure that it is to be compared with."""
    return relative_flatness(fitted, X[rows], y[rows]).mean_loss


def weights(fitted):
    return torch.cat([p.detach().flatten() for p in fitted.module_.parameters()])


class Losses(Callback):
    """Notes the training loss after each step, by its own means."""

    def on_train_begin(self, net, **kwargs):
        self.losses_ = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            module = copy.deepcopy(net.module_).eval()
            with torch.no_grad():
                outputs = module(torch.tensor(X))
            self.losses_.append(
                float(nn.functional.cross_entropy(outputs, torch.tensor(y)))
            )


def losses_of_a_plain_training(n_epochs, **options):
    """Training loss after each of all steps of a net that nothing stops."""
    losses = Losses()
    net(callbacks=[("losses", losses)], max_epochs=n_epochs, **options).fit(X, y)
    return losses.losses_


# ---------------------------------------------------------------------------
# Where it ends
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("checks", "looks"),
    [(1, (4,)), (2, (2, 4)), (3, (2, 3, 4)), (4, (1, 2, 3, 4)), (9, (1, 2, 3, 4))],
)
def test_ends_at_the_first_look_below_the_threshold(checks, looks):
    fitted = net(stop={"checks_per_epoch": checks}).fit(X, y)
    losses = losses_of_a_plain_training(len(fitted.history) + 1)
    # Sixty samples in batches of sixteen: four steps an epoch.
    seen = [(i, loss) for i, loss in enumerate(losses) if i % 4 + 1 in looks]
    step, expected = next((i, loss) for i, loss in seen if loss <= 0.4)
    assert fitted.training_loss_ == pytest.approx(expected, rel=1e-5)
    assert fitted.training_loss_ == pytest.approx(loss_of(fitted), rel=1e-5)
    assert len(fitted.history) == step // 4 + 1
    assert fitted.training_loss_reached_ is True
    assert dict(fitted.callbacks_)["stop"].reached_ is True
    # The epochs that were brought to an end are complete.
    assert len(fitted.history[:, "train_loss"]) == (step + 1) // 4


def test_none_is_a_look_after_each_step():
    fitted = [net(stop={"checks_per_epoch": n}).fit(X, y) for n in (None, 4)]
    assert torch.equal(weights(fitted[0]), weights(fitted[1]))


@pytest.mark.parametrize("checks", [1, 3, None])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_exact(checks, optimizer):
    options = {"optimizer": optimizer, "lr": 0.1}
    fitted = net(stop={"checks_per_epoch": checks, "exact": True}, **options).fit(X, y)
    rough = net(stop={"checks_per_epoch": checks}, **options).fit(X, y)
    assert 0.4 * (1 - 1e-4) <= fitted.training_loss_ <= 0.4
    assert loss_of(fitted) == pytest.approx(fitted.training_loss_, rel=1e-5)
    assert loss_of(rough) < loss_of(fitted)
    assert len(rough.history) == len(fitted.history)


def test_exact_for_a_net_that_starts_below_the_threshold():
    fitted = net(stop={"exact": True}).fit(X, y)
    before = weights(fitted)
    fitted.partial_fit(X, y)
    assert torch.allclose(before, weights(fitted), atol=1e-3)
    assert fitted.training_loss_ <= 0.4


def test_held_out_samples_do_not_count():
    fitted = net(train_split=ValidSplit(3)).fit(X, y)
    train, valid = fitted.get_split_datasets(X, y)
    assert fitted.training_loss_ == pytest.approx(loss_of(fitted, train.indices))
    assert loss_of(fitted, valid.indices) != pytest.approx(fitted.training_loss_)


def test_evaluation_mode_and_no_penalty():
    fitted = net(
        cls=FlatClassifier,
        flatness_weight=1e-3,
        module__dropout=0.3,
        module__norm=True,
        stop={"exact": True},
    ).fit(X, y)
    assert loss_of(fitted) == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_that_of_the_criterion(reduction):
    targets = (X @ np.arange(1.0, 5.0, dtype=np.float32))[:, None]
    threshold = 0.5 if reduction == "mean" else 30.0
    fitted = NeuralNetRegressor(
        nn.Linear,
        module__in_features=4,
        module__out_features=1,
        criterion__reduction=reduction,
        callbacks=[("stop", StopAtTrainingLoss(threshold, exact=True))],
        iterator_valid__batch_size=7,
        lr=1e-3 if reduction == "sum" else 1e-2,
        max_epochs=500,
        train_split=None,
        verbose=0,
    ).fit(X, targets)
    assert fitted.training_loss_reached_
    squares = (fitted.predict(X) - targets) ** 2
    assert getattr(squares, reduction)() == pytest.approx(threshold, rel=1e-3)


def test_class_weights_in_one_batch():
    fitted = net(
        0.5,
        criterion__weight=torch.tensor([0.3, 2.0]),
        iterator_valid__batch_size=-1,
        stop={"exact": True},
    ).fit(X, y)
    assert loss_of(fitted) == pytest.approx(0.5, rel=1e-3)


class Shuffled(Dataset):
    """Draws random noise for each sample."""

    def __getitem__(self, index):
        row, target = super().__getitem__(index)
        return row + 0.0 * np.float32(np.random.rand() + random.random()), target  # noqa: NPY002


DATA = {
    "arrays": (X, y),
    "tensors": (torch.tensor(X), torch.tensor(y)),
    "dataset": (Dataset(X, y), None),
    "tensor dataset": (TensorDataset(torch.tensor(X), torch.tensor(y)), None),
    "dataset that draws": (Shuffled(X, y), None),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_kinds_of_data(data):
    fitted = net(stop={"exact": True, "checks_per_epoch": 2}).fit(*data)
    assert torch.equal(
        weights(fitted),
        weights(net(stop={"exact": True, "checks_per_epoch": 2}).fit(X, y)),
    )


class Uncounted(torch.utils.data.IterableDataset):
    """A training sample without a known number of batches."""

    def __iter__(self):
        return iter(zip(X, y, strict=True))


class Streamed(SeededClassifier):
    def get_iterator(self, dataset, training=False):
        if training:
            return torch.utils.data.DataLoader(Uncounted(), batch_size=16)
        return super().get_iterator(dataset, training=training)


def test_number_of_steps_is_learned_where_it_is_not_known():
    options = {"stop": {"checks_per_epoch": 2}, "iterator_train__shuffle": False}
    streamed, plain = (
        net(cls=cls, **options).fit(X, y) for cls in (Streamed, SeededClassifier)
    )
    assert torch.equal(weights(streamed), weights(plain))


# ---------------------------------------------------------------------------
# What it leaves alone
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("data", [(X, y), (Shuffled(X, y), None)])
@pytest.mark.parametrize("random_state", [0, None])
def test_looking_changes_nothing(data, random_state):
    """A training that is watched and never stopped is the training alone."""
    options = {
        "module__dropout": 0.4,
        "module__norm": True,
        "max_epochs": 6,
        "random_state": random_state,
    }
    found = []
    for stop in ({"checks_per_epoch": None, "exact": True, "on_miss": "ignore"}, None):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        callbacks = [("stop", StopAtTrainingLoss(0.0, **stop))] if stop else []
        fitted = net(callbacks=callbacks, **options).fit(*data)
        state = torch.get_rng_state(), np.random.rand(), random.random()  # noqa: NPY002
        found.append((fitted.module_.state_dict(), state, fitted))
    watched, alone = found
    for name, value in alone[0].items():
        assert torch.equal(value, watched[0][name]), name
    assert torch.equal(watched[1][0], alone[1][0])
    assert watched[1][1:] == alone[1][1:]
    assert watched[2].history[:, "train_loss"] == alone[2].history[:, "train_loss"]


def test_training_mode_and_gradients_stay():
    class Watch(Callback):
        def __init__(self, place):
            self.place = place

        def on_batch_end(self, net, training=False, **kwargs):
            flags = [module.training for module in net.module_.modules()]
            gradients = [p.grad.clone() for p in net.module_.parameters()]
            net.__dict__.setdefault("seen", {}).setdefault(self.place, []).append(
                (flags, gradients)
            )

    stop = StopAtTrainingLoss(0.0, checks_per_epoch=None, on_miss="ignore")
    fitted = net(
        max_epochs=2,
        module__dropout=0.5,
        callbacks=[("a", Watch("a")), ("stop", stop), ("b", Watch("b"))],
    ).fit(X, y)
    for before, after in zip(fitted.seen["a"], fitted.seen["b"], strict=True):
        assert before[0] == after[0]
        assert all(before[0])
        for left, right in zip(before[1], after[1], strict=True):
            assert torch.equal(left, right)


def test_keeps_no_data():
    many = np.tile(X, (500, 1)), np.tile(y, 500)
    fitted = net(0.6, batch_size=500, stop={"exact": True}).fit(*many)
    assert len(pickle.dumps(fitted)) < 30_000 < many[0].nbytes

    class Look(Callback):
        def on_epoch_end(self, net, **kwargs):
            # Nor does a checkpoint that is written in the middle of training.
            net.size = len(pickle.dumps(dict(net.callbacks_)["stop"]))

    stop = StopAtTrainingLoss(0.0, exact=True, on_miss="ignore")
    fitted = net(max_epochs=1, callbacks=[("stop", stop), ("look", Look())]).fit(*many)
    assert fitted.size < 1000
    assert "batches_" in vars(stop)


# ---------------------------------------------------------------------------
# A loss that is not reached
# ---------------------------------------------------------------------------
def test_a_miss():
    message = r"loss of 1e-09, got 0\.\d+ after 3 epochs\. Raise max_epochs.*comparable"
    template = net(1e-9, max_epochs=3)
    with pytest.warns(ConvergenceWarning, match=message):
        fitted = template.fit(X, y)
    assert fitted.training_loss_reached_ is False
    assert fitted.training_loss_ == pytest.approx(loss_of(fitted), rel=1e-5)
    fitted.set_params(callbacks__stop__on_miss="ignore").fit(X, y)
    assert fitted.training_loss_reached_ is False
    with pytest.raises(RuntimeError, match=message):
        fitted.set_params(callbacks__stop__on_miss="raise").fit(X, y)
    # A training after it is judged by itself.
    fitted.set_params(callbacks__stop__threshold=10.0).fit(X, y)
    assert fitted.training_loss_reached_ is True
    assert len(fitted.history) == 1


def test_no_epoch_at_all():
    with pytest.warns(ConvergenceWarning, match="got nan after 0 epochs"):
        fitted = net(max_epochs=0).fit(X, y)
    assert np.isnan(fitted.training_loss_)


class Undefined(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs, targets) * np.nan


def test_a_loss_that_is_not_finite_is_no_low_one():
    with pytest.warns(ConvergenceWarning, match="got nan after 2 epochs"):
        net(criterion=Undefined, max_epochs=2).fit(X, y)


def test_early_stopping_beside_it():
    early = EarlyStopping(monitor="train_loss", patience=1, threshold=1.0)
    with pytest.warns(ConvergenceWarning, match="after 2 epochs"):
        net(0.1, after=[("early", early)]).fit(X, y)
    early = EarlyStopping(load_best=True)
    with pytest.raises(ValueError, match=r"got 'early'.*load_best=False"):
        net(after=[("early", early)], train_split=ValidSplit(3)).fit(X, y)


class Interrupt(Callback):
    """A hand on the keyboard after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_batch_end(self, net, **kwargs):
        self.steps -= 1
        if not self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("before", [True, False])
def test_a_training_that_something_else_ends(steps, before):
    stop = ("stop", StopAtTrainingLoss(0.705, exact=True, on_miss="ignore"))
    hand = ("hand", Interrupt(steps))
    fitted = net(callbacks=[hand, stop] if before else [stop, hand], lr=0.1).fit(X, y)
    assert fitted.training_loss_ == pytest.approx(loss_of(fitted), rel=1e-5)
    reached = losses_of_a_plain_training(2, lr=0.1)[steps - 1] <= 0.705
    assert fitted.training_loss_reached_ is reached is (steps == 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": np.nan}, "threshold to be a finite number.*got nan"),
        ({"threshold": "low"}, "threshold to be a finite number.*got 'low'"),
        ({"threshold": True}, "threshold to be a finite number.*got True"),
        ({"checks_per_epoch": 0}, "integer of at least 1, or None .*got 0"),
        ({"checks_per_epoch": 0.5}, "integer of at least 1, or None .*got 0.5"),
        ({"on_miss": "error"}, '"warn", "raise" or "ignore", got \'error\''),
    ],
)
def test_errors(options, message):
    callback = StopAtTrainingLoss(**{"threshold": 0.4, **options})
    with pytest.raises(ValueError, match=message):
        net(callbacks=[("stop", callback)]).fit(X, y)


def test_an_iterator_that_leaves_samples_out():
    with pytest.raises(ValueError, match=r"all 60 .*got 48\. .*drop_last=False"):
        net(iterator_valid__drop_last=True).fit(X, y)


# ---------------------------------------------------------------------------
# As part of a net
# ---------------------------------------------------------------------------
def test_parameters():
    callback = StopAtTrainingLoss(0.1, checks_per_epoch=3, exact=True, on_miss="raise")
    assert set(callback.get_params()) == set(
        inspect.signature(StopAtTrainingLoss).parameters
    )
    assert clone(callback).get_params() == callback.get_params()
    again = pickle.loads(pickle.dumps(callback))
    assert again.get_params() == callback.get_params()
    fitted = net().fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.training_loss_ == fitted.training_loss_
    assert not hasattr(clone(fitted), "training_loss_")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_in_a_search(n_jobs):
    search = GridSearchCV(
        net(stop={"exact": True}),
        {"lr": [0.1, 0.3], "callbacks__stop__threshold": [0.4, 0.5]},
        scoring="neg_log_loss",
        return_train_score=True,
        cv=2,
        n_jobs=n_jobs,
        error_score="raise",
    ).fit(X, y)
    found = -search.cv_results_["mean_train_score"]
    expected = [
        params["callbacks__stop__threshold"]
        for params in ParameterGrid(search.param_grid)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert search.best_estimator_.training_loss_reached_


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_search_drops_a_candidate_that_misses():
    search = GridSearchCV(
        net(0.5, stop={"on_miss": "raise"}, max_epochs=60),
        {"lr": [0.3, 1e-6]},
        scoring="neg_log_loss",
        cv=2,
        error_score=np.nan,
    )
    with pytest.warns(
        FitFailedWarning, match=r"(?s)2 fits failed.*training loss of 0\.5"
    ):
        search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


def test_inside_a_wrapper_and_before_a_recorder():
    recorder = ("recorder", RelativeFlatnessRecorder())
    split = FeatureSplit(net(stop={"exact": True}, after=[recorder]))
    fitted = split.fit(X.astype(float), np.where(y, "yes", "no")).estimator_
    assert fitted.training_loss_reached_
    assert fitted.training_flatness_.mean_loss == pytest.approx(0.4, rel=1e-3)
    probability = split.predict_proba(X.astype(float)).astype(float)
    probability /= probability.sum(axis=1, keepdims=True)
    assert log_loss(np.where(y, "yes", "no"), probability) == pytest.approx(
        0.4, rel=1e-3
    )


@pytest.mark.gpu
def test_on_a_gpu():
    fitted = net(device="cuda", stop={"exact": True}).fit(X, y)
    assert loss_of(fitted) == pytest.approx(0.4, rel=1e-3)
