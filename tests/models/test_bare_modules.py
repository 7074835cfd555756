"""Bare torch modules: the numbers of a skorch net, and nothing touched."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sklearn_relflat import (
    FeatureSplit,
    RelativeFlatnessScorer,
    SmoothedRiskSearchCV,
    feature_robustness,
    fisher_rao_norm,
    generalization_bound,
    hessian_trace,
    layerwise_relative_flatness,
    list_layers,
    relative_flatness,
    reparameterize_layers,
    smoothed_risk,
)

rng = np.random.default_rng(0)
X = rng.normal(size=(300, 5)).astype("float32")
y = rng.integers(3, size=300)
LOSS = nn.CrossEntropyLoss()


class Net(nn.Module):
    """Dropout and batch normalisation, whose modes differ."""

    def __init__(self, wrap=lambda outputs: outputs, n_outputs=3):
        super().__init__()
        self.hidden = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(6, n_outputs)
        self.wrap = wrap

    def forward(self, X):
        features = self.dropout(torch.tanh(self.norm(self.hidden(X))))
        return self.wrap(self.out(features))


class Rows(Dataset):
    """Items of any form."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return self.item(X[row], int(y[row]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, y, strict=True))


def make(cls=Net, **options):
    torch.manual_seed(0)
    module = cls(**options)
    with torch.no_grad():
        module(torch.tensor(X))  # moves the running statistics
    return module


@pytest.fixture
def module():
    return make()


def net_of(module, cls=NeuralNetClassifier, criterion=nn.CrossEntropyLoss, **options):
    """The same module in a skorch net."""
    return cls(module, criterion=criterion, batch_size=256, **options).initialize()


def dictionaries(key):
    return Rows(lambda features, label: {"X": features, key: label})


tensors = TensorDataset(torch.tensor(X), torch.tensor(y))
DATA = {
    "arrays": (X, y),
    "double": (X.astype(float), y.astype("int32")),
    "tensors": (torch.tensor(X), torch.tensor(y)),
    "lists": (torch.tensor(X), y.tolist()),
    "tensor data set": (tensors,),
    "data set": (Rows(lambda features, label: (features, label)),),
    "loader": (DataLoader(tensors, batch_size=64),),
    "shuffled": (DataLoader(tensors, batch_size=64, shuffle=True, drop_last=True),),
    "batch sampler": (
        DataLoader(
            tensors, batch_sampler=BatchSampler(SequentialSampler(tensors), 64, True)
        ),
    ),
    "dicts": (DataLoader(dictionaries("labels"), batch_size=64),),
    "dicts of a data set": (dictionaries("target"),),
    "list of dicts": (
        DataLoader(
            [
                {"X": features, "labels": label}
                for features, label in zip(torch.tensor(X), y.tolist(), strict=True)
            ],
            batch_size=64,
            shuffle=True,
        ),
    ),
    "own collate_fn": (
        DataLoader(
            tensors,
            batch_size=70,
            shuffle=True,
            collate_fn=lambda rows: {
                "X": torch.stack([features for features, _ in rows]),
                "y": torch.stack([label for _, label in rows]),
            },
        ),
    ),
}


