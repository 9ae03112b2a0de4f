"""The first steps of each solver, stated independently of its code.

Each statement is the paper's formula in float64, for one parameter:

    reference(solver, role, weight, gradients, factors) -> weight

``solver`` holds the hyper-parameters, ``factors`` the factor of the learning
rate at each step. Where the authors' code has an epsilon that the paper
leaves open, it is theirs.
"""
import math

import numpy as np
import torch


def adamw(w, gradients, factors, lr, beta1, beta2, weight_decay, eps=1e-8):
    """Algorithm 2 of Loshchilov and Hutter."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        step = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        w = w - lr * factor * (step + weight_decay * w)
    return w


def decay_of(solver, role):
    return 0.0 if role == "gains_and_biases" else solver.weight_decay


def auxiliary(statement):
    """AdamW for everything but the hidden matrices."""
    def reference(h, role, w, gradients, factors):
        if role == "hidden_matrices":
            return statement(h, w, gradients, factors)
        return adamw_of_the_rest(
            h, role, w, gradients, factors, h.aux_learning_rate, h.aux_beta1,
            h.aux_beta2, 1e-8, h.aux_weight_decay,
        )

    return reference


def adamw_of_the_rest(h, role, w, gradients, factors, lr, beta1, beta2, eps,
                      weight_decay):
    """AdamW with the values of one role, or else those that are given."""
    rate = {
        "embeddings": h.embedding_learning_rate, "head": h.head_learning_rate,
        "gains_and_biases": h.gain_learning_rate,
    }[role]
    if role == "gains_and_biases":
        weight_decay = h.gain_weight_decay or 0.0
    return adamw(
        w, gradients, factors, lr if rate is None else rate, beta1, beta2,
        weight_decay, eps if h.aux_eps is None else h.aux_eps,
    )


def adamw_of_llm_c(h, role, w, gradients, factors):
    if role == "hidden_matrices":
        return adamw(w, gradients, factors, h.learning_rate, h.beta1, h.beta2,
                     h.weight_decay, h.eps)
    beta1, beta2, decay = (
        value if own is None else own for value, own in (
            (h.beta1, h.aux_beta1), (h.beta2, h.aux_beta2),
            (h.weight_decay, h.aux_weight_decay),
        )
    )
    return adamw_of_the_rest(h, role, w, gradients, factors, h.learning_rate,
                             beta1, beta2, h.eps, decay)


def sgd(h, role, w, gradients, factors):
    buffer = torch.zeros_like(w)
    for g, factor in zip(gradients, factors, strict=True):
        buffer = h.momentum * buffer + g + h.weight_decay * w
        w = w - h.learning_rate * factor * buffer
    return w


def nadam(h, role, w, gradients, factors):
    m, v = torch.zeros_like(w), torch.zeros_like(w)

    def mu(t):
        return h.beta1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))

    product = 1.0
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        product *= mu(t)
        m = h.beta1 * m + (1 - h.beta1) * g
        v = h.beta2 * v + (1 - h.beta2) * g**2
        ahead = (
            mu(t + 1) * m / (1 - product * mu(t + 1))
            + (1 - mu(t)) * g / (1 - product)
        )
        step = ahead / ((v / (1 - h.beta2**t)).sqrt() + 1e-8)
        w = w - h.learning_rate * factor * (step + decay_of(h, role) * w)
    return w


def adafactor(h, role, w, gradients, factors):
    rows = columns = v = 0.0
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        rate = h.learning_rate * factor
        new = t ** h.beta2_decay
        if g.ndim == 2:
            rows = (1 - new) * rows + new * (g**2).mean(1)
            columns = (1 - new) * columns + new * (g**2).mean(0)
            estimate = torch.outer(rows, columns) / rows.mean()
        else:
            v = estimate = (1 - new) * v + new * g**2
        step = g / estimate.sqrt()
        step = step / max(1.0, rms(step) / h.clipping_threshold)
        size = max(1e-3, rms(w)) * min(rate, 1 / math.sqrt(t))
        w = (1 - rate * decay_of(h, role)) * w - size * step
    return w


def rms(x):
    return x.square().mean().sqrt().item()


def lion(h, role, w, gradients, factors):
    m = torch.zeros_like(w)
    for g, factor in zip(gradients, factors, strict=True):
        step = torch.sign(h.beta1 * m + (1 - h.beta1) * g)
        m = h.beta2 * m + (1 - h.beta2) * g
        w = w - h.learning_rate * factor * (step + decay_of(h, role) * w)
    return w


def signum(h, role, w, gradients, factors):
    m = torch.zeros_like(w)
    for g, factor in zip(gradients, factors, strict=True):
        m = h.momentum * m + (1 - h.momentum) * g
        step = torch.sign(m)
        w = w - h.learning_rate * factor * (step + decay_of(h, role) * w)
    return w


def ademamix(h, role, w, gradients, factors):
    m, v, slow = (torch.zeros_like(w) for _ in range(3))
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        share = t / h.num_steps
        # Half-lives are interpolated: 1/log(beta) linear in time.
        beta3 = math.exp(1 / (
            (1 - share) / math.log(h.beta1) + share / math.log(h.beta3)
        ))
        m = h.beta1 * m + (1 - h.beta1) * g
        v = h.beta2 * v + (1 - h.beta2) * g**2
        slow = beta3 * slow + (1 - beta3) * g
        step = (m / (1 - h.beta1**t) + share * h.alpha * slow) / (
            (v / (1 - h.beta2**t)).sqrt() + 1e-8
        )
        w = w - h.learning_rate * factor * (step + decay_of(h, role) * w)
    return w


def mars(h, role, w, gradients, factors):
    if role == "gains_and_biases":
        return adamw(w, gradients, factors, h.aux_learning_rate, h.aux_beta1,
                     h.aux_beta2, h.aux_weight_decay)
    last, corrected = torch.zeros_like(w), []
    for g in gradients:
        c = g + h.gamma * h.beta1 / (1 - h.beta1) * (g - last)
        corrected.append(c / max(1.0, c.norm().item()))
        last = g
    return adamw(w, corrected, factors, h.learning_rate, h.beta1, h.beta2,
                 h.weight_decay)


def schedule_free(h, role, w, gradients, factors, evaluated=False):
    """z is stepped, x averages z, the gradient is taken at y."""
    x = y = z = w
    v = torch.zeros_like(w)
    largest = total = 0.0
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        rate = h.learning_rate * factor
        v = h.beta2 * v + (1 - h.beta2) * g**2
        step = g / ((v / (1 - h.beta2**t)).sqrt() + 1e-8)
        z = z - rate * (step + decay_of(h, role) * y)
        largest = max(largest, rate)
        total += largest**2
        share = largest**2 / total
        x = (1 - share) * x + share * z
        y = (1 - h.beta1) * z + h.beta1 * x
    return x if evaluated else y


def polar(matrix):
    """The nearest matrix with orthonormal rows or columns."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def nesterov(gradients, momentum):
    m = torch.zeros_like(gradients[0])
    for g in gradients:
        m = momentum * m + (1 - momentum) * g
        yield momentum * m + (1 - momentum) * g


