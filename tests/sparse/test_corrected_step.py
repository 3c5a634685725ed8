import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from skyens.dynamics import KuramotoSivashinsky, rollout
from skyens.sparse import (
    CorrectedStep,
    Endpoint,
    Library,
    Simpson,
    SpectralDerivative,
    Term,
    Trapezoid,
    polynomials,
    refine,
)

MISSING = jnp.array([0.3, -0.8, 0.0])
DAMPED = Library(
    [
        Term("cube", lambda u: jnp.stack([u[0] ** 3, 0 * u[1]])),
        Term("drag", lambda u: jnp.stack([0 * u[0], u[1] * u[0] ** 2])),
        Term("sum", lambda u: jnp.stack([u[0] + u[1], u[1]])),
    ]
)
START = jnp.array([0.9, -0.4])
STARTS = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 2)))


def flow(dt, coefficients, state):
    """A pendulum and what is added to it: many small steps of Runge and Kutta."""
    small = dt / 32
    model = lambda u: jnp.stack([u[1], -2 * jnp.sin(u[0])])
    right = lambda u: model(u) + DAMPED.tendency(u, coefficients)

    def step(u, _):
        k1 = right(u)
        k2 = right(u + small / 2 * k1)
        k3 = right(u + small / 2 * k2)
        k4 = right(u + small * k3)
        return u + small / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(step, state, length=32)[0]


class Model(eqx.Module):
    dt: float

    def __call__(self, state, forcing=None, *, key=None):
        return flow(self.dt, jnp.zeros(3, state.dtype), state)


def corrected(rule, dt, coefficients=MISSING):
    rules = {"end": Endpoint(), "trapezoid": Trapezoid()}
    rules["simpson"] = Simpson(Model(dt / 2))
    return CorrectedStep(Model(dt), DAMPED, coefficients, dt=dt, quadrature=rules[rule])


@pytest.mark.parametrize(
    ("rule", "order"), [("end", 1), ("trapezoid", 2), ("simpson", 3)]
)
def test_it_solves_the_whole_equation_to_its_order(rule, order):
    exact = jax.jit(flow)(0.8, MISSING, START)
    wrong = []
    for steps in (8, 16):
        step = corrected(rule, 0.8 / steps)
        later = eqx.filter_jit(rollout)(step, START, steps)[-1]
        wrong.append(np.abs(later - exact).max())
    assert wrong[0] < 0.1
    assert 2**order / 1.4 < wrong[0] / wrong[1] < 2**order * 1.6


def test_without_error_it_is_the_model():
    for rule in ("end", "trapezoid", "simpson"):
        step = corrected(rule, 0.2, jnp.zeros(3))
        np.testing.assert_allclose(step(START), Model(0.2)(START), rtol=1e-12)


def test_layers_may_have_coefficients_of_their_own():
    still = lambda state, forcing=None, *, key=None: state
    library = Library([Term("one", jnp.ones_like), Term("itself", lambda s: s)])
    coefficients = jnp.array([[1.0, 0.0], [0.0, -2.0]])
    step = CorrectedStep(still, library, coefficients, dt=0.1, quadrature=Endpoint())
    state = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    expected = jnp.stack([state[0] + 0.1, 0.8 * state[1]])
    np.testing.assert_allclose(step(state), expected, rtol=1e-12)


def test_forcing_and_key_reach_the_model():
    def step(state, forcing=None, *, key=None):
        return state + forcing + jax.random.normal(jnp.asarray(key), state.shape)

    library = Library([Term("itself", lambda s: s)])
    key, push = jax.random.key(0), jnp.array([1.0, 2.0])
    for rule in (Endpoint(), Trapezoid(), Simpson(step)):
        whole = CorrectedStep(step, library, jnp.zeros(1), dt=0.1, quadrature=rule)
        expected = step(START, push, key=key)
        np.testing.assert_allclose(whole(START, push, key=key), expected, rtol=1e-12)