# ---------------------------------------------------------------------------
# The numbers of a net
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", DATA)
def test_all_kinds_of_data(module, kind):
    data = DATA[kind]
    expected = relative_flatness(net_of(module), X, y, layer="hidden")
    found = relative_flatness(module, *data, layer="hidden", loss=LOSS)
    assert found.n_samples == len(X)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    risk = {"n_draws": 4, "random_state": 0, "per_sample": True}
    # Samples are in the order of the data set, so that each has its own draws.
    if "dict" not in kind and kind != "own collate_fn":
        np.testing.assert_allclose(
            smoothed_risk(module, *data, loss=LOSS, **risk).per_sample,
            smoothed_risk(net_of(module), X, y, **risk).per_sample,
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    "measure",
    [
        lambda *a, **k: relative_flatness(*a, layer="hidden", **k).value,
        lambda *a, **k: relative_flatness(*a, normalize="std", **k).value,
        lambda *a, **k: hessian_trace(*a, layer="all", **k).value,
        lambda *a, **k: fisher_rao_norm(*a, **k).value,
        lambda *a, **k: smoothed_risk(*a, layer="out", random_state=0, **k).value,
        lambda *a, **k: (
            smoothed_risk(*a, metric="error_rate", random_state=0, **k).value
        ),
        lambda *a, **k: (
            feature_robustness(*a, deltas=[0.1], random_state=0, **k).values
        ),
        lambda *a, **k: [
            row.value for row in layerwise_relative_flatness(*a, **k).values()
        ],
    ],
)
@pytest.mark.parametrize("loader", [False, True])
def test_measures(module, measure, loader):
    data = (DataLoader(tensors, batch_size=256, shuffle=True),) if loader else (X, y)
    found, expected = measure(module, *data, loss=LOSS), measure(net_of(module), X, y)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "loss", "net_class", "criterion"),
    [
        (lambda out: out.log_softmax(1), nn.NLLLoss(), NeuralNet, nn.NLLLoss),
        (lambda out: out.tanh(), nn.MSELoss(), NeuralNetRegressor, nn.MSELoss),
        (lambda out: out, "squared_error", NeuralNetRegressor, nn.MSELoss),
        (lambda out: out.sigmoid(), nn.BCELoss(), NeuralNet, nn.BCELoss),
    ],
)
def test_losses_have_torchs_meaning(wrap, loss, net_class, criterion):
    module = make(wrap=wrap)
    targets = y if criterion is nn.NLLLoss else np.eye(3, dtype="float32")[y]
    result = relative_flatness(module, X, targets, loss=loss)
    expected = relative_flatness(net_of(module, net_class, criterion), X, targets)
    assert result.value == pytest.approx(expected.value, rel=1e-6)
    module.eval()
    with torch.no_grad():
        mean = criterion()(module(torch.tensor(X)), torch.tensor(targets))
    assert result.mean_loss == pytest.approx(float(mean), rel=1e-5)


def test_a_criterion_of_ones_own(module):
    def focal(outputs, targets):
        p = outputs.softmax(1).gather(1, targets[:, None])
        return (-((1 - p) ** 2) * p.log()).mean()

    class OwnNLL(nn.NLLLoss):
        """On logits, in spite of its name."""

        def forward(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets)

    result = relative_flatness(module, X, y, loss=focal)
    net = net_of(module)
    assert result.value == pytest.approx(relative_flatness(net, X, y, loss=focal).value)
    result = relative_flatness(module, X, y, loss=OwnNLL())
    expected = relative_flatness(module, X, y, loss=LOSS)
    assert result.value == pytest.approx(expected.value, rel=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: {"loss": None, "logits": out},
        lambda out: SimpleNamespace(logits=out, hidden_states=None),
        lambda out: (out, None),
    ],
)
def test_outputs_that_hold_logits(wrap):
    module = make(wrap=wrap)
    expected = relative_flatness(make(), X, y, loss=LOSS).value
    assert relative_flatness(module, X, y, loss=LOSS).value == pytest.approx(expected)
    # In a net as well.
    wrapped = relative_flatness(net_of(module), X, y, loss=LOSS).value
    assert wrapped == pytest.approx(expected)


def test_several_named_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(5, 3)

        def forward(self, left, right):
            return self.out(torch.cat([left, right], 1))

    module, named = Two(), {"left": X[:, :2], "right": X[:, 2:]}
    rows = Rows(lambda f, t: {"left": f[:2], "right": f[2:], "labels": t})
    expected = relative_flatness(module.out, X, y, loss=LOSS).value
    for data in ((named, y), (rows,)):
        found = relative_flatness(module, *data, loss=LOSS).value
        assert found == pytest.approx(expected, rel=1e-6)


def test_sample_weight(module):
    weight = rng.uniform(size=300)
    expected = relative_flatness(net_of(module), X, y, sample_weight=weight).value
    for data in ((X, y), (DataLoader(tensors, batch_size=64, shuffle=True),)):
        found = relative_flatness(module, *data, loss=LOSS, sample_weight=weight).value
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_data_frame_is_a_matrix(module):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcde"))
    found = relative_flatness(module, frame, pd.Series(y), loss=LOSS).value
    assert found == relative_flatness(module, X, y, loss=LOSS).value


def test_random_augmentations_are_the_same_in_each_pass(module):
    noisy = Rows(lambda features, label: (features + np.random.randn(5), label))  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = relative_flatness(module, noisy, loss=LOSS, layer="hidden").value
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert relative_flatness(module, noisy, loss=LOSS, layer="hidden").value == first


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_scripted_and_half_modules():
    plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    expected = relative_flatness(plain, X, y, loss=LOSS).value
    compiled = torch.compile(plain)
    assert relative_flatness(compiled, X, y, loss=LOSS).value == expected
    half = copy.deepcopy(plain).bfloat16()
    assert relative_flatness(half, X, y, loss=LOSS).value == pytest.approx(
        expected, rel=0.05
    )
    assert half[0].weight.dtype is torch.bfloat16
    scripted = torch.jit.script(plain).train()
    risk = {"loss": LOSS, "n_draws": 4, "random_state": 0}
    found = smoothed_risk(scripted, X, y, **risk).value
    assert found == pytest.approx(smoothed_risk(plain, X, y, **risk).value, rel=1e-5)
    assert scripted.training


