"""Slow, readable references for the measures that compete with relative flatness."""

import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklearn_relflat import list_layers


def call_with(module, names, flat):
    """The module's call with the weights of some layers replaced by one flat vector."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    weights, start = {}, 0
    for name in names:
        shape = parameters[f"{name}.weight"].shape
        weights[f"{name}.weight"] = flat[start : start + shape.numel()].reshape(shape)
        start += shape.numel()

    def call(*args, **kwargs):
        return torch.func.functional_call(module, weights, args, kwargs)

    return call


def flat_weights(module, names):
    """Weights of some layers as one vector."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return torch.cat(
        [parameters[f"{name}.weight"].detach().flatten() for name in names]
    )


def risk_at(case, net, names, X, y):
    """Empirical risk as a function of the weights of some layers, and those weights."""
    module, risk = case.logits_module(net), case.risk(net, X, y)
    return (
        lambda flat: risk(call_with(module, names, flat)),
        flat_weights(module, names),
    )


def normalized_risk_at(case, net, names, X, y):
    """The same with logits of mean 0 and variance 1 over the classes."""
    module, criterion = case.logits_module(net), case.criterion_of(net)

    def risk(flat):
        z = call_with(module, names, flat)(X)
        z = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
        return criterion(z, y)

    return risk, flat_weights(module, names)


def joint_hessian(case, names):
    """Hessian of the mean loss in the weights of several layers together."""
    net, (X, y) = case.fitted(), case.data()
    risk, flat = risk_at(case, net, names, X, y)
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(torch.func.jacrev(risk))(flat).detach()


def fisher_rao(case, names, probabilities):
    """sqrt(theta^T F theta), F the sum of p_i times outer products of gradients."""
    net, (X, y) = case.fitted(), case.data()
    module = case.logits_module(net)
    criterion = case.criterion_of(net)
    theta = flat_weights(module, names)
    fisher = torch.zeros(len(theta), len(theta), dtype=theta.dtype)
    for i, p in enumerate(probabilities):
        if not p:
            continue

        def loss(flat, i=i):
            return criterion(call_with(module, names, flat)(X[i : i + 1]), y[i : i + 1])

        with sdpa_kernel(SDPBackend.MATH):
            gradient = torch.func.grad(loss)(theta).detach()
        fisher += p * torch.outer(gradient, gradient)
    fisher /= sum(probabilities)
    return float((theta @ fisher @ theta).sqrt())


def snapshot(net):
    """Everything that a measure must leave as it is."""
    module = net.module_
    return {
        "parameters": copy.deepcopy(module.state_dict()),
        "identities": [id(p) for p in module.parameters()],
        "gradients": [
            None if p.grad is None else p.grad.clone() for p in module.parameters()
        ],
        "flags": [p.requires_grad for p in module.parameters()],
        "training": [m.training for m in module.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()
        ],
        "random": torch.get_rng_state(),
        "layers": list_layers(net),
    }


def same(left, right):
    """Whether two snapshots are equal, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            same(left[k], right[k]) for k in left
        )
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right
