"""At the edges of their hyper-parameters, methods are simpler methods."""
import math
import operator

import pytest
import torch

from benchmark_utils.optimizers.shampoo import inverse_fourth_roots
from solver_suite.references import REFERENCES, polar
from solver_suite.toy import FACTORS, SHAPES, Toy, distance

SQUARE = SHAPES | {"hidden_matrices": [(8, 8)]}


@pytest.fixture
def toy(bench):
    """``toy(name, **parameters)``: a solver's optimizer, without decay."""
    def toy(name, shapes=SHAPES, scale=1.0, **parameters):
        found, = bench.check_solver_patterns([name], class_only=True)
        if not found.is_installed():
            pytest.skip(f"needs {', '.join(found.requirements)}")
        decay = {
            key: 0.0 for key in found.parameters if "weight_decay" in key
        }
        solver = found.get_instance(**(
            {"num_steps": 20, "warmup_steps": 0, "learning_rate": 0.01}
            | decay | parameters
        ))
        return Toy(solver, shapes, scale=scale)

    return toy


def hidden_moves(toy, start):
    """How far each hidden matrix is from where it was."""
    return [
        p.detach() - before
        for p, before in zip(toy.roles["hidden_matrices"], start, strict=True)
    ]


@pytest.mark.parametrize("first, second", [
    # Without averages, Adam is sign descent.
    (("AdamW", dict(beta1=0.0, beta2=0.0)), ("Signum", dict(momentum=0.0))),
    # The two averages of Lion are one.
    (("Lion", dict(beta1=0.9, beta2=0.9)), ("Signum", dict(momentum=0.9))),
    # Nothing to look ahead along.
    (("NAdam", dict(beta1=0.0, beta2=0.9)),
     ("AdamW", dict(beta1=0.0, beta2=0.9))),
    # No slow average.
    (("AdEMAMix", dict(alpha=0.0)), ("AdamW", dict(beta2=0.999))),
    # No correction of the gradient, none of it clipped.
    (("MARS", dict(gamma=0.0, beta1=0.9, beta2=0.95, aux_learning_rate=0.01,
                   scale=0.01)), ("AdamW", dict(scale=0.01))),
    # ... at the gradients of a model of 124 M parameters too.
    (("MARS", dict(gamma=0.0, beta1=0.9, beta2=0.95, aux_learning_rate=0.01,
                   scale=3e-7)), ("AdamW", dict(scale=3e-7))),
    # The gradient is taken at the trained weights, not at their average.
    (("Schedule-free AdamW", dict(beta1=1e-15, beta2=0.9)),
     ("AdamW", dict(beta1=0.0, beta2=0.9))),
    # By name, it is the same optimizer, with the same options.
    (("pytorch-optimizer", dict(optimizer="signsgd")), ("Signum", dict(
        momentum=0.9))),
    (("pytorch-optimizer", dict(optimizer="lion", options={
        "betas": (0.8, 0.7)})), ("Lion", dict(beta1=0.8, beta2=0.7))),
], ids=lambda value: value[0])
def test_reduces_to_the_simpler_method(toy, first, second):
    one, other = (toy(name, **options).run(6) for name, options in (
        first, second
    ))
    assert distance(one.weights(), other.weights()) < 1e-4 * distance(
        one.weights(), one.initial
    )


def test_sgd_without_momentum_is_gradient_descent(toy):
    sgd = toy("SGD", momentum=0.0).run(3)
    expected = [
        w - 0.01 * sum(map(operator.mul, FACTORS, gradients))
        for w, *gradients in zip(
            sgd.initial, *map(sgd.gradients, range(3)), strict=True
        )
    ]
    assert distance(sgd.weights(), expected) < 1e-14


def test_adafactor_is_exact_for_gradients_of_rank_one(toy):
    """Then the factors hold the whole second moment, and the first step is
    the sign of the gradient, relative to the size of the parameter."""
    adafactor = toy("Adafactor")
    gradients = [
        torch.outer(g[:, 0], g[0]) if g.ndim == 2 else g
        for g in adafactor.gradients(0)
    ]
    adafactor.step(0, factor=1.0, gradients=gradients)
    for w, start, g in zip(
        adafactor.weights(), adafactor.initial, gradients, strict=True
    ):
        size = 0.01 * start.square().mean().sqrt()
        torch.testing.assert_close(w, start - size * g.sign())


