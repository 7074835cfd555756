"""Situations that people report: models, nets and searches as they come."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from skorch.helper import DataFrameTransformer
from torch import nn
from torch.nn.utils import parametrizations, prune

from sklearn_relflat import (
    FeatureSplit,
    FlattestWithin,
    KDERepresentativeness,
    RelativeFlatnessScorer,
    compare_measures,
    feature_robustness,
    generalization_bound,
    hessian_max_eigenvalue,
    hessian_trace,
    invariance_report,
    layerwise_relative_flatness,
    output_change,
    relative_flatness,
    reparameterize_layers,
    sam_sharpness,
    weight_norm,
)
from sklearn_relflat._selection.flattest_within import CannotChooseError
from tests.trust.brute_force import kappa_of


def net_of(module, kind=NeuralNetClassifier, **options):
    """An initialized net around a module."""
    options = {"criterion": nn.CrossEntropyLoss, **options}
    if issubclass(kind, NeuralNetClassifier):
        options["classes"] = [0, 1, 2]
    return kind(module, train_split=None, verbose=0, **options).initialize()


class Base(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.relu(self.a(x)))


X, Y = torch.randn(40, 5), torch.arange(40) % 3


# ---------------------------------------------------------------------------
# Precision
# ---------------------------------------------------------------------------
def test_autocast_inside_of_forward_is_computed_in_single_precision():
    class Amp(Base):
        @torch.autocast("cpu", dtype=torch.bfloat16)
        def forward(self, x):
            return super().forward(x)

    plain, amp = net_of(Base), net_of(Amp)
    amp.module_.load_state_dict(plain.module_.state_dict())
    for layer in ("a", "out"):
        expected = relative_flatness(plain, X, Y, layer=layer).value
        assert relative_flatness(amp, X, Y, layer=layer).value == expected
    trace = hessian_trace(plain, X, Y, layer="a").value
    assert hessian_trace(amp, X, Y, layer="a").value == trace
    assert len(compare_measures(amp, X, Y, random_state=0)) > 10
    features = FeatureSplit(FrozenEstimator(amp)).fit(X, Y).transform(X)
    assert features.shape == (40, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    half = net_of(Base)
    half.module_.to(dtype)
    rounded = net_of(Base)
    rounded.module_.load_state_dict(half.module_.state_dict())
    for layer in ("a", "out"):
        found = relative_flatness(half, X, Y, layer=layer)
        expected = relative_flatness(rounded, X, Y, layer=layer)
        assert found.value == expected.value
    assert half.module_.a.weight.dtype == dtype
    with pytest.raises(ValueError, match="half precision"):
        reparameterize_layers(half, {"a": 2.0}, X=X)


def test_a_complex_parameter_elsewhere_does_not_matter():
    class Fourier(Base):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, dtype=torch.cdouble))

        def forward(self, x):
            spectrum = torch.fft.rfft(self.a(x)) * self.w
            return self.out(torch.relu(torch.fft.irfft(spectrum, n=6)))

    net = net_of(Fourier)
    module = net.module_
    module.a.double(), module.out.double()
    x = X.double()
    for layer in ("out", "a"):
        weight = module.get_submodule(layer).weight
        loss = F.cross_entropy(module(x), Y)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        total = 0.0
        w = weight.detach()
        for t in range(w.shape[1]):
            # kappa = sum over k, t of D^2 E[w E_kt, w E_kt], the direction w_k at t.
            for k in range(w.shape[1]):
                step = torch.zeros_like(w)
                step[:, t] = w[:, k]
                (image,) = torch.autograd.grad(
                    gradient, weight, step, retain_graph=True
                )
                total += float((image * step).sum())
        found = relative_flatness(net, x, Y, layer=layer).value
        assert found == pytest.approx(total, rel=1e-8)


# ---------------------------------------------------------------------------
# Graphs, randomness, irregular layers
# ---------------------------------------------------------------------------
def test_a_frozen_backbone_is_measured_behind_the_cut():
    class Backbone(Base):
        mode = torch.no_grad

        def forward(self, x):
            with self.mode():
                h = torch.relu(self.a(x))
            return self.out(h)

    expected = net_of(Base)
    kappa = relative_flatness(expected, X, Y).value
    for mode in (torch.no_grad, torch.inference_mode):
        net = net_of(Backbone)
        net.module_.load_state_dict(expected.module_.state_dict())
        Backbone.mode = staticmethod(mode)
        assert relative_flatness(net, X, Y).value == pytest.approx(kappa, rel=1e-6)
        assert weight_norm(net, X).value == weight_norm(expected, X).value
        table = layerwise_relative_flatness(net, X, Y)
        assert list(table) == ["out"]
        with pytest.raises(ValueError, match=r"'a' was not measured.*no graph"):
            table["a"]
        with pytest.raises(ValueError, match=r"'a'.*no graph.*layer behind"):
            relative_flatness(net, X, Y, layer="a")


def test_dropout_that_is_always_on_is_refused():
    class Always(Base):
        def forward(self, x):
            return self.out(F.dropout(torch.relu(self.a(x)), 0.5))

    net = net_of(Always)
    before = torch.get_rng_state()
    for layer in (None, "a"):
        with pytest.raises(
            ValueError, match=r"differ between two passes.*self.training"
        ):
            relative_flatness(net, X, Y, layer=layer)
    # A refused forward pass has drawn numbers, and leaves the stream as it was.
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_layer_is_found_beside_irregular_ones():
    class TimeDistributed(Base):
        def forward(self, x):
            h = torch.relu(self.a(x.flatten(0, 1))).unflatten(0, x.shape[:2])
            return self.out(h.mean(1))

    class Experts(Base):
        def __init__(self):
            super().__init__()
            self.b = nn.Linear(5, 6)

        def forward(self, x):
            x = x.mean(1)
            h = x.new_zeros(len(x), 6)
            for layer, mask in ((self.a, x[:, 0] > 0), (self.b, x[:, 0] <= 0)):
                if mask.any():
                    h[mask] = torch.relu(layer(x[mask]))
            return self.out(h)

    data = torch.randn(30, 4, 5)
    y = torch.arange(30) % 3
    for kind in (TimeDistributed, Experts):
        net = net_of(kind)
        expected = relative_flatness(net, data, y, layer="out").value
        assert relative_flatness(net, data, y).value == expected
        assert hessian_trace(net, data, y).layer == "out"
        assert RelativeFlatnessScorer()(net, data, y) == -expected
        found = feature_robustness(net, data, y, deltas=[0.1], random_state=0)
        assert found.layer == "out"
        split = FeatureSplit(FrozenEstimator(net)).fit(data, y)
        assert split.layer_ == "out"


def test_an_input_that_the_module_works_in_place_on():
    class InPlace(Base):
        def forward(self, x):
            x.mul_(2.0)
            return super().forward(x)

    net = net_of(InPlace)
    net.module_.double()
    x = X.double()
    assert output_change(net, net, x) == 0.0
    other = reparameterize_layers(net, {"a": 2.0}, X=x)
    assert output_change(net, other, x) < 1e-12


def test_models_with_other_outputs_are_not_compared():
    with pytest.raises(ValueError, match=r"outputs of one shape.*\(40, 3\).*\(40, 1\)"):
        output_change(net_of(Base), net_of(nn.Linear, module__in_features=5,
                                           module__out_features=1), X)  # fmt: skip


def test_a_data_set_moves_no_random_state():
    data = torch.utils.data.TensorDataset(X, Y)
    net = net_of(Base)
    before = torch.get_rng_state()
    relative_flatness(net, data)
    output_change(net, net, data)
    reparameterize_layers(net, {"a": 2.0}, X=data)
    invariance_report(net, data, measures=["weight_norm"], n_copies=1, random_state=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_with_random_augmentation():
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            return X[i] + 0.1 * torch.randn(5) + 0.1 * np.random.rand(), Y[i]  # noqa: NPY002 - as augmentations do

    net = net_of(Base)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = relative_flatness(net, Augmented(), layer="a", normalize="std").value
    assert torch.equal(torch.get_rng_state(), before)
    # Every pass saw the same draws, so that the value is that of one data set.
    torch.manual_seed(3)
    assert relative_flatness(net, Augmented(), layer="a", normalize="std").value > 0
    assert first > 0


# ---------------------------------------------------------------------------
# The training loss
# ---------------------------------------------------------------------------
class TwoHeads(Base):
    """Returns its features as well."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.out(h), h


