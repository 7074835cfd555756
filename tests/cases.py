"""One table of cases (models x losses x layers) for every route and every measure."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import nn

N = 11


def sequential(*modules):
    """Class of a module, as skorch wants it, from a factory of its children."""

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(*[make() for make in modules])

    return Net


def _mlp(activation):
    return sequential(
        lambda: nn.Linear(5, 6),
        activation,
        lambda: nn.Linear(6, 4),
        activation,
        lambda: nn.Linear(4, 3),
    )


class Mean(nn.Module):
    """Mean over the tokens or pixels that come after the channels."""

    def forward(self, x):
        return x.flatten(2).mean(2)


class TokenMean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Squeeze(nn.Module):
    def forward(self, x):
        return x.squeeze(-1)


class Recurrent(nn.Module):
    """One layer, called three times in a forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.inner(x))
        return self.head(x)


class Tied(nn.Module):
    """Two modules that share one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Skip(nn.Module):
    """Residual connections, functional calls, and an operation in place."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.outer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        h = self.inner(x)
        h.relu_()
        h = h + x
        x = self.outer(h)
        x += h
        return self.head(torch.relu_(x))


class Attention(nn.Module):
    """Hand-written self-attention with token-wise projections."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.key = nn.Linear(4, 4)
        self.value = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        h = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(h.mean(1))


class Encoder(nn.Module):
    """PyTorch's own transformer block."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.block(x).mean(1))


class TwoInputs(nn.Module):
    """Inputs by keyword."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.head(torch.relu(self.left(left) + self.right(right)))


class Dense(nn.Module):
    """A class for each of several positions, (n, classes, positions)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.head = nn.Conv1d(4, 3, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)))


@dataclass
class Case:
    """A net, its data, and the criterion on the raw outputs.

    `criterion` is what skorch gets; `risk_criterion` is the same on logits.
    """

    id: str
    module: Any
    shape: tuple
    layers: tuple
    criterion: Any = nn.CrossEntropyLoss
    options: dict = field(default_factory=dict)
    targets: str = "classes"
    net: Any = NeuralNetClassifier
    risk_criterion: Any = None
    smooth: bool = False
    n_classes: int = 3

    def data(self, dtype=torch.float64, n=N):
        rng = np.random.default_rng(len(self.id) + 7)
        if isinstance(self.shape, dict):
            X = {
                key: torch.tensor(rng.normal(size=(n, *shape)), dtype=dtype)
                for key, shape in self.shape.items()
            }
        else:
            X = torch.tensor(rng.normal(size=(n, *self.shape)), dtype=dtype)
        return X, self._targets(rng, n, dtype)

    def _targets(self, rng, n, dtype):
        k = self.n_classes
        if self.targets == "classes":
            return torch.tensor(rng.integers(0, k, n))
        if self.targets == "dense":
            return torch.tensor(rng.integers(0, k, (n, 4)))
        if self.targets == "probabilities":
            return torch.tensor(rng.dirichlet(np.ones(k), n), dtype=dtype)
        if self.targets == "binary":
            return torch.tensor(rng.integers(0, 2, n), dtype=dtype)
        if self.targets == "multilabel":
            return torch.tensor(rng.integers(0, 2, (n, k)), dtype=dtype)
        return torch.tensor(2 * rng.normal(size=(n, k)), dtype=dtype)

    def fitted(self, dtype=torch.float64, batch_size=4):
        """An initialized net with reproducible weights of order one."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = self.net(
                self.module,
                criterion=self.criterion,
                batch_size=batch_size,
                train_split=None,
                **{f"criterion__{k}": v for k, v in self.options.items()},
            ).initialize()
            for name, parameter in net.module_.named_parameters():
                if "weight" in name:
                    parameter.data.mul_(1.5)
        for module in net.module_.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(generator=torch.manual_seed(1))
                module.running_var.uniform_(0.5, 2.0)
        net.module_.to(dtype)
        net.criterion_.to(dtype)
        return net

    def risk(self, net, X, y):
        """The empirical risk, by torch's own criterion on the logits."""
        criterion = self.criterion_of(net)

        def risk(call):
            outputs = call(**X) if isinstance(X, dict) else call(X)
            return criterion(outputs, y)

        return risk

    def criterion_of(self, net):
        """torch's own criterion on the logits."""
        net.module_.eval()
        if self.risk_criterion is None:
            return net.criterion_
        return self.risk_criterion(**self.options)

    def logits_module(self, net):
        """The module without its final link, for the oracle."""
        module = net.module_
        if self.risk_criterion is None:
            return module
        return nn.Sequential(*list(module)[:-1])


