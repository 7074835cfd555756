"""Every route of relative flatness against the brute-force Hessian."""

import functools

import numpy as np
import pytest
import torch
from tests.cases import CASES
from tests.oracles import kappa_max, kappa_trace, layer_hessian, normalized

from sklearn_relflat import layerwise_relative_flatness, relative_flatness

PAIRS = [
    pytest.param(case, layer, id=f"{case.id}-{layer}")
    for case in CASES
    for layer in case.layers
]
cases_and_layers = pytest.mark.parametrize(("case", "layer"), PAIRS)


@functools.cache
def reference(case_id, layer):
    """Weight and Hessian of a case, float64."""
    case = next(case for case in CASES if case.id == case_id)
    net = case.fitted()
    X, y = case.data()
    module = case.logits_module(net)
    hessian = layer_hessian(module, layer, case.risk(net, X, y))
    weight = dict(module.named_parameters(remove_duplicate=False))[f"{layer}.weight"]
    return weight.detach(), hessian


def close(value, expected, rtol=1e-9):
    return abs(value - expected) <= rtol * abs(expected)


@pytest.mark.parametrize("method", ["auto", "exact"])
@cases_and_layers
def test_equals_definition(case, layer, method):
    weight, hessian = reference(case.id, layer)
    X, y = case.data()
    result = relative_flatness(case.fitted(), X, y, layer=layer, method=method)
    assert result.value == pytest.approx(kappa_trace(weight, hessian), rel=1e-9)
    assert result.stderr == 0.0