def test_a_get_loss_that_takes_the_first_output_is_the_criterion():
    class First(NeuralNetClassifier):
        def get_loss(self, y_pred, y_true, *args, **kwargs):
            return super().get_loss(y_pred[0], y_true, *args, **kwargs)

    first, plain = net_of(TwoHeads, First), net_of(Base)
    first.module_.load_state_dict(plain.module_.state_dict())
    for layer in ("a", "out"):
        expected = relative_flatness(plain, X, Y, layer=layer).value
        assert relative_flatness(first, X, Y, layer=layer).value == expected


def test_another_training_loss_is_refused_and_one_by_name_is_measured():
    class Sparse(NeuralNetClassifier):
        def get_loss(self, y_pred, y_true, *args, **kwargs):
            loss = super().get_loss(y_pred[0], y_true, *args, **kwargs)
            return loss + 0.5 * y_pred[1].square().mean()

    class Shrunk(NeuralNetClassifier):
        def get_loss(self, y_pred, y_true, *args, **kwargs):
            loss = super().get_loss(y_pred, y_true, *args, **kwargs)
            return loss + 0.0 * self.module_.a.weight.square().sum()

    net = net_of(TwoHeads, Sparse)
    with pytest.raises(ValueError, match=r"trained with.*Pass loss="):
        relative_flatness(net, X, Y)
    assert relative_flatness(net, X, Y, loss="cross_entropy").value > 0
    # Not even a penalty that happens to be zero.
    with pytest.raises(
        ValueError, match="depends on parameters of the module directly"
    ):
        relative_flatness(net_of(Base, Shrunk), X, Y)