def muon(h, w, gradients, factors):
    scale = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
    for n, factor in zip(
        nesterov(gradients, h.momentum), factors, strict=True
    ):
        rate = h.learning_rate * factor
        w = w - rate * (scale * polar(n) + h.weight_decay * w)
    return w


def normuon(h, w, gradients, factors):
    scale = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
    v = torch.zeros_like(w[:, :1])
    for n, factor in zip(
        nesterov(gradients, h.momentum), factors, strict=True
    ):
        o = polar(n)
        v = h.beta2 * v + (1 - h.beta2) * (o**2).mean(1, keepdim=True)
        rows = o / v.sqrt()
        step = scale * rows * o.norm() / rows.norm()
        w = w - h.learning_rate * factor * (step + h.weight_decay * w)
    return w


def soap(h, w, gradients, factors):
    """Algorithm 3 of Vyas et al., as their code starts it."""
    left = right = 0.0
    ql = qr = None
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True)):
        if t:
            m = h.beta1 * m + (1 - h.beta1) * g
            v = h.beta2 * v + (1 - h.beta2) * (ql.T @ g @ qr)**2
            # Their epsilon is added before the bias is corrected.
            step = (ql.T @ m @ qr) / (v.sqrt() + 1e-8)
            step = step * math.sqrt(1 - h.beta2**t) / (1 - h.beta1**t)
            rate = h.learning_rate * factor
            w = (w - rate * ql @ step @ qr.T) * (1 - rate * h.weight_decay)
        left = h.beta2 * left + (1 - h.beta2) * (g @ g.T)
        right = h.beta2 * right + (1 - h.beta2) * (g.T @ g)
        if t == 0:
            # One gradient has a null space, in which any basis would do:
            # this is the one that the same eigensolver finds of the same
            # matrix, to which their code adds 1e-30.
            ql, qr = (
                torch.linalg.eigh(s + 1e-30 * torch.eye(len(s)).double())
                .eigenvectors.flip(1) for s in (left, right)
            )
        elif t % h.precondition_frequency == 0:
            ql, order = power_step(left, ql)
            v = v[order]
            qr, order = power_step(right, qr)
            v = v[:, order]
    return w


