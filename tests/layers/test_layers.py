"""Names, unfolding and capture of weight layers."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import (
    layerwise_relative_flatness,
    list_layers,
    relative_flatness,
)
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.kinds import LAYER_KINDS, layer_kind
from sklearn_relflat._layers.layers import find_layer, unsupported_layers, weight_layers
from sklearn_relflat._models.view import as_torch_model
from tests.cases import CASES, Encoder, sequential

BY_ID = {case.id: case for case in CASES}


def net_of(module):
    return NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss).initialize()


def view_of(module):
    return as_torch_model(net_of(module))


# ---------------------------------------------------------------------------
# Unfolding
# ---------------------------------------------------------------------------
CONVOLUTIONS = [
    nn.Conv1d(2, 3, 3, stride=2, padding=1),
    nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", dilation=2),
    nn.Conv1d(2, 3, 4, padding="same"),
    nn.Conv2d(2, 3, 3),
    nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="replicate"),
    nn.Conv2d(2, 3, 2, padding="valid"),
    nn.Conv3d(2, 3, 2, padding=1, stride=(1, 2, 1)),
    nn.Conv3d(2, 3, (2, 3, 2), padding="same"),
]


# torch warns that an even kernel with padding "same" copies its input.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_a_convolution_is_its_kernel_times_its_columns(conv):
    dims = len(conv.kernel_size)
    x = torch.randn(4, 2, *(7, 6, 5)[:dims])
    kind = layer_kind(conv)
    columns = kind.columns(conv, x)
    z = conv(x)
    rows = conv.weight.flatten(1) @ columns + conv.bias[:, None]
    torch.testing.assert_close(rows, kind.rows(conv, z))
    torch.testing.assert_close(kind.unrows(conv, kind.rows(conv, z), z), z)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (4, 2, 3, 5)])
def test_a_linear_layer_is_its_weight_times_its_columns(shape):
    linear = nn.Linear(5, 2)
    x = torch.randn(shape)
    kind = layer_kind(linear)
    rows = linear.weight @ kind.columns(linear, x) + linear.bias[:, None]
    z = linear(x)
    torch.testing.assert_close(rows, kind.rows(linear, z))
    torch.testing.assert_close(kind.unrows(linear, rows, z), z)


# ---------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------
def test_names_of_scikit_learn_models():
    X, y = load_iris(return_X_y=True)
    assert list_layers(LogisticRegression(max_iter=500).fit(X, y)) == ["coef"]
    mlp = MLPClassifier((4, 3), solver="lbfgs", max_iter=3000, random_state=0)
    assert list_layers(mlp.fit(X, y)) == ["coefs.0", "coefs.1", "coefs.2"]


def test_tied_weights_are_one_layer_with_two_names():
    view = view_of(BY_ID["tied"].module)
    assert list(weight_layers(view)) == ["first", "head"]
    layer = find_layer(view, "second")
    assert layer.name == "first"
    assert layer.aliases == ("first", "second")
    X, y = BY_ID["tied"].data(torch.float32)
    net = net_of(BY_ID["tied"].module)
    assert relative_flatness(net, X, y, layer="second").layer == "first"


def test_compiled_modules_keep_their_names():
    net = net_of(BY_ID["relu"].module)
    names = list_layers(net)
    net.module_ = torch.compile(net.module_, backend="eager")
    assert list_layers(net) == names


def test_a_parametrized_weight_is_measured_as_it_acts():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    expected = relative_flatness(net, X, y, layer="2").value
    nn.utils.parametrizations.weight_norm(net.module_[2])
    assert list_layers(net) == ["0", "2", "4"]
    result = relative_flatness(net, X, y, layer="2")
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(4, 4, 3, groups=2), "groups=2"),
        (lambda: nn.ConvTranspose2d(4, 4, 3), "ConvTranspose2d is not a supported"),
        (lambda: nn.Embedding(4, 4), "Embedding is not a supported"),
        (lambda: nn.Bilinear(4, 4, 3), "Bilinear is not a supported"),
        (lambda: nn.LSTM(4, 4), "LSTM is not a supported .* recurrent weights"),
        (lambda: nn.GRUCell(4, 4), "GRUCell is not a supported .* recurrent weights"),
    ],
)
def test_other_layers_are_refused_by_name(make, message):
    module = sequential(lambda: nn.Linear(4, 4), make)
    view = view_of(module)
    assert list(weight_layers(view)) == ["0"]
    assert list(unsupported_layers(view)) == ["1"]
    with pytest.raises(TypeError, match=rf"'1'.*{message}.*choose one of \['0'\]"):
        find_layer(view, "1")


def test_no_layer_is_skipped_in_silence():
    net = net_of(
        sequential(
            lambda: nn.Conv2d(2, 4, 3, groups=2),
            nn.ReLU,
            nn.Flatten,
            lambda: nn.Linear(16, 3),
        )
    )
    X, y = torch.randn(6, 2, 4, 4), torch.arange(6) % 3
    table = layerwise_relative_flatness(net, X, y)
    assert list(table) == ["3"]
    assert list(table.not_measured) == ["0"]
    assert "groups=2" in table.not_measured["0"]
    assert "not measured" in repr(table)
    assert "groups=2" in repr(table)
    assert pickle.loads(pickle.dumps(table)).not_measured == table.not_measured


def test_the_input_projection_of_attention_is_refused_and_its_output_is_not():
    case = BY_ID["encoder"]
    net, (X, y) = case.fitted(), case.data()
    assert "block.self_attn.out_proj" in list_layers(net)
    with pytest.raises(TypeError, match="packed input projection"):
        relative_flatness(net, X, y, layer="block.self_attn")
    table = layerwise_relative_flatness(net, X, y)
    assert "packed input projection" in table.not_measured["block.self_attn"]
    assert "block.self_attn.out_proj" in table


def test_a_model_without_weight_layers():
    net = net_of(sequential(lambda: nn.BatchNorm1d(3)))
    with pytest.raises(TypeError, match="no weight layer that can be measured"):
        relative_flatness(net, torch.randn(6, 3), torch.arange(6) % 3)


def test_kinds_are_a_table():
    assert set(LAYER_KINDS) == {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}


# ---------------------------------------------------------------------------
# Capture
# ---------------------------------------------------------------------------
class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(5, 3)
        self.unused = nn.Linear(5, 3)

    def forward(self, x):
        return self.used(x)


class TokensFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(4, 3)

    def forward(self, x):
        return self.tokens(x.transpose(0, 1)).mean(0)


def test_a_layer_that_is_not_called():
    X, y = BY_ID["relu"].data(torch.float32)
    with pytest.raises(
        ValueError, match=r"'unused' .* it was not called in the forward"
    ):
        relative_flatness(net_of(Unused), X, y, layer="unused")
    assert relative_flatness(net_of(Unused), X, y).layer == "used"


def test_the_batch_has_to_come_first():
    X, y = torch.randn(6, 3, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"'tokens'.* have the . samples of the batch"):
        relative_flatness(net_of(TokensFirst), X, y, layer="tokens")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("differentiable", [False, True])
def test_capture_changes_no_output_and_leaves_no_hook(case, differentiable):
    net, (X, _) = case.fitted(), case.data()
    view = as_torch_model(net)
    layers = {name: find_layer(view, name) for name in case.layers}
    with view.measuring():
        with torch.no_grad():
            expected = view.outputs(X)
        with capture(view, layers, differentiable=differentiable) as seen:
            outputs = view.outputs(X)
            for name, layer in layers.items():
                calls = seen[name]
                if not differentiable:
                    continue
                for call in calls:
                    rows = layer.weight @ call.columns()
                    if call.module.bias is not None:
                        rows = rows + call.module.bias.detach()[:, None]
                    z = call.rows(call.preactivations)
                    torch.testing.assert_close(rows, z.detach())
    torch.testing.assert_close(outputs.detach(), expected)
    assert outputs.requires_grad is differentiable
    for module in net.module_.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_tokens_first_inside_attention():
    case = BY_ID["encoder"]
    net, (X, _) = case.fitted(), case.data()
    view = as_torch_model(net)
    name = "block.self_attn.out_proj"
    layers = {name: find_layer(view, name)}
    with view.measuring(), capture(view, layers, differentiable=False) as seen:
        view.outputs(X)
        assert seen[name][0].n_samples == len(X)
        assert seen[name][0].columns().shape == (len(X), 4, 3)
    assert isinstance(net.module_, Encoder)


def test_features_are_those_of_a_forward_pre_hook():
    case = BY_ID["relu"]
    net, (X, _) = case.fitted(), case.data()
    view = as_torch_model(net)
    layer = find_layer(view, "2")
    with view.measuring(), capture(view, {"2": layer}, differentiable=False) as seen:
        view.outputs(X)
        columns = seen["2"][0].columns()[:, :, 0].numpy()
    with torch.no_grad():
        expected = net.module_[1](net.module_[0](X)).numpy()
    np.testing.assert_array_equal(columns, expected)