def test_a_criterion_of_all_outputs_is_refused():
    class Both(nn.CrossEntropyLoss):
        def forward(self, y_pred, y):
            main, aux = y_pred
            return super().forward(main, y) + 0.3 * super().forward(aux[:, :3], y)

    net = net_of(TwoHeads, NeuralNet, criterion=Both)
    with pytest.raises(ValueError, match=r"criterion 'Both'.*Pass loss="):
        relative_flatness(net, X, Y, layer="a")


def test_a_batch_whose_targets_make_a_smooth_loss_linear():
    module = nn.Sequential(nn.Linear(2, 1), nn.Softplus())
    options = {"criterion": nn.PoissonNLLLoss, "criterion__log_input": False}
    net = net_of(module, NeuralNet, **options)
    x = torch.randn(32, 2)
    y = torch.poisson(torch.ones(32, 1))
    y[8:16] = 0
    expected = relative_flatness(net, x, y, layer="0").value
    net.set_params(batch_size=8)
    assert relative_flatness(net, x, y, layer="0").value == pytest.approx(expected)


# ---------------------------------------------------------------------------
# Features and heads
# ---------------------------------------------------------------------------
def test_modules_that_share_a_weight_have_their_own_biases():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.h = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.h(torch.tanh(self.b(torch.tanh(self.a(x)))))

    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    y = x[:, :1]
    net = net_of(Shared, NeuralNetRegressor, criterion=nn.MSELoss)
    split = FeatureSplit(FrozenEstimator(net), layer="a").fit(x, y)
    found = split.predict_from_features(split.transform(x))
    np.testing.assert_allclose(found, split.predict(x), rtol=1e-5)
    measure = KDERepresentativeness(
        FrozenEstimator(net), layer="a", delta=1e-7, refit=None, n_splits=2, n_draws=4,
        random_state=0,
    ).fit(x, y)  # fmt: skip
    assert measure.smoothed_risk_ == pytest.approx(measure.empirical_risk_, rel=1e-5)


class Cosine(nn.Linear):
    """A layer that is not w Phi + b."""

    def forward(self, x):
        return 5 * F.linear(F.normalize(x), F.normalize(self.weight))


class Adapted(nn.Linear):
    """A layer with a low-rank adapter."""

    def __init__(self, i, o):
        super().__init__(i, o)
        self.down, self.up = nn.Linear(i, 2), nn.Linear(2, o)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


@pytest.mark.parametrize("kind", [Cosine, Adapted])
@pytest.mark.parametrize("place", ["a", "out"])
def test_heads_of_layers_that_are_not_affine_are_refused(kind, place):
    module = Base()
    setattr(module, place, kind(*((5, 6) if place == "a" else (6, 3))))
    net = net_of(module)
    split = FeatureSplit(FrozenEstimator(net), layer=place).fit(X, Y)
    assert split.transform(X).shape == (40, 5 if place == "a" else 6)
    with pytest.raises(ValueError, match=r"weight @ features \+ bias.*transform works"):
        split.predict_from_features(split.transform(X))
    with pytest.raises(ValueError, match=r"weight @ features \+ bias"):
        KDERepresentativeness(FrozenEstimator(net), layer=place, refit=None).fit(X, Y)