def test_adafactor_does_not_see_the_scale_of_gradients(toy):
    """Those of the full model are a hundred thousand times smaller than one:
    torch's own default for what it divides by is larger than their squares."""
    small = toy("Adafactor", scale=1e-5).run(4)
    assert distance(small.weights(), toy("Adafactor").run(4).weights()) < (
        1e-9 * distance(small.weights(), small.initial)
    )


@pytest.mark.parametrize("name, options", [
    ("Muon", dict(momentum=0.0)), ("NorMuon", dict(momentum=0.0)),
    ("Muon", dict(momentum=0.9)),
])
def test_the_first_step_of_muon_is_orthogonal(toy, name, options):
    """For an orthogonal gradient, Muon's step and NorMuon's is that
    gradient, whatever its size: rows of equal length stay as they are."""
    muon = toy(name, SQUARE, **options)
    gradients = muon.gradients(0)
    gradients[0] = 7.0 * polar(gradients[0])
    start = [p.detach().clone() for p in muon.roles["hidden_matrices"]]
    muon.step(0, factor=1.0, gradients=gradients)
    move, = hidden_moves(muon, start)
    torch.testing.assert_close(
        move, -0.01 * gradients[0] / 7.0, rtol=0.02, atol=1e-4
    )


def test_the_first_step_of_shampoo_is_orthogonal(toy):
    """(G G^T)^(-1/4) G (G^T G)^(-1/4) is the orthogonal factor of G; its
    length is Adam's, whose first step is the sign of the gradient."""
    shampoo = toy("Shampoo", SQUARE)
    gradients = shampoo.gradients(0)
    gradients[0] = polar(gradients[0]) + 0.1 * gradients[0]
    start = [p.detach().clone() for p in shampoo.roles["hidden_matrices"]]
    shampoo.step(0, factor=1.0, gradients=gradients)
    move, = hidden_moves(shampoo, start)
    factor = polar(gradients[0])
    torch.testing.assert_close(
        move, -0.01 * 8 * factor / factor.norm(), rtol=1e-4, atol=1e-6
    )


def test_soap_in_the_basis_of_the_weights_is_adam(toy):
    """Diagonal gradients have the standard basis for eigenvectors. Its first
    gradient makes the basis and no step: Adam starts with the second."""
    soap = toy("SOAP", SQUARE, beta1=0.9, beta2=0.95)
    adam = toy("AdamW", SQUARE)
    spectrum = torch.arange(1.0, 9.0, dtype=torch.float64)
    for t in range(4):
        gradients = soap.gradients(t)
        gradients[0] = torch.diag(spectrum / (1 + t))
        soap.step(t, factor=1.0, gradients=gradients)
        if t:
            adam.step(t, factor=1.0, gradients=gradients)
    assert distance(
        soap.roles["hidden_matrices"], adam.roles["hidden_matrices"]
    ) < 1e-6


def test_soap_starts_with_the_first_gradient_that_is_not_zero(toy):
    """As those of a model are whose head starts at zero, matrix by matrix."""
    late, prompt = (toy("SOAP") for _ in range(2))
    for t in range(8):
        gradients = late.gradients(t)
        zero = torch.zeros_like(gradients[0])
        if t >= 3:
            prompt.step(t - 3, factor=1.0, gradients=gradients)
        first = gradients[0] if t >= 3 else zero
        late.step(t, factor=1.0, gradients=[first, *gradients[1:]])
    one, other = (each.roles["hidden_matrices"] for each in (late, prompt))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_psgd_that_never_fits_is_momentum(toy):
    """The preconditioner stays the identity; gradients are too small for the
    limit on the size of a step."""
    psgd = toy(
        "PSGD-Kron", update_probability=0.0, momentum=0.9, scale=0.1
    ).run(4)
    momentum = [torch.zeros_like(w) for w in psgd.initial]
    expected = list(psgd.initial)
    for t in range(4):
        for i, g in enumerate(psgd.gradients(t)):
            momentum[i] = 0.9 * momentum[i] + 0.1 * g
            step = momentum[i] / (1 - 0.9 ** (t + 1))
            expected[i] = expected[i] - 0.01 * FACTORS[t] * step
    size = len(SHAPES["hidden_matrices"])
    assert distance(psgd.weights()[:size], expected[:size]) < 1e-7


