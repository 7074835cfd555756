"""compare_measures: the same numbers as one by one, from fewer passes."""

import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale

from sklearn_relflat._measures.by_name import MEASURES, NEEDED_OPTIONS
from sklearn_relflat._measures.compare import compare_measures
from sklearn_relflat._results.tables import RowList
from tests.cases import CASES

BY_ID = {case.id: case for case in CASES}
FEW_DRAWS = {"n_draws": 2}
# Nets that are not trained are right about one of the samples.
LARGEST_MARGIN = {"quantile": 0.99}
AUTOMATIC = [name for name in MEASURES if name not in NEEDED_OPTIONS]


def is_sampled(name):
    return name.startswith(("pac_bayes", "average"))


def cheap(name):
    """Options that make a measure cheap and applicable."""
    if name.startswith("inverse_margin"):
        return LARGEST_MARGIN
    return FEW_DRAWS if is_sampled(name) else {}


def options(case):
    """Options of all measures that a case has."""
    names = [name for name in AUTOMATIC if name != "path_norm" or case not in SMOOTH]
    return {name: cheap(name) for name in names}


SMOOTH = ("tanh", "sum")


@pytest.mark.parametrize("name", ["relu", "tanh", "conv2d", "sum", "batch_norm"])
def test_values_are_those_of_single_calls(name):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    chosen = options(name) | {"distance_to_initialization": {"initial": net}}
    table = compare_measures(net, X, y, measures=chosen, random_state=0)
    assert isinstance(table, pd.DataFrame)
    assert set(table["measure"]) == set(chosen)
    for row in table.itertuples():
        more = dict(chosen[row.measure])
        if is_sampled(row.measure):
            more["random_state"] = 0
        single = MEASURES[row.measure](net, X, y, layer=row.layer, **more)
        assert row.value == pytest.approx(single.value, rel=1e-6), row
        assert row.stderr == pytest.approx(single.stderr, rel=1e-6), row


def test_rows():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    table = compare_measures(net, X, y, measures=options("relu"), random_state=0)
    layers = table.groupby("measure")["layer"].apply(list).to_dict()
    each = ["0", "2", "4"]
    for measure in (
        "relative_flatness",
        "relative_flatness_std",
        "class_distance_normalized_variance",
    ):
        assert layers[measure] == each
    for measure in ("hessian_trace", "weight_norm"):
        assert layers[measure] == [*each, "all"]
    for measure in (
        "fisher_rao_norm",
        "asam_sharpness",
        "hessian_max_eigenvalue",
        "inverse_margin_spectral",
        "path_norm",
    ):
        assert layers[measure] == ["all"]
    trace = table[table["measure"] == "hessian_trace"]["value"].to_numpy()
    assert trace[:3].sum() == pytest.approx(trace[3], rel=1e-12)


def test_one_pass_for_curvature():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(batch_size=1), case.data()
    names = ["relative_flatness", "hessian_trace", "weight_norm", "fisher_rao_norm"]
    table = compare_measures(net, X, y, measures=names)
    shared = table[table["measure"].isin(names[:2])]
    assert shared["evaluation"].nunique() == 1
    assert shared["passes"].tolist() == pytest.approx([1.0] * len(shared))
    cost = table.drop_duplicates("evaluation")
    assert cost["passes"].sum() == pytest.approx(2.0)
    assert (cost["seconds"] > 0).all()
    # The standard deviations of the features take one more.
    names = [*names[:2], "relative_flatness_std"]
    table = compare_measures(net, X, y, measures=names)
    assert table["evaluation"].nunique() == 1
    assert table["passes"][0] == pytest.approx(2.0)


def test_output_layer_in_closed_form():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    names = ["relative_flatness", "hessian_trace"]
    table = compare_measures(net, X, y, layers=["4"], measures=names)
    assert table["method"].tolist() == ["closed_form"] * 2
    table = compare_measures(net, X, y, layers=["2", "4"], measures=names)
    assert table["method"].tolist() == ["exact"] * 4


def test_layers_by_name():
    case = BY_ID["tied"]
    net, (X, y) = case.fitted(), case.data()
    names = ["relative_flatness", "hessian_trace", "sam_sharpness"]
    table = compare_measures(net, X, y, layers=["second", "all"], measures=names)
    assert table["layer"].tolist() == ["first", "first", "all", "first", "all"]
    assert table["measure"].tolist() == [
        "relative_flatness",
        *["hessian_trace"] * 2,
        *["sam_sharpness"] * 2,
    ]


