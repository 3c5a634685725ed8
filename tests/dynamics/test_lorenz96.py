import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from skyens.dynamics import Lorenz96, TwoScaleLorenz96, rollout

START = jnp.full(40, 8.0).at[0].add(0.01)


def lorenz(_, x, forcing=8.0):
    """By its definition, index by index."""
    n = len(x)
    return [
        (x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + np.broadcast_to(forcing, n)[i]
        for i in range(n)
    ]


def two_scales(_, z, size, fast, forcing=20.0, h=1.0, b=10.0, c=10.0):
    x, y = z[:size], z[size:]
    n = len(y)
    slow = np.array(lorenz(0, x, forcing)) - h * c / b * y.reshape(size, fast).sum(1)
    small = [
        c * b * y[(j + 1) % n] * (y[j - 1] - y[(j + 2) % n])
        - c * y[j]
        + h * c / b * x[j // fast]
        for j in range(n)
    ]
    return np.concatenate([slow, small])


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
    start = jr.normal(jr.key(1), (6,)) * 3
    exact = solve_ivp(lorenz, (0, 0.4), start, rtol=1e-12, atol=1e-12).y[:, -1]
    error = [
        np.abs(rollout(Lorenz96(6, dt=dt), start, round(0.4 / dt))[-1] - exact).max()
        for dt in (0.02, 0.01)
    ]
    assert error[1] < 1e-5
    assert 12 < error[0] / error[1] < 20  # 2**4, near enough


def test_climate_and_lyapunov_exponent_are_the_known_ones():
    @jax.jit
    def run():
        states = rollout(Lorenz96(), START, 5000)[1000:]
        return states, growth(lambda state: Lorenz96()(state), states[-1], 20_000)

    states, exponent = run()
    # Lorenz (1996): mean 2.3, standard deviation 3.6; Karimi & Paul (2010), Chaos 20,
    # 043105: a largest exponent of 1.67.
    assert abs(np.mean(states) - 2.34) < 0.1
    assert abs(np.std(states) - 3.64) < 0.1
    assert abs(exponent / 0.05 - 1.67) < 0.06


def test_energy_changes_by_forcing_and_damping_alone():
    # The advection conserves sum(x**2) / 2 and shrinks no volume.
    step, state = Lorenz96(7, 3.0), jr.normal(jr.key(2), (7,))
    power = jnp.vdot(state, step.tendency(state))
    np.testing.assert_allclose(power, 3 * state.sum() - (state**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(jnp.trace(jax.jacobian(step.tendency)(state)), -7)


def test_forcings_of_model_and_step_add_up_site_by_site():
    one = jr.normal(jr.key(3), (5,))
    both = Lorenz96(5, 8.0 + one)(jnp.arange(5.0))
    apart = Lorenz96(5)(jnp.arange(5.0), one)
    np.testing.assert_allclose(both, apart, rtol=1e-12)


def test_two_scales_are_the_solution_and_one_where_they_do_not_couple():
    slow = jr.normal(jr.key(4), (4,)) * 3
    fast = jr.normal(jr.key(5), (4, 3)) * 0.3
    start = np.concatenate([slow, fast.reshape(-1)])
    right = lambda t, z: two_scales(t, z, 4, 3)
    exact = solve_ivp(right, (0, 0.05), start, rtol=1e-12, atol=1e-12).y[:, -1]
    world = TwoScaleLorenz96(4, 3, dt=0.0025)
    later = jax.tree.map(
        lambda x: x[-1], rollout(world, {"slow": slow, "fast": fast}, 20)
    )
    np.testing.assert_allclose(later["slow"], exact[:4], atol=1e-6)
    np.testing.assert_allclose(later["fast"].reshape(-1), exact[4:], atol=1e-6)
    alone = TwoScaleLorenz96(4, 3, 8.0, dt=0.05, coupling=0.0)
    slowly = alone({"slow": slow, "fast": fast})["slow"]
    np.testing.assert_allclose(slowly, Lorenz96(4)(slow), rtol=1e-12)


def test_the_gradient_in_the_forcing_matches_finite_differences():
    loss = lambda forcing: jnp.sum(rollout(Lorenz96(40, forcing), START, 40)[-1] ** 2)
    loss = jax.jit(loss)
    difference = (loss(8 + 1e-5) - loss(8 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(8.0), difference, rtol=1e-6)


def test_members_map_and_keep_their_dtype():
    members = 3 * jr.normal(jr.key(6), (3, 40), jnp.float32)
    later = eqx.filter_jit(lambda x: jax.vmap(Lorenz96())(x))(members)
    assert later.dtype == jnp.float32
    exact = jax.vmap(Lorenz96())(members.astype(float))
    np.testing.assert_allclose(later, exact, rtol=1e-4, atol=1e-5)
    small = {"slow": members[0, :4], "fast": 0.1 * members[0, :12].reshape(4, 3)}
    doubled = jax.tree.map(lambda x: x.astype(float), small)
    world = TwoScaleLorenz96(4, 3)
    later, exact = world(small), world(doubled, jax.tree.map(jnp.zeros_like, small))
    for name in small:
        assert later[name].dtype == jnp.float32
        np.testing.assert_allclose(later[name], exact[name], rtol=1e-4, atol=1e-5)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`size` must be at least 4, got 3"):
        Lorenz96(3)
    with pytest.raises(ValueError, match="`dt` must be positive and finite, got nan"):
        Lorenz96(dt=float("nan"))
    with pytest.raises(ValueError, match=r"one number or 40, got the shape \(5,\)"):
        Lorenz96(forcing=jnp.ones(5))
    with pytest.raises(ValueError, match=r"must have the shape \(40,\), got \(39,\)"):
        Lorenz96()(jnp.ones(39))
    with pytest.raises(ValueError, match="at least 4 and `fast` 1, got 4 and 0"):
        TwoScaleLorenz96(4, 0)
    with pytest.raises(ValueError, match=r"`state\['fast'\]` must have the shape"):
        TwoScaleLorenz96(4, 3)({"slow": jnp.ones(4), "fast": jnp.ones((3, 4))})