RELU_LAYERS = ("0", "2", "4")
CASES = [
    Case("relu", _mlp(nn.ReLU), (5,), RELU_LAYERS),
    Case("leaky", _mlp(lambda: nn.LeakyReLU(0.2)), (5,), ("2",)),
    Case("tanh", _mlp(nn.Tanh), (5,), RELU_LAYERS, smooth=True),
    Case("gelu", _mlp(nn.GELU), (5,), ("0",), smooth=True),
    Case(
        "inplace",
        _mlp(lambda: nn.ReLU(inplace=True)),
        (5,),
        RELU_LAYERS,
    ),
    Case(
        "weights",
        _mlp(nn.ReLU),
        (5,),
        ("2", "4"),
        options={
            "weight": torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64),
            "label_smoothing": 0.2,
        },
    ),
    Case(
        "ignore", _mlp(nn.Tanh), (5,), ("2",), options={"ignore_index": 1}, smooth=True
    ),
    Case(
        "sum",
        _mlp(nn.Tanh),
        (5,),
        ("2", "4"),
        options={"reduction": "sum"},
        smooth=True,
    ),
    Case(
        "probabilities",
        _mlp(nn.ReLU),
        (5,),
        ("0", "4"),
        targets="probabilities",
        net=NeuralNet,
    ),
    Case(
        "nll",
        sequential(
            lambda: nn.Linear(5, 4),
            nn.ReLU,
            lambda: nn.Linear(4, 3),
            lambda: nn.Softmax(-1),
        ),
        (5,),
        ("0", "2"),
        criterion=nn.NLLLoss,
        risk_criterion=nn.CrossEntropyLoss,
    ),
    Case(
        "binary",
        sequential(lambda: nn.Linear(5, 4), nn.Tanh, lambda: nn.Linear(4, 1), Squeeze),
        (5,),
        ("0", "2"),
        criterion=nn.BCEWithLogitsLoss,
        targets="binary",
        net=NeuralNetBinaryClassifier,
        smooth=True,
    ),
    Case(
        "multilabel",
        _mlp(nn.ReLU),
        (5,),
        ("0", "4"),
        criterion=nn.BCEWithLogitsLoss,
        options={"pos_weight": torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)},
        targets="multilabel",
        net=NeuralNet,
    ),
    Case(
        "mse",
        _mlp(nn.Softplus),
        (5,),
        RELU_LAYERS,
        nn.MSELoss,
        targets="real",
        net=NeuralNet,
        smooth=True,
    ),
    Case(
        "huber",
        _mlp(nn.Tanh),
        (5,),
        ("2", "4"),
        nn.HuberLoss,
        {"delta": 0.7},
        targets="real",
        net=NeuralNet,
        smooth=True,
    ),
    Case(
        "soft_margin",
        _mlp(nn.Tanh),
        (5,),
        ("0", "4"),
        nn.MultiLabelSoftMarginLoss,
        targets="multilabel",
        net=NeuralNet,
        smooth=True,
    ),
    Case(
        "batch_norm",
        sequential(
            lambda: nn.Linear(5, 6),
            lambda: nn.BatchNorm1d(6),
            nn.ReLU,
            lambda: nn.Dropout(0.5),
            lambda: nn.Linear(6, 3),
        ),
        (5,),
        ("0", "4"),
    ),
    Case(
        "conv2d",
        sequential(
            lambda: nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU,
            lambda: nn.MaxPool2d(2),
            lambda: nn.Conv2d(3, 4, (2, 3), stride=(2, 1), padding=(1, 2)),
            nn.ReLU,
            nn.Flatten,
            lambda: nn.Linear(40, 3),
        ),
        (2, 6, 6),
        ("0", "3", "6"),
    ),
    Case(
        "conv2d_same",
        sequential(
            lambda: nn.Conv2d(
                2, 3, (2, 3), padding="same", dilation=(1, 2), padding_mode="reflect"
            ),
            nn.Tanh,
            lambda: nn.Conv2d(3, 3, 3, padding="valid"),
            nn.Tanh,
            Mean,
        ),
        (2, 5, 6),
        ("0", "2"),
        smooth=True,
    ),
    Case(
        "conv1d",
        sequential(
            lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, padding_mode="circular"),
            nn.GELU,
            Mean,
            lambda: nn.Linear(4, 3),
        ),
        (2, 7),
        ("0", "3"),
        smooth=True,
    ),
    Case(
        "conv3d",
        sequential(lambda: nn.Conv3d(1, 3, 2, dilation=(1, 2, 1)), nn.ReLU, Mean),
        (1, 3, 4, 3),
        ("0",),
    ),
    Case(
        "tokens",
        sequential(
            lambda: nn.Linear(4, 5), nn.Tanh, TokenMean, lambda: nn.Linear(5, 3)
        ),
        (3, 4),
        ("0", "3"),
        smooth=True,
    ),
    Case(
        "many_tokens",
        sequential(lambda: nn.Linear(2, 3), nn.ReLU, TokenMean),
        (9, 2),
        ("0",),
    ),
    Case("recurrent", Recurrent, (5,), ("inner", "head"), smooth=True),
    Case("tied", Tied, (5,), ("first", "head")),
    Case("skip", Skip, (5,), ("inner", "outer", "head")),
    Case("attention", Attention, (3, 4), ("query", "value", "head"), smooth=True),
    Case(
        "encoder",
        Encoder,
        (3, 4),
        ("block.self_attn.out_proj", "block.linear1", "block.linear2"),
        smooth=True,
    ),
    Case(
        "dict",
        TwoInputs,
        {"left": (3,), "right": (2,)},
        ("left", "right", "head"),
        net=NeuralNet,
    ),
    Case(
        "dense",
        Dense,
        (2, 4),
        ("conv", "head"),
        targets="dense",
        net=NeuralNet,
        smooth=True,
    ),
]
