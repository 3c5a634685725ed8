import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from skyens.dynamics import Lorenz63, rollout

STATE = jnp.asarray([1.509, -1.531, 25.46])


def lorenz(_, x, sigma=10.0, rho=28.0, beta=8 / 3):
    return sigma * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - beta * x[2]


def growth(step, state, steps):
    """The mean logarithm of the growth of a small difference, per step."""

    def body(carry, _):
        state, tangent = carry
        state, tangent = jax.jvp(step, (state,), (tangent,))
        size = jnp.linalg.norm(tangent)
        return (state, tangent / size), jnp.log(size)

    tangent = jr.normal(jr.key(0), state.shape, state.dtype)
    _, logarithms = jax.lax.scan(body, (state, tangent), length=steps)
    return jnp.mean(logarithms[steps // 20 :])


def test_it_is_the_solution_to_fourth_order():
    exact = solve_ivp(lorenz, (0, 0.4), STATE, rtol=1e-12, atol=1e-12).y[:, -1]
    error = [
        np.abs(rollout(Lorenz63(dt), STATE, round(0.4 / dt))[-1] - exact).max()
        for dt in (0.02, 0.01)
    ]
    assert error[1] < 1e-4
    assert 12 < error[0] / error[1] < 20  # 2**4, near enough


def test_the_lyapunov_exponent_is_the_known_one():
    start = rollout(Lorenz63(), STATE, 1000)[-1]
    exponent = jax.jit(growth, static_argnums=(0, 2))(
        lambda state: Lorenz63()(state), start, 40_000
    )
    # Sprott (2003) gives 0.9056; over 400 units of time it varies by about 0.02.
    assert abs(exponent / 0.01 - 0.9056) < 0.06


def test_volumes_shrink_at_the_rate_of_the_divergence():
    step = Lorenz63(0.005, sigma=9.0, rho=30.0, beta=2.0)
    determinant = jnp.linalg.det(jax.jacobian(step)(STATE))
    np.testing.assert_allclose(jnp.log(determinant), -(9 + 1 + 2) * 0.005, rtol=1e-5)


def test_a_forcing_is_added_to_the_tendency():
    push = np.array([1.0, -2.0, 3.0])
    forced = lambda t, x: np.add(lorenz(t, x), push)
    exact = solve_ivp(forced, (0, 0.01), STATE, rtol=1e-12, atol=1e-12).y[:, -1]
    later = Lorenz63()(STATE, jnp.asarray(push))
    np.testing.assert_allclose(later, exact, atol=1e-6)


def test_gradients_in_parameters_match_finite_differences():
    def loss(sigma, rho, beta):
        step = Lorenz63(sigma=sigma, rho=rho, beta=beta)
        return jnp.sum(rollout(step, STATE, 20)[-1] ** 2)

    at = 10.0, 28.0, 8 / 3
    slopes = jax.grad(loss, argnums=(0, 1, 2))(*at)
    for i, slope in enumerate(slopes):
        ahead, behind = (
            loss(*(x + sign * 1e-5 * (i == j) for j, x in enumerate(at)))
            for sign in (1, -1)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


def test_members_map_and_keep_their_dtype():
    members = (
        STATE[None].astype(jnp.float32) + jnp.arange(4.0, dtype=jnp.float32)[:, None]
    )
    later = eqx.filter_jit(lambda x: jax.vmap(Lorenz63())(x))(members)
    assert later.dtype == jnp.float32
    exact = jax.vmap(Lorenz63())(members.astype(float))
    np.testing.assert_allclose(later, exact, rtol=1e-5)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`dt` must be positive and finite, got 0"):
        Lorenz63(0.0)
    with pytest.raises(ValueError, match=r"`state` must have the shape \(3,\), got"):
        Lorenz63()(jnp.ones(4))
