"""Distance to initialization against plain sums, for every way to name the start."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_relflat import list_layers
from sklearn_relflat._measures.distance_to_initialization import (
    distance_to_initialization,
)
from tests.cases import CASES, Case

BY_ID = {case.id: case for case in CASES}


def moved(case):
    """A net before and after its weights have moved."""
    before, after = case.fitted(), case.fitted()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in after.module_.parameters():
            p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return before, after


@pytest.mark.parametrize("name", ["relu", "conv2d", "tied", "batch_norm", "attention"])
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_plain_sums(name, norm):
    case = BY_ID[name]
    (before, after), (X, _) = moved(case), case.data()
    old, new = (
        dict(net.module_.named_parameters(remove_duplicate=False))
        for net in (before, after)
    )
    values = {}
    for layer in list_layers(after):
        step = (new[f"{layer}.weight"] - old[f"{layer}.weight"]).detach().flatten(1)
        s = torch.linalg.svdvals(step)
        values[layer] = float(s[0] ** 2 if norm == "spectral" else s.square().sum())
    state = copy.deepcopy(before.module_.state_dict())
    arrays = {key: value.numpy() for key, value in state.items()}
    for initial in (before, before.module_, state, arrays):
        options = {"initial": initial, "norm": norm}
        found = distance_to_initialization(after, X, layer="all", **options)
        assert found.value == pytest.approx(sum(values.values()), rel=1e-9)
        layer = list_layers(after)[0]
        found = distance_to_initialization(after, X, layer=layer, **options)
        assert found.value == pytest.approx(values[layer], rel=1e-9)
        assert found.mean_loss is None


def test_scikit_learn_models_and_pipelines():
    X, y = load_iris(return_X_y=True)
    start = MLPClassifier((4,), max_iter=1, random_state=0, warm_start=True)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        start.fit(X, y)
    end = copy.deepcopy(start).set_params(max_iter=20)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        end.fit(X, y)
    pairs = zip(start.coefs_, end.coefs_, strict=True)
    expected = sum(np.square(b - a).sum() for a, b in pairs)
    found = distance_to_initialization(end, X, layer="all", initial=start).value
    assert found == pytest.approx(expected, rel=1e-9)
    pipeline = make_pipeline(StandardScaler().fit(X), end)
    found = distance_to_initialization(pipeline, X, layer="all", initial=start).value
    assert found == pytest.approx(expected, rel=1e-9)


def test_no_distance_to_itself():
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=9000).fit(X, y)
    assert distance_to_initialization(model, X, initial=model).value == 0.0


def test_a_compiled_prefix_does_not_matter():
    case = BY_ID["relu"]
    (before, after), (X, _) = moved(case), case.data()
    state = before.module_.state_dict()
    prefixed = {f"_orig_mod.{key}": value for key, value in state.items()}
    values = [
        distance_to_initialization(after, X, layer="all", initial=initial).value
        for initial in (state, prefixed)
    ]
    assert values[0] == values[1] > 0


def test_bad_input():
    case = BY_ID["relu"]
    (before, after), (X, _) = moved(case), case.data()
    state = dict(before.module_.state_dict())
    with pytest.raises(ValueError, match=r"norm to be one of .* got 'l1'"):
        distance_to_initialization(after, X, initial=before, norm="l1")
    with pytest.raises(
        ValueError, match=r"'4\.weight' of shape \(3, 4\).*another model"
    ):
        distance_to_initialization(after, X, initial=state | {"4.weight": np.ones(3)})
    del state["4.weight"]
    with pytest.raises(ValueError, match=r"have the weight '4\.weight', got \['0\.wei"):
        distance_to_initialization(after, X, initial=state)
    with pytest.raises(TypeError, match="Expected a supported model, got 'int'"):
        distance_to_initialization(after, X, initial=3)


def test_refuses_computed_weights():
    class Parametrized(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(5, 3))
            nn.utils.parametrizations.weight_norm(self[0])

    case = Case("parametrized", Parametrized, (5,), ("0",))
    net, (X, _) = case.fitted(), case.data()
    with pytest.raises(TypeError, match="computed from other parameters"):
        distance_to_initialization(net, X, initial=net)