def test_gradients_in_the_coefficients_match_finite_differences():
    @jax.jit
    def loss(coefficients):
        return jnp.sum(rollout(corrected("simpson", 0.2, coefficients), START, 3) ** 2)

    slopes = jax.grad(loss)(MISSING)
    for i in range(3):
        shift = 1e-6 * np.eye(3)[i]
        expected = (loss(MISSING + shift) - loss(MISSING - shift)) / 2e-6
        np.testing.assert_allclose(slopes[i], expected, rtol=1e-6)


def test_members_map_and_single_precision_stays():
    step = eqx.filter_jit(lambda u: jax.vmap(corrected("simpson", 0.2))(u))
    single = step(STARTS.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, step(STARTS), atol=1e-6)


def test_refinement_is_nonlinear_least_squares_on_the_support():
    dt, rule = 0.3, Simpson(Model(0.15))
    after = jax.vmap(lambda u: flow(dt, MISSING, u))(STARTS)
    after = after + 1e-3 * np.random.default_rng(1).normal(size=after.shape)
    first = jnp.array([0.2, -0.5, 0.0])
    result = eqx.filter_jit(refine)(
        Model(dt), STARTS, after, DAMPED, first, dt=dt, quadrature=rule
    )
    assert result.converged
    assert result.coefficients[2] == 0

    @jax.jit
    def residuals(two):
        step = CorrectedStep(
            Model(dt), DAMPED, jnp.append(two, 0.0), dt=dt, quadrature=rule
        )
        return jnp.ravel(jax.vmap(step)(STARTS) - after) / dt

    theirs = least_squares(residuals, first[:2], xtol=1e-12, ftol=1e-12, gtol=1e-12)
    np.testing.assert_allclose(result.coefficients[:2], theirs.x, rtol=1e-6)
    rms = np.sqrt(2 * theirs.cost / after.size)
    np.testing.assert_allclose(result.residual, rms, rtol=1e-6)
    rms = np.sqrt(np.mean(np.asarray(residuals(first[:2])) ** 2))
    np.testing.assert_allclose(result.residual_before, rms, rtol=1e-10)


def test_refinement_says_when_it_is_not_done():
    after = jax.vmap(lambda u: flow(0.3, MISSING, u))(STARTS)
    first = jnp.array([0.05, -0.1, 0.1])
    result = refine(
        Model(0.3),
        STARTS,
        after,
        DAMPED,
        first,
        dt=0.3,
        quadrature=Trapezoid(),
        steps=1,
    )
    assert not result.converged


def test_forecasts_with_what_was_missing_are_better():
    size, length, dt = 64, 22.0, 0.1
    truth = KuramotoSivashinsky(size, length, dt)
    model = KuramotoSivashinsky(size, length, dt, uxx=0.6)
    half = KuramotoSivashinsky(size, length, dt / 2, uxx=0.6)
    library = polynomials(SpectralDerivative(length), powers=1, orders=2)
    coefficients = jnp.asarray([-0.4 * (name == "u_xx") for name in library.names])
    better = CorrectedStep(
        model, library, coefficients, dt=dt, quadrature=Simpson(half)
    )
    run = eqx.filter_jit(rollout)
    start = run(truth, jnp.asarray(np.sin(2 * np.pi * truth.points / length)), 500)[-1]
    true = run(truth, start, 100)[-1]
    wrong = [
        np.sqrt(np.mean((run(s, start, 100)[-1] - true) ** 2)) for s in (model, better)
    ]
    assert wrong[0] > 0.3 * np.std(true)
    assert wrong[1] < 0.01 * wrong[0]


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`dt` must be one positive number"):
        CorrectedStep(Model(0.1), DAMPED, MISSING, dt=-0.1, quadrature=Endpoint())
    arguments = Model(0.1), STARTS, STARTS, DAMPED, MISSING
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        refine(*arguments, dt=0.1, quadrature=Endpoint(), steps=0)