def test_a_hook_of_the_user_belongs_to_the_head():
    module = Base()
    module.out.register_forward_hook(lambda m, a, o: 3 * torch.tanh(o))
    net = net_of(module)
    split = FeatureSplit(FrozenEstimator(net), layer="out").fit(X, Y)
    found = split.predict_from_features(split.transform(X))
    np.testing.assert_array_equal(found, split.predict(X))


def test_a_net_in_double_precision():
    net = net_of(Base)
    net.module_.double()
    x = X.double().numpy()
    split = FeatureSplit(FrozenEstimator(net)).fit(x, Y.numpy())
    assert split.transform(x).dtype == np.float64
    np.testing.assert_array_equal(split.predict(x), net.predict(x))
    assert split.score(x, Y.numpy()) == np.mean(net.predict(x) == Y.numpy())


# ---------------------------------------------------------------------------
# Refits and searches
# ---------------------------------------------------------------------------
def scaled(net):
    """A pipeline that ends in a net."""
    return make_pipeline(StandardScaler(), net)


@pytest.mark.parametrize("wrap", [lambda net: net, scaled], ids=["net", "pipeline"])
def test_a_trained_instance_of_a_module_is_not_refitted(wrap):
    x, y = X.numpy(), Y.numpy()
    estimator = wrap(net_of(Base())).fit(x, y)
    with pytest.raises(ValueError, match=r"instance of a module as module.*module__"):
        generalization_bound(estimator, x, y, n_splits=2)
    with pytest.raises(ValueError, match="instance of a module"):
        KDERepresentativeness(estimator, refit="estimator", n_splits=2).fit(x, y)
    assert generalization_bound(estimator, x, y, n_splits=2, refit="head").bound
    assert generalization_bound(wrap(net_of(Base)).fit(x, y), x, y, n_splits=2).bound


@pytest.mark.filterwarnings("ignore:The score is NaN")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_class_that_only_a_test_split_has_does_not_end_a_search():
    x, y = make_classification(90, 5, n_informative=3, random_state=0)
    y[7] = 2
    scoring = {"accuracy": "accuracy", "relative_flatness": RelativeFlatnessScorer()}
    with pytest.warns(UserWarning, match="least populated class"):
        search = GridSearchCV(
            LogisticRegression(), {"C": [0.1, 1]}, cv=StratifiedKFold(3),
            error_score="raise", return_train_score=True, scoring=scoring,
            refit=FlattestWithin(0.05),
        ).fit(x, y)  # fmt: skip
    assert np.isfinite(search.cv_results_["mean_train_relative_flatness"]).all()
    assert np.isnan(search.cv_results_["mean_test_relative_flatness"]).all()
    model = LogisticRegression().fit(x[y < 2], y[y < 2])
    with pytest.warns(UserWarning, match=r"NaN.*unseen labels \[2\]"):
        assert np.isnan(RelativeFlatnessScorer()(model, x, y))


def test_a_search_without_a_choice_is_not_lost():
    x, y = make_classification(60, 5, random_state=0)
    search = GridSearchCV(
        LogisticRegression(), {"C": [0.1, 1]}, refit=FlattestWithin(0.05),
        scoring={"accuracy": "accuracy", "relative_flatness": RelativeFlatnessScorer()},
    )  # fmt: skip
    with pytest.raises(CannotChooseError, match="return_train_score=True") as caught:
        search.fit(x, y)
    assert len(caught.value.cv_results_["mean_test_accuracy"]) == 2


# ---------------------------------------------------------------------------
# Advice
# ---------------------------------------------------------------------------
def _pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    ("wrap", "advice", "follow"),
    [
        (nn.utils.weight_norm, "remove_weight_norm", nn.utils.remove_weight_norm),
        (nn.utils.spectral_norm, "remove_spectral_norm", nn.utils.remove_spectral_norm),
        (_pruned, 'prune.remove(layer, "weight")', lambda m: prune.remove(m, "weight")),
        (
            parametrizations.weight_norm,
            "remove_parametrizations",
            lambda m: nn.utils.parametrize.remove_parametrizations(m, "weight"),
        ),
    ],
)
def test_advice_on_computed_weights_can_be_followed(wrap, advice, follow):
    net = net_of(wrap(nn.Linear(5, 3)))
    net.partial_fit(X, Y)
    with pytest.raises(TypeError) as caught:
        hessian_max_eigenvalue(net, X, Y)
    assert advice in str(caught.value)
    kappa = relative_flatness(net, X, Y).value
    follow(net.module_)
    assert relative_flatness(net, X, Y).value == pytest.approx(kappa, rel=1e-5)
    assert hessian_max_eigenvalue(net, X, Y, random_state=0).value > 0


