"""One random case of the property: the value of brute force, or a refusal by name."""

from __future__ import annotations

import copy
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skorch import NeuralNet
from torch import nn

from sklearn_relflat import relative_flatness
from tests.oracles import normalized, scales
from tests.trust.brute_force import hessian_of, kappa_of, plain_attention, risk_of
from tests.trust.modules import BREAKING, HARMLESS, NAMES, Case, oracle_of


class Quartic(nn.Module):
    """A criterion that nobody has heard of."""

    def forward(self, outputs, y):
        return ((outputs - y) ** 4 + outputs.square()).mean()


class Focal(nn.CrossEntropyLoss):
    """Its `reduction` says something else than what it returns."""

    def __init__(self):
        super().__init__(reduction="none")

    def forward(self, outputs, y):
        ce = super().forward(outputs, y)
        return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


class BatchContrast(nn.Module):
    """A criterion that is no mean over samples."""

    def forward(self, outputs, y):
        return (outputs - outputs.mean(0)).square().mean() + outputs.square().mean()


class Penalized(NeuralNet):
    """A net that trains with more than its criterion."""

    def get_loss(self, y_pred, y_true, *args, **kwargs):
        loss = super().get_loss(y_pred, y_true, *args, **kwargs)
        return loss + 0.3 * y_pred.square().mean()


@dataclass
class Trial:
    """Everything that a seed decides."""

    seed: int
    name: str
    case: Case
    harmless: bool
    loss: str
    criterion: Any
    y: torch.Tensor
    X: torch.Tensor
    batch_size: int
    sample_weight: np.ndarray | None
    dtype: torch.dtype
    options: dict[str, Any]
    net_class: type = NeuralNet

    def __str__(self):
        weights = "no weights" if self.sample_weight is None else "weights"
        return (
            f"seed {self.seed}: {self.name}, layer {self.case.layer!r}, {self.loss}, "
            f"{len(self.X)} samples in batches of {self.batch_size}, {weights}, "
            f"{self.dtype}, {self.options}"
        )


def _losses(rng, n, outputs):
    """Losses that suit outputs, by name: criterion and targets."""
    labels_shape = (n, *outputs[1:])
    real = torch.tensor(rng.normal(size=(n, *outputs)))
    found = {
        "mse": (nn.MSELoss(), real),
        "mse sum": (nn.MSELoss(reduction="sum"), real),
        "huber": (nn.HuberLoss(delta=0.7), real),
        "poisson": (nn.PoissonNLLLoss(), torch.floor(real.abs() * 2)),
        "quartic": (Quartic(), real),
        "bce": (nn.BCEWithLogitsLoss(), (real > 0).double()),
    }
    if outputs:
        labels = torch.tensor(rng.integers(outputs[0], size=labels_shape))
        weight = torch.tensor(rng.uniform(0.2, 3.0, size=outputs[0]))
        found |= {
            "ce": (nn.CrossEntropyLoss(), labels),
            "ce weights": (nn.CrossEntropyLoss(weight), labels),
            "ce smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), labels),
            "ce sum": (nn.CrossEntropyLoss(reduction="sum"), labels),
        }
        if n > 1:
            ignored = labels.clone()
            ignored[0] = -100
            found["ce ignore"] = (nn.CrossEntropyLoss(), ignored)
        if len(outputs) == 1:
            found["focal"] = (Focal(), labels)
            found["contrast"] = (BatchContrast(), real)
            found["penalized"] = (nn.MSELoss(), real)
    return found