def test_what_needs_no_loss(module):
    assert list_layers(module) == ["hidden", "out"]
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    rescaled = reparameterize_layers(plain, {"0": 3.0}, X=X)
    assert torch.equal(rescaled[0].weight, 3 * plain[0].weight)
    for layer in ("0", "2"):
        values = [
            relative_flatness(m, X, y, layer=layer, loss=LOSS).value
            for m in (plain, rescaled)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_scorer_with_a_loss(module):
    score = RelativeFlatnessScorer(loss="cross_entropy")(module, X, y)
    assert score == -relative_flatness(module, X, y, loss=LOSS).value


# ---------------------------------------------------------------------------
# Nothing touched
# ---------------------------------------------------------------------------
def test_untouched(module):
    calls = []
    module.hidden.register_forward_hook(lambda *args: calls.append(1))
    module.out.requires_grad_(False)
    LOSS(module(torch.tensor(X)), torch.tensor(y)).backward()
    module.dropout.eval()
    before = copy.deepcopy(module.state_dict())
    gradients = [
        None if p.grad is None else p.grad.clone() for p in module.parameters()
    ]
    hooks = [dict(part._forward_hooks) for part in module.modules()]
    stream, loader = torch.get_rng_state(), DataLoader(tensors, 64, shuffle=True)
    for data in ((X, y), (loader,)):
        relative_flatness(module, *data, loss=LOSS, layer="hidden")
        smoothed_risk(module, *data, loss=LOSS, layer="out", n_draws=4)
        hessian_trace(module, *data, loss=LOSS, layer="all")
    assert torch.equal(torch.get_rng_state(), stream)
    assert isinstance(loader.sampler, RandomSampler)
    assert module.training
    assert not module.dropout.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert [p.requires_grad for p in module.out.parameters()] == [False, False]
    assert [dict(part._forward_hooks) for part in module.modules()] == hooks


def test_the_view_sees_later_training(module):
    first = relative_flatness(module, X, y, loss=LOSS).value
    with torch.no_grad():
        module.out.weight *= 2
    assert relative_flatness(module, X, y, loss=LOSS).value != first


@pytest.mark.gpu
def test_on_a_gpu(module):
    expected = relative_flatness(module, X, y, loss=LOSS).value
    module.cuda()
    for data in ((X, y), (torch.tensor(X).cuda(), torch.tensor(y)), (tensors,)):
        found = relative_flatness(module, *data, loss=LOSS).value
        assert found == pytest.approx(expected, rel=1e-4)
    assert module.out.weight.is_cuda


# ---------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "measure", [relative_flatness, smoothed_risk, hessian_trace, generalization_bound]
)
def test_without_a_loss(module, measure):
    with pytest.raises(
        ValueError, match=r"Expected loss=.*'Net'.*CrossEntropyLoss\(\)"
    ):
        measure(module, X, y)


sampled = [
    SubsetRandomSampler(range(20)),
    WeightedRandomSampler([1.0] * 300, 300),
    RandomSampler(tensors, replacement=True),
    RandomSampler(tensors, num_samples=20),
    SequentialSampler(range(20)),
]


@pytest.mark.parametrize("sampler", sampled, ids=lambda s: type(s).__name__)
def test_samplers_that_do_not_read_every_sample_once(module, sampler):
    name = type(sampler).__name__
    loaders = [
        DataLoader(tensors, batch_size=8, sampler=sampler),
        DataLoader(tensors, batch_sampler=BatchSampler(sampler, 8, False)),
    ]
    for loader in loaders:
        with pytest.raises(ValueError, match=rf"'{name}'.*shuffle=False.*Subset"):
            relative_flatness(module, loader, loss=LOSS)
    rows = Subset(tensors, range(20))
    found = relative_flatness(module, DataLoader(rows, batch_size=8), loss=LOSS).value
    expected = relative_flatness(module, X[:20], y[:20], loss=LOSS).value
    assert found == pytest.approx(expected, rel=1e-6)