def test_a_frame_that_skorch_splits_by_type():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(30, 2)).astype("float32")
    frame = pd.DataFrame(numbers, columns=["a", "b"])
    frame["kind"] = pd.Categorical(rng.choice(list("xyz"), 30))
    y = np.arange(30) % 3

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 2)
            self.front, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, X, kind):
            joined = torch.cat([X, self.table(kind)], 1)
            return self.out(torch.tanh(self.front(joined)))

    model = make_pipeline(DataFrameTransformer(), net_of(Embedded, max_epochs=1))
    model.fit(frame, y)
    module = copy.deepcopy(model[-1].module_).double()
    inputs = (
        torch.tensor(numbers).double(),
        torch.tensor(frame["kind"].cat.codes.to_numpy()).long(),
    )

    def risk(w):
        out = torch.func.functional_call(module, {"front.weight": w}, inputs)
        return F.cross_entropy(out, torch.tensor(y))

    weight = module.front.weight.detach()
    hessian = torch.autograd.functional.hessian(risk, weight)
    found = relative_flatness(model, frame, y, layer="front").value
    assert found == pytest.approx(kappa_of(weight, hessian)[0], rel=1e-4)


# ---------------------------------------------------------------------------
# Ways from a module to its own parts that are no attributes
# ---------------------------------------------------------------------------
PLACES = {}


def _body():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def _patched():
    module = _body()
    whole = module.forward
    module.forward = lambda x, *, factor=2.0: factor * whole(x)
    return module


def _patched_by_names():
    # What a notebook does: the names are global.
    names = {"nn": nn, "_body": _body}
    exec(
        "module = _body()\n"
        "whole = module.forward\n"
        "def doubled(z): return 2 * z\n"
        "module.forward = lambda x: doubled(whole(x))",
        names,
    )
    return names["module"]


def _hooked():
    module = _body()
    last = module[2]

    def double(_, args, z):
        return z + F.linear(args[0], last.weight, last.bias)

    module[2].register_forward_hook(double)
    return module


class _Caller:
    """No module, but it holds one."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return self.module(x)


class _ThroughObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = _body()
        self.call = _Caller(self.body)

    def forward(self, x):
        return self.call(x)


class _ThroughGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = PLACES["body"] = _body()

    def forward(self, x):
        return PLACES["body"](x)


def _measured_net(module):
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=7
    ).initialize()
    net.module_.double()
    return net


@pytest.mark.parametrize("make", [_patched, _patched_by_names])
def test_a_patched_forward_is_measured_on_its_own_parts(make):
    X, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    module = make()

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = _body()

        def forward(self, x):
            return 2 * self.body(x)

    same = Doubled()
    same.body.load_state_dict(module.state_dict())
    same = _measured_net(same)
    net = _measured_net(module)
    for layer in ("0", "2"):
        for measure in (relative_flatness, hessian_trace):
            expected = measure(same, X, y, layer=f"body.{layer}").value
            found = measure(net, X, y, layer=layer).value
            assert found == pytest.approx(expected, rel=1e-9)
    assert not net.module_[0]._forward_hooks


def test_a_second_use_in_the_closure_of_a_hook_is_seen():
    X, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    net = _measured_net(_hooked())
    with pytest.raises(ValueError, match="used in another way"):
        relative_flatness(net, X, y, layer="2")
    weight = net.module_[2].weight

    def risk(w):
        h = torch.tanh(net.module_[0](X))
        return F.cross_entropy(2 * F.linear(h, w, net.module_[2].bias), y)

    hessian = torch.autograd.functional.hessian(risk, weight.detach())
    expected = float(torch.einsum("ijij->", hessian))
    assert hessian_trace(net, X, y, layer="2").value == pytest.approx(expected)


@pytest.mark.parametrize("kind", [_ThroughObject, _ThroughGlobal])
def test_parts_that_a_private_copy_cannot_reach_are_refused(kind):
    X, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    net = _measured_net(kind())
    for layer in ("body.0", "body.2", "all"):
        for measure in (relative_flatness, hessian_trace, sam_sharpness):
            if (measure, layer) == (relative_flatness, "all"):
                continue
            with pytest.raises(ValueError, match="to its own parts by another way"):
                measure(net, X, y, layer=layer)
