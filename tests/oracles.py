"""Slow, readable references: Definition 3 of the paper, written out."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def layer_hessian(module, name, risk):
    """Hessian of the mean loss in a layer's weight, (d, m, d, m), by brute force.

    `risk` maps the module's call (a function of the inputs) to the empirical risk.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    weight = parameters[f"{name}.weight"].detach()

    def empirical_risk(w):
        def call(*args, **kwargs):
            return torch.func.functional_call(
                module, {f"{name}.weight": w}, args, kwargs
            )

        return risk(call)

    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.func.jacrev(torch.func.jacrev(empirical_risk))(weight)
    d = weight.shape[0]
    m = weight[0].numel()
    return hessian.detach().reshape(d, m, d, m)


def kappa_trace(weight, hessian):
    """Sum over pairs of neurons of <w_s, w_s'> Tr H_(s,s')."""
    w = weight.detach().flatten(1)
    total = 0.0
    for s in range(len(w)):
        for t in range(len(w)):
            total += float(w[s] @ w[t]) * float(torch.trace(hessian[s, :, t, :]))
    return total


def kappa_max(weight, hessian):
    """Sum over neurons of ||w_s||^2 lambda_max(H_(s,s))."""
    w = weight.detach().flatten(1)
    total = 0.0
    for s in range(len(w)):
        top = torch.linalg.eigvalsh(hessian[s, :, s, :])[-1]
        total += float(w[s] @ w[s]) * float(top)
    return total


def scales(features):
    """Deviation of each column; of a constant c it is |c|, and so 0 of a dead one."""
    return torch.tensor(
        [
            float(abs(column[0]))
            if (column == column[0]).all()
            else float(column.std())
            for column in features.reshape(-1, features.shape[-1]).double().numpy().T
        ],
        dtype=torch.float64,
    )


def normalized(weight, hessian, sigma):
    """Weight and Hessian after phi' = phi / sigma, w' = w sigma (Theorem 4).

    Columns of dead features, with the scale 0, are dropped.
    """
    kept = sigma > 0
    w = weight.detach().flatten(1)[:, kept] * sigma[kept]
    hessian = hessian[:, kept][:, :, :, kept]
    return w, hessian / (sigma[kept][None, :, None, None] * sigma[kept])


def gauss_newton_hessian(module, name, criterion, X, y):
    """Gauss-Newton matrix of the mean loss in a layer's weight, (d, m, d, m).

    J^T C J with the Jacobian J of all outputs of all samples and the Hessian C of the
    empirical risk in all of them.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    weight = parameters[f"{name}.weight"].detach()

    def outputs(w):
        args, kwargs = ((), X) if isinstance(X, dict) else ((X,), {})
        return torch.func.functional_call(module, {f"{name}.weight": w}, args, kwargs)

    with sdpa_kernel(SDPBackend.MATH):
        raw = outputs(weight).detach()
        jacobian = torch.func.jacrev(outputs)(weight).reshape(raw.numel(), -1)
    curvature = torch.func.jacrev(torch.func.jacrev(lambda f: criterion(f, y)))(raw)
    curvature = curvature.reshape(raw.numel(), -1)
    d, m = weight.shape[0], weight[0].numel()
    matrix = jacobian.T @ curvature @ jacobian
    return matrix.detach().reshape(d, m, d, m)