@pytest.mark.parametrize("name", ["AdamH", "MuonH"])
def test_hyperball_methods_turn_and_never_stretch(toy, name):
    """Weights keep their norm; a small learning rate is the angle of the
    part of the step that is across the weights."""
    ball = toy(name, learning_rate=1e-3)
    start = [p.detach().clone() for p in ball.roles["hidden_matrices"]]
    ball.step(0, factor=1.0)
    for w, before in zip(ball.roles["hidden_matrices"], start, strict=True):
        cosine = (w * before).sum() / before.norm() ** 2
        assert 0 < math.acos(min(cosine.item(), 1.0)) <= 1.001e-3
    ball.run(5, start=1, factor=20.0)
    for w, before in zip(ball.roles["hidden_matrices"], start, strict=True):
        assert abs(w.norm() / before.norm() - 1) < 1e-12
        assert (w - before).norm() > 0.01 * before.norm()


def test_a_hyperball_needs_weights_to_start_from(toy):
    ball = toy("AdamH")
    with torch.no_grad():
        ball.roles["hidden_matrices"][1].zero_()
    with pytest.raises(ValueError, match="not zero at initialisation"):
        ball.solver.get_optimizer(ball.roles)


def test_a_hyperball_keeps_its_rate_when_a_step_fails(toy):
    """The optimizer that it holds steps at another rate, which is undone."""
    ball = toy("AdamH")
    for p in ball.parameters:
        p.grad = torch.ones_like(p)
    hidden, _ = ball.optimizer.optimizers
    hidden.base.step = None
    with pytest.raises(TypeError):
        ball.optimizer.step()
    assert hidden.param_groups[0]["lr"] == 0.01


def test_roots_of_matrices_together_are_those_of_each():
    """To the bit; one that isn't finite keeps the root it has, and doesn't
    touch the others'."""
    generator = torch.Generator().manual_seed(0)
    matrices = [
        a @ a.T for a in torch.randn(3, 6, 6, generator=generator)
    ]
    matrices[1][2, 2] = torch.inf
    alone = [torch.eye(6) for _ in matrices]
    for matrix, out in zip(matrices, alone, strict=True):
        inverse_fourth_roots([matrix], [out])
    together = [torch.eye(6) for _ in matrices]
    inverse_fourth_roots(matrices, together)
    assert distance(together, alone) == 0
    assert torch.equal(together[1], torch.eye(6))
    for i in (0, 2):
        fourth = torch.linalg.matrix_power(together[i].double(), 4)
        torch.testing.assert_close(
            fourth @ matrices[i].double(), torch.eye(6).double(),
            rtol=0, atol=0.02,
        )


def test_schedule_free_evaluates_the_average(toy):
    """Evaluation shows x; training goes on from y as if it had not."""
    free = toy("Schedule-free AdamW").run(4)
    trained = free.weights()
    free.optimizer.eval()
    evaluated = free.weights()
    free.optimizer.train()
    roles = [role for role in SHAPES for _ in SHAPES[role]]
    gradients = list(zip(*(free.gradients(t) for t in range(4)), strict=True))
    expected = [
        REFERENCES["schedule_free"](
            free.solver, role, w, gradient, FACTORS[:4], evaluated=True
        ) for role, w, gradient in zip(
            roles, free.initial, gradients, strict=True
        )
    ]
    assert distance(evaluated, expected) < 1e-9
    assert distance(free.weights(), trained) < 1e-12
    assert distance(evaluated, trained) > 1e-3
