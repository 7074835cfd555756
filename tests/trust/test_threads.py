"""Threads: every number as alone, and nothing of the process or a model is moved."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import (
    hessian_max_eigenvalue,
    pac_bayes_flatness,
    relative_flatness,
    sam_sharpness,
)
from sklearn_relflat.callbacks import Seeded

N = 60


class Images(nn.Module):
    """Convolution, batch normalization and dropout, left in training mode."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.norm(self.a(x[:, None])))).flatten(1))


class Tokens(nn.Module):
    """Attention, whose fused kernels are switched for the whole process by torch."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.a, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.relu(self.a(self.block(x[:, None]).mean(1))))


class Dense(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.a(x)))


def make_net(kind):
    """A net in training mode, with statistics of its own."""
    net = NeuralNetClassifier(
        kind, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=20, verbose=0
    ).initialize()
    net.module_.double().train()
    return net


@pytest.fixture
def data():
    return torch.randn(N, 6, dtype=torch.float64), torch.arange(N) % 3


@pytest.fixture
def _restless():
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def switches():
    """Switches that belong to the whole process."""
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.is_grad_enabled(),
    )


def state(module):
    """What a measurement must not touch."""
    flags = [(m.training, len(m._forward_hooks)) for m in module.modules()]
    return flags, {k: v.clone() for k, v in module.state_dict().items()}


MEASURES = [
    lambda net, X, y: relative_flatness(net, X, y, layer="a").value,
    lambda net, X, y: relative_flatness(net, X, y).value,
    lambda net, X, y: hessian_max_eigenvalue(net, X, y, random_state=0).value,
    lambda net, X, y: sam_sharpness(net, X, y, layer="a").value,
    lambda net, X, y: (
        pac_bayes_flatness(
            net, X, y, metric="loss", n_draws=2, rtol=0.1, random_state=0
        ).value
    ),
]


@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("shared", [True, False])
def test_a_hundred_measurements_in_four_threads(data, shared):
    X, y = data
    kinds = [Images] * 4 if shared else [Images, Tokens, Dense, Images]
    nets = [make_net(kind) for kind in kinds]
    if shared:
        nets = nets[:1] * 4
    expected = [[measure(net, X, y) for measure in MEASURES] for net in nets]
    clean = [net.module_.eval()(X) for net in nets]
    for net in nets:
        net.module_.train()
    before, own = switches(), [state(net.module_) for net in nets]
    stop, wrong = threading.Event(), []

    def predict():
        # The user's own module, in evaluation mode by functional means.
        while not stop.is_set():
            for net, outputs in zip(nets, clean, strict=True):
                found = relative_flatness(net, X, y).mean_loss
                reference = nn.functional.cross_entropy(outputs, y).item()
                if abs(found - reference) > 1e-9:
                    wrong.append(found)

    def measure(i):
        net, which = i % 4, i // 4 % len(MEASURES)
        return MEASURES[which](nets[net], X, y) - expected[net][which]

    beside = threading.Thread(target=predict)
    beside.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            differences = list(pool.map(measure, range(50)))
    finally:
        stop.set()
        beside.join()
    assert not any(differences)
    assert not wrong
    assert switches() == before
    for net, (flags, numbers) in zip(nets, own, strict=True):
        now = state(net.module_)
        assert now[0] == flags
        for key, values in numbers.items():
            assert torch.equal(now[1][key], values)


def test_predictions_beside_a_measurement_see_the_model_as_it_is(data):
    """Another thread runs the module in the middle of the measuring one's forward."""
    X, y = data
    main, seen, armed = threading.current_thread(), [], [False]

    class Gate(nn.Module):
        def forward(self, x):
            if armed[0] and threading.current_thread() is main:
                other = threading.Thread(target=lambda: seen.append(predict()))
                other.start()
                other.join()
            return x

    module = nn.Sequential(Gate(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=30
    ).initialize()

    def predict():
        armed_before, armed[0] = armed[0], False
        with torch.no_grad():
            outputs = module(X)
        armed[0] = armed_before
        return outputs

    clean = predict()
    armed[0] = True
    pac_bayes_flatness(net, X, y, layer="1", n_draws=2, metric="loss", random_state=0)
    armed[0] = False
    assert len(seen) > 5
    assert all(torch.equal(outputs, clean) for outputs in seen)


def test_random_streams_of_other_threads_go_on(data):
    X, y = data
    net = make_net(Images)
    drawn, stop = [], threading.Event()

    def draw():
        while not stop.is_set():
            number = np.random.rand()  # noqa: NPY002 - the global stream is tested
            drawn.append(torch.rand((), dtype=torch.float64).item() + number)

    other = threading.Thread(target=draw)
    other.start()
    for _ in range(10):
        relative_flatness(net, X, y, layer="a")
    stop.set()
    other.join()
    assert len(set(drawn)) == len(drawn)


def test_scikit_learn_models(data):
    X, y = data[0].numpy(), data[1].numpy()
    model = MLPClassifier((5,), solver="lbfgs", max_iter=5000, random_state=0)
    model.fit(X, y)
    expected = relative_flatness(model, X, y, layer="coefs.0").value
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda _: relative_flatness(model, X, y, layer="coefs.0").value,
                range(20),
            )
        )
    assert set(found) == {expected}


def test_seeded_nets_take_turns(data):
    class SeededNet(Seeded, NeuralNetClassifier):
        pass

    net = SeededNet(
        Images, criterion=nn.CrossEntropyLoss, random_state=0, max_epochs=2,
        verbose=0, train_split=None, batch_size=16, iterator_train__shuffle=True,
    )  # fmt: skip
    X, y = data[0].float().numpy(), data[1].numpy()
    expected = cross_val_score(net, X, y, cv=4, scoring="neg_log_loss")
    before = torch.get_rng_state()
    with joblib.parallel_config(backend="threading", n_jobs=4):
        found = cross_val_score(net, X, y, cv=4, scoring="neg_log_loss")
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)