def power_step(statistics, basis):
    values = ((statistics @ basis) * basis).sum(0)
    order = values.argsort(descending=True)
    return torch.linalg.qr(statistics @ basis[:, order])[0], order


def shampoo(h, w, gradients, factors):
    """L^(-1/4) M R^(-1/4), by NumPy, of the length of Adam's step."""
    m = v = left = right = 0.0
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        g = g.numpy()
        m = h.beta1 * m + (1 - h.beta1) * g
        v = h.beta2 * v + (1 - h.beta2) * g**2
        left = h.beta2 * left + (1 - h.beta2) * g @ g.T
        right = h.beta2 * right + (1 - h.beta2) * g.T @ g
        if (t - 1) % h.precondition_frequency == 0:
            roots = [inverse_fourth_root(s) for s in (left, right)]
        step = roots[0] @ m @ roots[1]
        adam = (m / (1 - h.beta1**t)) / (
            np.sqrt(v / (1 - h.beta2**t)) + h.eps
        )
        step *= np.linalg.norm(adam) / np.linalg.norm(step)
        rate = h.learning_rate * factor
        w = (1 - rate * h.weight_decay) * w - rate * torch.from_numpy(step)
    return w


def inverse_fourth_root(matrix):
    """Through the singular values, damped by a millionth of the largest."""
    u, s, _ = np.linalg.svd(matrix, hermitian=True)
    return (u / np.sqrt(np.sqrt(s + 1e-6 * s[0]))) @ u.T


def psgd_kron(h, w, gradients, factors):
    """Q = Q_left x Q_right is fitted so that Q^T Q whitens the momentum."""
    ql, qr = torch.eye(w.shape[0]).double(), torch.eye(w.shape[1]).double()
    m, count = torch.zeros_like(w), 0
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        m = h.momentum * m + (1 - h.momentum) * g
        mean = m / (1 - h.momentum**t)
        count += 1
        if count >= 1 / h.update_probability:
            count = 0
            torch.manual_seed(t - 1)
            probe = torch.randn(w.shape, dtype=torch.float32).double()
            a = ql @ mean @ qr.T
            b = torch.linalg.inv(ql).T @ probe @ torch.linalg.inv(qr)
            ql = whitened(ql, a @ a.T, b @ b.T)
            qr = whitened(qr, a.T @ a, b.T @ b)
        step = ql.T @ ql @ mean @ qr.T @ qr
        step = step * min(1.0, 1.1 / rms(step))
        w = w - h.learning_rate * factor * (step + h.weight_decay * w)
    return w


