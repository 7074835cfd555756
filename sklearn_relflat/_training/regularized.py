"""Training of a skorch net with its relative flatness as a part of the loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from skorch.dataset import unpack_data
from torch import Tensor, nn

from sklearn_relflat._layers.layers import WeightLayer, find_layer, weight_layers
from sklearn_relflat._layers.look import look_at
from sklearn_relflat._losses.autograd import AutogradLoss
from sklearn_relflat._losses.base import Loss
from sklearn_relflat._losses.table import LOSSES
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.view import as_torch_model

if TYPE_CHECKING:
    from skorch import NeuralNet as _Net
else:
    # The mixin gets skorch's methods from the class that it is mixed into.
    _Net = object


def find_output_layer(view: TorchModel, inputs: Any) -> str:
    """Return the name of the layer whose preactivations are the raw outputs.

    Parameters
    ----------
    view : TorchModel
        The model.
    inputs : Tensor, dict or list
        Some samples.

    Returns
    -------
    name : str
        Name of the layer.

    Raises
    ------
    ValueError
        If the model does not end in a linear layer, or its loss is one whose second
        derivatives cannot be differentiated again.
    """
    if isinstance(view.loss, AutogradLoss):
        raise ValueError(
            "Expected a criterion whose second derivatives are known in closed form, "
            f"to regularise the flatness, got {view.loss.name!r}. Use one of torch's "
            f"criteria for {[name for name in LOSSES if name != 'brier']}."
        )
    with view.measuring():
        layers = weight_layers(view)
        look = look_at(view, view.batches(inputs), layers, last_only=True)
    if look.output_layer is None:
        raise ValueError(
            f"Expected a {view.estimator_name} that ends in a linear layer, to "
            "regularise its flatness, got a module whose raw outputs are no layer's "
            f"preactivations (its layers: {list(layers)}). End the module in a Linear "
            "layer, followed by nothing but the link of the criterion."
        )
    return look.output_layer


@dataclass
class OutputLayerCall:
    """Features and preactivations of the output layer in the last forward pass.

    Attributes
    ----------
    layer : WeightLayer
        The layer.
    seen : tuple of Tensor or None
        Its input and output, with their graph; None before the forward pass.
    """

    layer: WeightLayer
    seen: tuple[Tensor, Tensor] | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Note a call; the last one counts."""
        self.seen = args[0], output


def differentiable_flatness(
    view: TorchModel, call: OutputLayerCall, y: Tensor
) -> Tensor:
    """Relative flatness of the output layer on one batch, in the graph of its call.

    Parameters
    ----------
    view : TorchModel
        The model.
    call : OutputLayerCall
        The layer's call in the forward pass of the batch.
    y : Tensor of shape (n_samples, ...)
        Targets as the criterion takes them.

    Returns
    -------
    kappa : Tensor, a scalar
        Differentiable in all parameters.

    Raises
    ------
    ValueError
        If the forward pass did not call the layer.
    """
    if call.seen is None:
        raise ValueError(
            f"Expected the training step to call layer {call.layer.name!r}, to "
            "regularise its flatness, and it did not. Let the module call the same "
            "output layer in training and evaluation mode."
        )
    features, preactivations = call.seen
    module, kind = call.layer.modules[0], call.layer.kind
    phi = kind.columns(module, features)[:, :, 0]
    outputs = kind.rows(module, preactivations)[:, :, 0]
    # Not the layer's own attribute, which is detached; and it may be parametrized.
    weight: Any = module.weight
    return _mean_curvature(view.loss, phi, outputs, weight.flatten(1), y)


def _mean_curvature(
    loss: Loss, phi: Tensor, outputs: Tensor, weight: Tensor, y: Tensor
) -> Tensor:
    """Return mean_i ||phi_i||^2 <w w^T, C_i>, with the mean as the criterion has it."""
    targets = loss.targets(outputs.detach(), y)
    inner = loss.hessian_inner(outputs, targets, weight)
    total = (phi.square().sum(1) * inner).sum()
    if loss.reduction == "sum":
        return total
    return total / loss.denominator(outputs.detach(), targets).sum()