def make_trial(seed: int) -> Trial:
    """Draw a case."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    harmless = seed % 3 == 0
    kinds = HARMLESS if harmless else BREAKING
    build = kinds[int(rng.integers(len(kinds)))]
    case = build(rng)
    n = int(rng.integers(1, 13))
    if case.integers:
        X = torch.tensor(rng.integers(3, size=(n, *case.shape)))
    else:
        X = torch.tensor(1.2 * rng.normal(size=(n, *case.shape)))
    losses = _losses(rng, n, case.outputs)
    if harmless:
        losses.pop("contrast", None)
    loss = sorted(losses)[int(rng.integers(len(losses)))]
    criterion, y = losses[loss]
    weights = [
        None,
        rng.uniform(0.1, 2.0, size=n),
        np.r_[1.0, (rng.random(n) > 0.4).astype(float)][-n:],
        np.r_[1e4, rng.uniform(0.5, 1.0, size=n)][:n],
    ]
    sample_weight = weights[int(rng.integers(4))]
    if sample_weight is not None and not (sample_weight[1:] > 0).any():
        sample_weight = None  # nothing may be left where the first label is ignored
    dtype = torch.float64 if rng.random() < 0.75 else torch.float32
    options: dict[str, Any] = {"method": ["auto", "exact"][int(rng.integers(2))]}
    plain = harmless and sample_weight is None and dtype is torch.float64
    if plain and NAMES[id(build)] in ("mlp", "sequential", "residual", "tokens"):
        options["normalize"] = [None, "std"][int(rng.integers(2))]
    return Trial(
        seed, NAMES[id(build)], case, harmless, loss, criterion, y, X,
        [1, 2, 3, n][int(rng.integers(4))], sample_weight, dtype, options,
        Penalized if loss == "penalized" else NeuralNet,
    )  # fmt: skip


def _terms(trial: Trial):
    """Value and denominator of a sample's loss, from torch's own criterion."""
    criterion = copy.deepcopy(trial.criterion).double()

    def terms(outputs, i):
        y = trial.y[i : i + 1]
        y = y.double() if y.is_floating_point() else y
        if type(criterion) is nn.CrossEntropyLoss:
            summed = F.cross_entropy(
                outputs, y, weight=criterion.weight, reduction="sum",
                label_smoothing=criterion.label_smoothing,
            )  # fmt: skip
            kept = y[y != -100]
            ones = torch.ones(outputs.shape[1], dtype=torch.float64)
            mass = (ones if criterion.weight is None else criterion.weight)[kept].sum()
            return summed, mass
        value = criterion(outputs, y)
        if trial.loss == "penalized":
            value = value + 0.3 * outputs.square().mean()
        return value, torch.ones((), dtype=torch.float64)

    return terms


def expected(trial: Trial, layer: str) -> tuple[float, float]:
    """kappa by brute force, and the size of its terms."""
    module = oracle_of(trial.case)
    weight = dict(module.named_modules())[layer].weight
    weight.requires_grad_(True)
    X = trial.X.double() if trial.X.is_floating_point() else trial.X
    s = torch.ones(len(X)) if trial.sample_weight is None else trial.sample_weight
    reduction = getattr(trial.criterion, "reduction", "mean")
    features = []
    if trial.options.get("normalize"):
        dict(module.named_modules())[layer].register_forward_pre_hook(
            lambda _, args: features.append(args[0].detach().flatten(0, -2))
        )
    with plain_attention():
        risk = risk_of(
            module, X, trial.batch_size, torch.as_tensor(s).double(), _terms(trial),
            reduction,
        )  # fmt: skip
        hessian = hessian_of(risk, weight)
    if features:
        return kappa_of(*normalized(weight, hessian, scales(torch.cat(features))))
    return kappa_of(weight, hessian)


def refusal_fault(error: BaseException) -> str | None:
    """Why an error is no refusal by name, or None."""
    if not isinstance(error, TypeError | ValueError):
        return f"{type(error).__name__} is no refusal"
    frames = traceback.extract_tb(error.__traceback__)
    if "sklearn_relflat" not in frames[-1].filename:
        return f"raised in {frames[-1].filename}, not by the package"
    return None if len(str(error)) > 40 else "the message says too little"


def state_of(module):
    """What a measurement must not touch."""
    return [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in module.modules()
    ], [
        (p.grad is None, p.requires_grad, p.detach().clone())
        for p in module.parameters()
    ]


def _measured(trial: Trial, net: NeuralNet, X: Any, y: Any):
    """The result, or the error in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch's own, of a re-entrant checkpoint, whenever the user's module runs.
        warnings.filterwarnings("ignore", message="None of the inputs have requires")
        try:
            return relative_flatness(
                net,
                X,
                y,
                layer=trial.case.layer,
                sample_weight=trial.sample_weight,
                **trial.options,
            ), None
        except Exception as error:  # what it may be is what is tested
            return None, error


def run_trial(seed: int) -> str:
    """Return "value" or "refusal"; raise AssertionError for a third thing."""
    trial = make_trial(seed)
    case = trial.case
    net = trial.net_class(
        case.module, criterion=trial.criterion, train_split=None, verbose=0,
        batch_size=trial.batch_size,
    ).initialize()  # fmt: skip
    net.module_.to(trial.dtype).train()
    X = trial.X.to(trial.dtype) if trial.X.is_floating_point() else trial.X
    y = trial.y.to(trial.dtype) if trial.y.is_floating_point() else trial.y
    before = state_of(net.module_)
    result, error = _measured(trial, net, X, y)
    if error is not None:
        fault = refusal_fault(error)
        assert fault is None, f"{trial}\n{fault}: {type(error).__name__}: {error}"
        allowed = not trial.harmless and case.right != "value"
        allowed = allowed or trial.loss in ("contrast", "penalized")
        assert allowed, f"{trial}\nrefused, though it is measurable: {error}"
    for left, right in zip(before[1], state_of(net.module_)[1], strict=True):
        assert left[:2] == right[:2], f"{trial}\na parameter's flags have changed"
        assert torch.equal(left[2], right[2]), f"{trial}\na parameter has changed"
    assert before[0] == state_of(net.module_)[0], f"{trial}\nflags or hooks are left"
    if result is None:
        return "refusal"
    alone = trial.batch_size == 1 or len(trial.X) == 1
    assert case.right != "refusal" or (case.couples and alone), (
        f"{trial}\ngot {result.value!r}, expected a refusal"
    )
    assert trial.loss != "contrast" or alone, f"{trial}\nno mean over samples"
    want, size = expected(trial, result.layer)
    tolerance = 1e-8 if trial.dtype is torch.float64 else 2e-3
    assert abs(result.value - want) <= tolerance * (abs(want) + 0.1 * size) + 1e-12, (
        f"{trial}\ngot {result.value!r} ({result.method}), expected {want!r}"
    )
    return "value"
