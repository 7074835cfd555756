"""What the graph that autograd keeps of a forward pass says about derivatives.

A composition of piecewise linear operations is piecewise linear, as is a product
with one constant factor. The operations behind the preactivations are found in the
graph that autograd keeps; where every one of them is in the table below, all second
derivatives vanish and none needs to be computed. An operation that the table does not
know proves nothing: the caller then probes the second derivatives themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

_ANY = (
    "Add Sub RSub Neg Sum Mean Cat Stack Split SplitWithSizes UnsafeSplit Chunk Unbind "
    "T Transpose Permute View UnsafeView ReshapeAlias Expand Squeeze Unsqueeze Slice "
    "Select Index Repeat Clone Alias ToCopy ConstantPadNd ReflectionPad1D "
    "ReflectionPad2D ReplicationPad1D ReplicationPad2D Flip Roll AsStrided "
    "AvgPool2D AvgPool3D MkldnnAdaptiveAvgPool2D AdaptiveAvgPool2D AdaptiveAvgPool3D "
    "Relu LeakyRelu Threshold Hardtanh MaxPool2DWithIndices MaxPool3DWithIndices "
    "AdaptiveMaxPool2D AdaptiveMaxPool3D Abs Maximum Minimum Amax Amin Max Min Relu6 "
    "UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D"
)
_ONE = "Mul Mm Bmm Addmm Baddbmm Addmv Mv Dot Convolution PreluKernel"
_FIRST = "Div NativeBatchNorm CudnnBatchNorm"

#: Which inputs of an operation may depend on the preactivations.
_RULES = {
    **dict.fromkeys(_ANY.split(), "any"),
    **dict.fromkeys(_ONE.split(), "one"),
    **dict.fromkeys(_FIRST.split(), "first"),
}


def _operation(node: Any) -> str | None:
    """Name of one of torch's own operations, such as Relu; None for a user's."""
    # A function that a user wrote may bear any name.
    if isinstance(node, BackwardCFunction):
        return None
    return str(node.name()).split("::")[-1].partition("Backward")[0]


def _keeps_linear(node: Any, dependent: list[bool]) -> bool:
    """Whether a node is piecewise linear in its dependent inputs."""
    operation = _operation(node)
    rule = _RULES.get(operation or "")
    # The modulus of a complex number is a square root of squares.
    if operation == "Abs" and node._saved_self.is_complex():
        return False
    if rule == "any":
        return True
    if rule == "one":
        return sum(dependent) <= 1
    # Batch statistics would make a normalization nonlinear.
    return (
        rule == "first"
        and not any(dependent[1:])
        and not getattr(node, "_saved_training", False)
    )


def is_piecewise_linear(outputs: Tensor, points: Iterable[Tensor]) -> bool:
    """Whether the graph proves that outputs are piecewise linear in all points jointly.

    Parameters
    ----------
    outputs : Tensor
        Outputs with their graph.
    points : iterable of Tensor
        Tensors in the graph, to which independent shifts are added.

    Returns
    -------
    proven : bool
        False if some operation is unknown: that does not mean that it is smooth.
    """
    leaves = {id(z) for z in points if z.grad_fn is None}
    nodes = {z.grad_fn for z in points if z.grad_fn is not None}
    depends: dict[Any, bool] = {}
    stack = [outputs.grad_fn]
    while stack:
        node = stack[-1]
        if node is None or node in depends:
            stack.pop()
            continue
        children = [child for child, _ in node.next_functions]
        pending = [c for c in children if c is not None and c not in depends]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        dependent = [c is not None and depends[c] for c in children]
        if any(dependent) and not _keeps_linear(node, dependent):
            return False
        is_leaf = id(getattr(node, "variable", None)) in leaves
        depends[node] = any(dependent) or node in nodes or is_leaf
    return True


def has_undefined_derivative(tensors: Iterable[Tensor]) -> bool:
    """Whether gradients went through a function that has no second derivative.

    torch marks such gradients (``once_differentiable``) with a node that raises when it
    is reached, but cuts it off when derivatives in given inputs are asked for: they
    would then be zero without a word.

    Parameters
    ----------
    tensors : iterable of Tensor
        Gradients, formed with a graph.

    Returns
    -------
    undefined : bool
        Whether there is such a node behind any of them.
    """
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if str(node.name()).split("::")[-1] == "Error":
            return True
        new = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= new
        stack.extend(new)
    return False