class FlatnessRegularized(_Net):
    r"""Mixin for a skorch net whose training loss includes its relative flatness.

    Minimises :math:`E_{emp} + \lambda \kappa` with the relative flatness
    :math:`\kappa` of the output layer, in closed form and differentiable in all
    parameters, at the price of a few matrix products per batch. Put it to the left of
    the net's class.

    Parameters
    ----------
    *args : object
        Passed to the net.
    flatness_weight : float, default=0.0
        The weight :math:`\lambda`. For the expected rise of the loss under random
        perturbations of the features of relative size delta it is
        ``delta**2 / (2 * n_features)`` (Theorem 5). A negative weight trains away from
        flat minima, to test whether flatness is necessary.
    **kwargs : dict
        Passed to the net.

    See Also
    --------
    RelativeFlatnessMonitor : Shows the relative flatness during training.

    Notes
    -----
    The ``train_loss`` in the history includes the penalty, the ``valid_loss`` does not:
    it stays comparable between weights. The penalty is that of the batch in training
    mode, with the features after dropout. The module has to end in a linear layer, up
    to the link of the criterion, and the criterion to be one of torch's that are twice
    differentiable.

    With a negative weight the objective may have no minimum: the squared loss and its
    :math:`\kappa` are both quadratic in the weights. Keep the weight small, and stop by
    the loss without the penalty.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 3 and Theorem 5.

    Examples
    --------
    For one feature with mean square 1, :math:`\kappa = 2 w^2`, and least squares plus
    :math:`\lambda \kappa` has the solution :math:`w = 1 / (1 + 2 \lambda)`:

    >>> import numpy as np
    >>> from skorch import NeuralNetRegressor
    >>> from torch import nn
    >>> from sklearn_relflat.callbacks import FlatnessRegularized
    >>> class FlatRegressor(FlatnessRegularized, NeuralNetRegressor):
    ...     pass
    >>> X = np.array([[-1.0], [1.0]], dtype="float32")
    >>> net = FlatRegressor(
    ...     nn.Linear,
    ...     module__in_features=1,
    ...     module__out_features=1,
    ...     flatness_weight=0.5,
    ...     lr=0.1,
    ...     max_epochs=100,
    ...     train_split=None,
    ...     verbose=0,
    ... ).fit(X, X)
    >>> round(net.module_.weight.item(), 4)
    0.5
    """

    flatness_weight: float

    def __init__(self, *args: Any, flatness_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flatness_weight = flatness_weight

    def initialize(self) -> Self:
        """Initialize the net.

        Returns
        -------
        self : NeuralNet
            The net.

        Raises
        ------
        ValueError
            If `flatness_weight` is not a finite number.
        """
        if not np.isfinite(self.flatness_weight):
            raise ValueError(
                "Expected flatness_weight to be a finite number, got "
                f"{self.flatness_weight!r}."
            )
        self.output_layer_: str | None = None
        super().initialize()
        return self

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run one training step, with the penalty in its loss.

        Parameters
        ----------
        batch : tuple
            Samples and targets of one batch.
        **fit_params : dict
            As for the net.

        Returns
        -------
        step : dict
            Loss, with the penalty, and outputs.
        """
        if not self.flatness_weight:
            return super().train_step_single(batch, **fit_params)
        if self.output_layer_ is None:
            self.output_layer_ = self._find_output_layer(batch)
        layer = find_layer(as_torch_model(self, live=True), self.output_layer_)
        self.output_call_ = OutputLayerCall(layer)
        handle = layer.modules[0].register_forward_hook(self.output_call_.hook)
        try:
            return super().train_step_single(batch, **fit_params)
        finally:
            handle.remove()
            del self.output_call_

    def _find_output_layer(self, batch: Any) -> str:
        """Return the name of the output layer."""
        # A forward pass gives the parameters of lazy modules their shape.
        self.evaluation_step(batch)
        return find_output_layer(as_torch_model(self, live=True), unpack_data(batch)[0])

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        """Return the loss of a batch; in a training step, with the penalty.

        Parameters
        ----------
        y_pred : Tensor
            Outputs of the module.
        y_true : Tensor
            Targets.
        X : Tensor, dict or list, default=None
            Samples.
        training : bool, default=False
            Whether the loss is that of a training step.

        Returns
        -------
        loss : Tensor
            A scalar.
        """
        loss = super().get_loss(y_pred, y_true, X=X, training=training)
        call = getattr(self, "output_call_", None)
        if not training or call is None:
            return loss
        view = as_torch_model(self, live=True)
        kappa = differentiable_flatness(view, call, y_true)
        return loss + self.flatness_weight * kappa