class OwnLoader(DataLoader):
    def __iter__(self):
        return iter([])


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            (OwnLoader(tensors),),
            TypeError,
            "got 'OwnLoader', which iterates in its own",
        ),
        ((DataLoader(tensors, batch_size=None),), ValueError, "batch_size=None"),
        (
            (
                DataLoader(
                    tensors, batch_sampler=OwnBatches(SequentialSampler(X), 8, False)
                ),
            ),
            ValueError,
            "got one with OwnBatches",
        ),
        ((Stream(),), TypeError, "the iterable 'Stream', whose order nobody knows"),
        ((DataLoader(Stream()),), TypeError, "the iterable 'Stream'"),
        ((DataLoader([], batch_size=4),), ValueError, "one sample, got an empty list"),
        ((tensors, y), ValueError, "y=None where X is a TensorDataset.*Leave y out"),
        ((DataLoader(tensors), y), ValueError, "y=None where X is a DataLoader"),
        ((TensorDataset(torch.tensor(X)),), ValueError, "got a (list|tuple) of 1"),
        ((Rows(lambda f, t: (f, f, t)),), ValueError, "of 3 entries.*collate_fn"),
        ((Rows(lambda f, t: f),), ValueError, r"\(inputs, targets\).*got a Tensor"),
        ((dictionaries("class"),), ValueError, r"got the keys \['X', 'class'\]"),
        (
            (Rows(lambda f, t: {"X": f, "y": t, "labels": t}),),
            ValueError,
            r"one of the keys \('labels'",
        ),
        ((dictionaries("labels").item, y), TypeError, "Expected X as an array"),
        ((X.tolist(), y), TypeError, "Expected X as an array"),
        ((X, y[:5]), ValueError, "one entry per sample"),
        ((X, y.astype(str)), ValueError, "numeric targets"),
        ((X[:, :4], y), ValueError, "in_features=5"),
        (
            (
                DataLoader(
                    tensors,
                    batch_size=64,
                    collate_fn=lambda rows: (
                        torch.stack([features for features, _ in rows[:-1]]),
                        torch.stack([label for _, label in rows[:-1]]),
                    ),
                ),
            ),
            ValueError,
            "Expected 300 samples from the data loader, got 295",
        ),
    ],
)
def test_data_that_are_refused(module, data, error, message):
    with pytest.raises(error, match=message):
        relative_flatness(module, *data, loss=LOSS)


def test_a_net_makes_its_own_batches(module):
    loader = DataLoader(tensors, batch_size=64)
    with pytest.raises(TypeError, match=r"got a DataLoader.*loader\.dataset"):
        relative_flatness(net_of(module), loader)
    found = relative_flatness(net_of(module), loader.dataset).value
    assert found == relative_flatness(module, loader, loss=LOSS).value


@pytest.mark.parametrize(
    ("wrap", "loss", "message"),
    [
        (lambda out: out, nn.NLLLoss(), "or a bare one with that loss, to return log"),
        (lambda out: out, nn.BCELoss(), "between 0 and 1"),
        (lambda out: {"scores": out}, LOSS, "as 'logits', got 'dict'"),
        (lambda out: out, nn.L1Loss(), "twice differentiable"),
        (lambda out: out, "hinge", "loss to be one of"),
    ],
)
def test_outputs_and_losses_that_are_refused(wrap, loss, message):
    with pytest.raises((TypeError, ValueError), match=message):
        relative_flatness(make(wrap=wrap), X, y, loss=loss)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_parameters():
    with pytest.raises(NotFittedError, match="Pass a batch through the module first"):
        relative_flatness(nn.LazyLinear(3), X, y, loss=LOSS)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: FeatureSplit(m).fit(X, y),
        lambda m: clone(FeatureSplit(m)).fit(X, y),
        lambda m: FeatureSplit(FrozenEstimator(m)).fit(X, y),
        lambda m: FeatureSplit(make_pipeline(StandardScaler(), m)).fit(X, y),
        lambda m: SmoothedRiskSearchCV(m, {"lr": [0.1]}).fit(X, y),
        lambda m: relative_flatness(
            make_pipeline(StandardScaler().fit(X), m), X, y, loss=LOSS
        ),
        lambda m: relative_flatness(FrozenEstimator(m), X, y, loss=LOSS),
    ],
)
def test_estimators_are_asked_for(module, use):
    how = r"'Net'.*skorch\.NeuralNetClassifier\(module.*net\.initialize\(\)"
    with pytest.raises(TypeError, match=how):
        use(module)


def test_the_way_out_works(module):
    net = NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss, classes=[0, 1, 2])
    net.initialize()
    split = FeatureSplit(FrozenEstimator(net)).fit(X, y)
    found = relative_flatness(split, X, y).value
    expected = relative_flatness(module, X, y, loss=LOSS).value
    assert found == pytest.approx(expected, rel=1e-6)
