import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings, strategies as st

from skyens.dynamics import ExponentialRungeKutta, ImplicitExplicit
from skyens.dynamics._gravity_waves import GravityWaves

PULL = np.array([0.0, 2e-9, 6e-9, 3e-8, 5e-7])  # s-2 m-1, by degree
DAMPING = np.array([0.0, 0.0, 1e-8, 1e-6, 1e-4])  # s-1
DEPTH = 8000.0
METHODS = [
    ExponentialRungeKutta(),
    ImplicitExplicit(),
    ImplicitExplicit.whitaker_kar(),
]


def waves(damping=DAMPING, pull=PULL):
    column = lambda x: jnp.asarray(x)[None, :, None]
    return GravityWaves(column(pull), jnp.asarray(DEPTH), column(damping))


def matrix(degree, lean=0.0, damping=DAMPING, pull=PULL):
    """The operator on (vorticity, divergence, height) of one degree."""
    table = np.zeros((3, 3))
    table[1, 2], table[2, 1] = pull[degree], -DEPTH
    table -= damping[degree] * np.eye(3)
    frequency = np.sqrt(pull[degree] * DEPTH)
    return table - lean * frequency * np.diag([0, 1, 1])


def random_state(seed, m=2):
    x = np.random.default_rng(seed).normal(size=(3, 2, PULL.size, m))
    x[1, :, 0] = 0  # a divergence has no mean
    return x * np.array([1e-5, 1e-5, 1e2])[:, None, None, None]


def each(matrices, x):
    return np.einsum("lij,jplm->iplm", np.stack(matrices), x)


def close(got, expected, tolerance=1e-12):
    scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_array_less(np.abs(got - expected) / scale, tolerance)


@settings(deadline=None, max_examples=20)
@given(
    time=st.sampled_from([1.0, 30.0, 400.0, 1800.0, 7200.0]),
    lean=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 99),
)
def test_functions_are_those_of_the_dense_matrix(time, lean, seed):
    x = random_state(seed)
    for k, function in enumerate(waves().functions((time,), lean)[0]):
        # The exponential of a bordered matrix holds all phi functions.
        dense = []
        for degree in range(PULL.size):
            border = np.eye(3 * (k + 1), k=3)
            border[:3, :3] = time * matrix(degree, lean)
            dense.append(scipy.linalg.expm(border)[:3, -3:])
        # Squaring the exponential of a matrix in such units loses six digits.
        close(waves().apply(function, jnp.asarray(x)), each(dense, x), 1e-9)


def test_the_operator_its_inverse_and_what_it_leans():
    x, own = random_state(0), waves()
    degrees = range(PULL.size)
    close(own(jnp.asarray(x)), each([matrix(l) for l in degrees], x))
    inverse = [np.linalg.inv(np.eye(3) - 900.0 * matrix(l)) for l in degrees]
    close(own.apply(own.inverse(900.0), jnp.asarray(x)), each(inverse, x))
    more = [matrix(l) - matrix(l, 0.3) for l in degrees]
    np.testing.assert_allclose(
        own.lean(jnp.asarray(x), 0.3), each(more, x), rtol=1e-12, atol=1e-20
    )


@pytest.mark.parametrize(("method", "order"), zip(METHODS, (4, 3, 2), strict=True))
def test_methods_converge_to_the_exact_solution(method, order):
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(3, 3)) * np.outer([1e-5, 1e-5, 1e2], [1e5, 1e5, 1e-2])
    mix = 1e-3 * np.repeat(mix[None], PULL.size, 0)
    mix[0, 1] = 0
    tendency = lambda x: jnp.einsum("lij,jplm->iplm", mix, x)
    x, pull = random_state(2), PULL / 100
    total = [matrix(l, pull=pull) + mix[l] for l in range(PULL.size)]
    expected = each([scipy.linalg.expm(1800.0 * m) for m in total], x)
    errors = []
    for steps in (32, 64, 128):
        step = method.stepper(waves(pull=pull), tendency, 1800.0 / steps)
        body = lambda _, y, step=step: step(y)
        later = jax.jit(jax.lax.fori_loop, static_argnums=(0, 1, 2))(0, steps, body, x)
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        errors.append(np.abs((later - expected) / scale).max())
    assert errors[-1] < 1e-2
    assert np.log2(errors[1] / errors[2]) > order - 0.35


@pytest.mark.parametrize("method", METHODS)
def test_a_steady_state_stays(method):
    x = random_state(3)
    balance = -waves()(jnp.asarray(x))
    step = jax.jit(method.stepper(waves(), lambda _: balance, 1800.0))
    later = step(step(jnp.asarray(x)))
    close(later, x, 1e-12)


@pytest.mark.parametrize("lean", [0.0, ExponentialRungeKutta().lean])
def test_leaning_keeps_waves_that_a_wind_carries_stable(lean):
    # Up to 12 radians a step, carried by a wind of a fifth of the waves' speed.
    frequency = np.linspace(0, 12, 200) / 3600.0
    pull = frequency**2 / DEPTH
    column = lambda x: jnp.asarray(x)[None, :, None]
    own = GravityWaves(column(pull), jnp.asarray(DEPTH), column(0 * pull))
    turn = lambda x: jnp.stack([-x[:, 1], x[:, 0]], 1)
    tendency = lambda x: 0.2 * column(frequency)[None] * turn(x)
    step = ExponentialRungeKutta(lean=lean).stepper(own, tendency, 3600.0)
    x = jnp.zeros((3, 2, 200, 1)).at[2, 0].set(1)
    later = jax.jit(lambda x: jax.lax.fori_loop(0, 500, lambda _, y: step(y), x))(x)
    # The exact flow conserves it.
    energy = lambda x: (
        pull[None] * x[2, :, :, 0] ** 2 + DEPTH * x[1, :, :, 0] ** 2
    ).sum(0)
    growth = np.asarray(energy(later))[1:] / np.asarray(energy(x))[1:]
    assert (growth.max() > 10) if lean == 0 else (growth.max() < 1 + 1e-9)


def test_tableaus_that_do_not_fit_are_reported():
    with pytest.raises(ValueError, match="all four parts of the tableaus, or none"):
        ImplicitExplicit(explicit=((1.0,),))
    with pytest.raises(ValueError, match="do not fit 2 weights"):
        ImplicitExplicit(((1.0,),), ((1.0,),), (0.5, 0.5), (0.5, 0.5))