def whitened(q, of_gradient, of_probe):
    total = of_gradient + of_probe
    # A lower bound of the spectral norm: one power step from the largest row.
    start = total @ total[total.square().sum(1).argmax()]
    norm = (total @ start).norm() / start.norm()
    return q - 0.1 / norm * torch.triu(of_gradient - of_probe) @ q


def scion(h, role, w, gradients, factors):
    d = torch.zeros_like(w)
    for g, factor in zip(gradients, factors, strict=True):
        d = (1 - h.momentum) * d + h.momentum * g
        rate = h.learning_rate * factor
        if role == "gains_and_biases":
            # The authors' code adds this epsilon.
            w = w - rate * h.vector_radius * d / (rms(d) + 1e-8)
        elif role == "hidden_matrices":
            step = math.sqrt(w.shape[0] / w.shape[1]) * muon_polynomial(d)
            w = (1 - rate) * w - rate * h.hidden_radius * step
        else:
            step = torch.sign(d) / w.shape[1]
            w = (1 - rate) * w - rate * h.embedding_radius * step
    return w


def muon_polynomial(matrix):
    """Muon's quintic, five times, on each singular value."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vh


def hyperball(h, w, updates, factors):
    radius = w.norm()
    for update, factor in zip(updates, factors, strict=True):
        moved = w - h.learning_rate * factor * radius * update / update.norm()
        w = radius * moved / moved.norm()
    return w


def adamh(h, w, gradients, factors):
    m, v, updates = torch.zeros_like(w), torch.zeros_like(w), []
    for t, g in enumerate(gradients, 1):
        m = h.beta1 * m + (1 - h.beta1) * g
        v = h.beta2 * v + (1 - h.beta2) * g**2
        updates.append(
            (m / (1 - h.beta1**t)) / ((v / (1 - h.beta2**t)).sqrt() + h.eps)
        )
    return hyperball(h, w, updates, factors)


def muonh(h, w, gradients, factors):
    updates = [polar(n) for n in nesterov(gradients, h.momentum)]
    return hyperball(h, w, updates, factors)


def by_name(h, role, w, gradients, factors):
    """Its default: Adan, Algorithm 1 of Xie et al., with bias correction."""
    beta1, beta2, beta3 = 0.98, 0.92, 0.99
    m = v = n = torch.zeros_like(w)
    last = gradients[0]
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        change, last = g - last, g
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * change
        n = beta3 * n + (1 - beta3) * (g + beta2 * change)**2
        rate = h.learning_rate * factor
        w = (1 - rate * decay_of(h, role)) * w
        w = w - rate * (
            m / (1 - beta1**t) + beta2 * v / (1 - beta2**t)
        ) / ((n / (1 - beta3**t)).sqrt() + 1e-8)
    return w


REFERENCES = {
    "adafactor": adafactor, "adamh": auxiliary(adamh),
    "adamw": adamw_of_llm_c,
    "ademamix": ademamix, "by_name": by_name,
    "lion": lion, "mars": mars, "muon": auxiliary(muon),
    "muonh": auxiliary(muonh), "nadam": nadam,
    "normuon": auxiliary(normuon), "psgd_kron": auxiliary(psgd_kron),
    "schedule_free": schedule_free, "scion": scion, "sgd": sgd,
    "shampoo": auxiliary(shampoo), "signum": signum,
    "soap": auxiliary(soap),
}

# How near the first steps come to the reference, relative to their length,
# where that is more than some scalar in float32.
TOLERANCES = {
    # Bases and preconditioners are computed in float32.
    "soap": 1e-5, "psgd_kron": 1e-6,
    # Matrices are orthogonalised in bfloat16, which rounds to 4e-3.
    "muon": 8e-3, "muonh": 8e-3, "normuon": 8e-3, "scion": 3e-2,
}
# Other values of hyper-parameters that have no number near their own.
PERTURBATIONS = {
    # torch takes none below 1.
    "adafactor": {"clipping_threshold": 1.1},
    "by_name": {"optimizer": "lion", "options": {"eps": 1e-2}},
    "muon": {"ns_polynomial": "steep", "adjust_lr": "match_rms_adamw"},
}