def test_options():
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=150)
    table = compare_measures(
        net,
        X,
        y,
        layers=["2"],
        measures={
            "relative_flatness": {"method": "sampled"},
            "hessian_trace": {},
            "sam_sharpness": {"rho": 0.5},
        },
        random_state=0,
    )
    assert table["method"].tolist() == ["sampled", "exact", "one_step"]
    assert table["evaluation"].tolist() == [0, 1, 2]
    assert (table["stderr"] > 0).tolist() == [True, False, False]
    expected = MEASURES["sam_sharpness"](net, X, y, layer="2", rho=0.5).value
    assert table["value"][2] == pytest.approx(expected)


def test_models_without_accuracy():
    """By default without the measure that needs it; asked for, it says why not."""
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    table = compare_measures(model, X, y)
    of_classes = ("pac_bayes", "inverse_margin", "class_distance")
    assert set(table["measure"]) == {
        name for name in AUTOMATIC if not name.startswith(of_classes)
    }
    assert set(table["layer"]) == {"coef"}
    with pytest.raises(ValueError, match="Expected a classifier"):
        compare_measures(model, X, y, measures=["pac_bayes_flatness"])
    by_loss = {"pac_bayes_flatness": {"metric": "loss", "drop": 100.0}}
    assert compare_measures(model, X, y, measures=by_loss)["value"][0] > 0


def test_what_a_model_does_not_have_is_left_out():
    """By default it is, with the reason; asked for, it is an error."""
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(), case.data()
    table = compare_measures(net, X, y, random_state=0)
    reasons = table.attrs["not_measured"]
    missing = {"path_norm", *[k for k in AUTOMATIC if k.startswith("inverse_margin")]}
    assert set(table["measure"]) == set(AUTOMATIC) - missing
    assert set(reasons) == {f"{name} of all" for name in missing}
    assert "positive margin" in reasons["inverse_margin of all"]
    assert "positively homogeneous" in reasons["path_norm of all"]
    for name in missing:
        with pytest.raises(ValueError, match=r"Expected a .*positive"):
            compare_measures(net, X, y, measures=[name])


def test_needed_options():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    name = "distance_to_initialization"
    with pytest.raises(ValueError, match=r"option 'initial' of 'distance.*Pass measur"):
        compare_measures(net, X, y, measures=[name])
    before = {k: 0 * v for k, v in net.module_.state_dict().items()}
    table = compare_measures(
        net, X, y, measures={name: {"initial": before}, "weight_norm": {}}
    )
    assert table["layer"].tolist() == ["0", "2", "4", "all"] * 2
    values = table["value"].to_numpy()
    np.testing.assert_allclose(values[:4], values[4:], rtol=1e-12)


def test_paths_go_through_all_layers():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    names = ["weight_norm", "path_norm"]
    table = compare_measures(net, X, y, layers=["2"], measures=names)
    assert table["measure"].tolist() == ["weight_norm"]
    table = compare_measures(net, X, y, layers=["2", "all"], measures=names)
    assert table["layer"].tolist() == ["2", "all", "all"]


def test_loss_and_sample_weight():
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    mlp = MLPClassifier((4,), solver="lbfgs", max_iter=500, random_state=1).fit(X, y)
    kept = y != 1
    names = ["relative_flatness", "hessian_trace", "fisher_rao_norm", "sam_sharpness"]
    weighted = compare_measures(
        mlp, X, y, measures=names, loss="squared_error", sample_weight=kept
    )
    fewer = compare_measures(
        mlp, X[kept], y[kept], measures=names, loss="squared_error"
    )
    np.testing.assert_allclose(weighted["value"], fewer["value"], rtol=1e-9)


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    case = BY_ID["relu"]
    table = compare_measures(case.fitted(), *case.data(), measures=["weight_norm"])
    assert isinstance(table, RowList)
    assert table.column("layer") == ["0", "2", "4", "all"]
    lines = repr(table).splitlines()
    assert lines[0].split()[:3] == ["measure", "layer", "value"]
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert repr(RowList()) == "an empty table"


def test_bad_input():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    with pytest.raises(ValueError, match=r"some of .* got \['flatness'\]"):
        compare_measures(net, X, y, measures=["flatness"])
    with pytest.raises(TypeError, match=r"Pass \['weight_norm'\]"):
        compare_measures(net, X, y, measures="weight_norm")
    with pytest.raises(TypeError, match=r"got the string '4'. Pass \['4'\]"):
        compare_measures(net, X, y, layers="4")
    with pytest.raises(ValueError, match=r"options of 'hessian_trace' .*'per_sample'"):
        compare_measures(net, X, y, measures={"hessian_trace": {"per_sample": True}})
    with pytest.raises(ValueError, match=r"'9' .* does not exist"):
        compare_measures(net, X, y, layers=["9"])
