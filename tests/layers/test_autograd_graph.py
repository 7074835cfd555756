"""Certificates read off the autograd graph, against second derivatives."""

import pytest
import torch
from torch import nn

from sklearn_relflat._layers.autograd_graph import (
    has_undefined_derivative,
    is_piecewise_linear,
)
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.layers import find_layer
from sklearn_relflat._models.view import as_torch_model
from tests.cases import CASES

LINEAR = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "hardtanh": nn.Hardtanh(),
    "relu6": nn.ReLU6(),
    "threshold": nn.Threshold(0.1, 20.0),
    "batch_norm": nn.BatchNorm1d(4).eval(),
    "dropout": nn.Dropout().eval(),
    "abs": torch.abs,
    "scale": lambda z: 3 * z / 2 - z + 1,
    "maximum": lambda z: torch.maximum(z, z.flip(1)),
    "reshape": lambda z: z.reshape(-1, 2, 2).transpose(1, 2).flatten(1),
    "pool": lambda z: nn.functional.max_pool2d(z.reshape(-1, 1, 2, 2), 2).flatten(1),
}
SMOOTH = {
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "square": lambda z: z * z,
    "gate": lambda z: z * z.relu(),
    "layer_norm": nn.LayerNorm(4),
    "batch_norm_in_training": nn.BatchNorm1d(4),
    "softmax": lambda z: z.softmax(1),
    "quotient": lambda z: 1 / (2 + z.abs()),
    "gram": lambda z: (z[:, :, None] @ z[:, None, :]).flatten(1),
}


def outputs_of(function):
    z = torch.randn(7, 4, requires_grad=True)
    hidden = function(z.clone())
    return hidden @ torch.randn(hidden.shape[1], 3), z


@pytest.mark.parametrize("name", LINEAR)
def test_piecewise_linear_operations_are_proven(name):
    outputs, z = outputs_of(LINEAR[name])
    assert is_piecewise_linear(outputs, [z])


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_operations_are_not(name):
    outputs, z = outputs_of(SMOOTH[name])
    assert not is_piecewise_linear(outputs, [z])


def test_what_lies_before_the_points_does_not_matter():
    x = torch.randn(5, 4, requires_grad=True)
    z = nn.Linear(4, 3)(x.tanh())
    assert is_piecewise_linear(z.relu(), [z])
    assert not is_piecewise_linear(z.relu(), [z, x])


def test_shifts_of_two_points_that_are_multiplied():
    x = torch.randn(5, 4, requires_grad=True)
    a, b = 2 * x, 3 * x
    assert is_piecewise_linear(a + b, [a, b])
    assert not is_piecewise_linear(a * b, [a, b])


@pytest.mark.parametrize(
    ("case", "layer"),
    [
        pytest.param(case, layer, id=f"{case.id}-{layer}")
        for case in CASES
        for layer in case.layers
    ],
)
def test_a_proof_implies_that_the_residual_vanishes(case, layer):
    net, (X, _) = case.fitted(), case.data()
    view = as_torch_model(net)
    found = {layer: find_layer(view, layer)}
    with view.measuring(), capture(view, found, differentiable=True) as seen:
        outputs = view.outputs(X)
        points = [call.preactivations for call in seen[layer]]
        proven = is_piecewise_linear(outputs, points)
        gradients = torch.autograd.grad(
            outputs.sin().detach().mul(outputs).sum(),
            points,
            create_graph=True,
        )
        second = [
            torch.autograd.grad(
                g,
                points,
                torch.randn_like(g),
                retain_graph=True,
                materialize_grads=True,
            )
            for g in gradients
            if g.requires_grad
        ]
    vanishes = not any(bool(part.any()) for parts in second for part in parts)
    assert not proven or vanishes
    # The proof is also found where it should be: nothing smooth, one application.
    if not case.smooth and len(points) == 1:
        assert proven


def test_once_differentiable_functions_are_seen():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient * ctx.saved_tensors[0]

    x = torch.randn(3, requires_grad=True)
    cotangent = torch.ones(3, requires_grad=True)
    (blocked,) = torch.autograd.grad(Square.apply(x), x, cotangent, create_graph=True)
    (fine,) = torch.autograd.grad(x.square(), x, cotangent, create_graph=True)
    assert has_undefined_derivative([fine, blocked])
    assert not has_undefined_derivative([fine, fine.detach()])
