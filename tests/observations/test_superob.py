import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.observations import Dense, Diagonal, Observation, superob

GRID = sphere.cell_centred(18, 36)  # 10 degrees
#                     one cell ----  at Greenwich  masked  alone  nowhere
LATITUDE = jnp.asarray([41.0, 44.0, 1.0, 3.0, 2.0, -50.0, jnp.nan])
LONGITUDE = jnp.asarray([21.0, 24.0, 359.0, 3.0, 0.0, 100.0, 0.0])
STD = np.asarray([1.0, 2.0, 1.0, 1.0, 1.0, 0.5, 1.0])
VALUE = np.asarray([1.0, 6.0, 3.0, 5.0, np.nan, 7.0, 9.0])
see = lambda state: jnp.sin(state)


def reports(value=VALUE, std=STD):
    place = {"latitude": LATITUDE, "longitude": LONGITUDE, "height": 10 * LATITUDE}
    return Observation(value, see, Diagonal(std), coordinates=place)


def by_latitude(superobs):
    """Values, errors and places of the filled slots, from the south."""
    filled = np.flatnonzero(superobs.mask)
    order = filled[np.argsort(np.asarray(superobs.coordinates["latitude"])[filled])]
    std = superobs.error.std
    return superobs.value[order], std[order], order


def test_cells_are_averaged_by_their_errors():
    superobs = superob(reports(), GRID, width=5)
    value, std, order = by_latitude(superobs)
    assert superobs.value.shape == (5,)
    # The second has a quarter of the weight of the first: (4 * 1 + 6) / 5.
    np.testing.assert_allclose(value, [7, 4, 2], rtol=1e-14)
    np.testing.assert_allclose(std, [0.5, 0.5**0.5, 0.8**0.5], rtol=1e-14)
    assert superobs.coordinates is not None
    place = {name: where[order] for name, where in superobs.coordinates.items()}
    np.testing.assert_allclose(place["latitude"][:2], [-50, 2], atol=0.01)
    np.testing.assert_allclose(place["longitude"][:2], [100, 1], atol=0.01)
    np.testing.assert_allclose(place["height"][:2], [-500, 20], rtol=1e-12)
    for where in superobs.coordinates.values():
        np.testing.assert_array_equal(np.isnan(where), ~superobs.mask)


def test_innovations_are_averaged_exactly():
    state = jr.normal(jr.key(0), (7,)).at[4].set(jnp.nan)  # the masked one
    superobs = superob(reports(), GRID)
    assert superobs.value.shape == (7,)
    departure = VALUE - np.asarray(see(state))
    residual = superobs.residual(superobs.predict(state))
    _, _, order = by_latitude(superobs)
    expected = [departure[5], (departure[2] + departure[3]) / 2]
    expected += [(4 * departure[0] + departure[1]) / 5]
    np.testing.assert_allclose(residual[order], expected, rtol=1e-12)
    gradient = jax.grad(superobs.log_prob)(state.at[4].set(0.0))
    assert np.isfinite(gradient).all()
    assert gradient[4] == gradient[6] == 0


def test_independent_alike_reports_lose_nothing():
    # Where all see the same thing, the mean is sufficient: the posterior is the same.
    value, state = jr.normal(jr.key(1), (7,)), jnp.asarray(0.3)
    place = {"latitude": jnp.full(7, 41.0), "longitude": jnp.full(7, 21.0)}
    same = lambda state: jnp.broadcast_to(state, (7,))
    observation = Observation(value, same, Diagonal(STD), coordinates=place)
    superobs = superob(observation, GRID, width=1)
    slope = jax.grad(lambda state: observation.log_prob(state))(state)
    np.testing.assert_allclose(jax.grad(superobs.log_prob)(state), slope, rtol=1e-12)


def test_shared_errors_do_not_average_out():
    whole = superob(reports(), GRID, width=3, correlation=1.0)
    _, std, _ = by_latitude(whole)
    np.testing.assert_allclose(std, [0.5, 1, 0.8 + 0.4], rtol=1e-14)
    part = superob(reports(), GRID, width=3, correlation=0.5)
    _, std, _ = by_latitude(part)
    np.testing.assert_allclose(std[1], np.sqrt(0.5 * 0.5 + 0.5), rtol=1e-14)


def test_groups_are_not_mixed():
    group = jnp.asarray([0, 1, 0, 0, 0, 0, 0])
    superobs = superob(reports(), GRID, group=group)
    assert superobs.mask.sum() == 4


def test_jit_vmap_and_float32():
    make = lambda value: superob(reports(value), GRID, width=4).value
    values = np.stack([VALUE, np.full(7, np.nan)]).astype(np.float32)
    together = jax.jit(jax.vmap(make))(jnp.asarray(values))
    assert together.dtype == jnp.float32
    np.testing.assert_array_equal(together[0], make(jnp.asarray(values[0])))
    assert np.isnan(together[1]).all()


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`width` is 2, more cells are"):
        superob(reports(), GRID, width=2)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`correlation`"):
        superob(reports(), GRID, correlation=1.5)
    with pytest.raises(ValueError, match="`width` must be at least 1, got 0"):
        superob(reports(), GRID, width=0)
    round_value = eqx.tree_at(
        lambda o: o.period, reports(), 360.0, is_leaf=lambda x: x is None
    )
    with pytest.raises(ValueError, match="no mean of values with a period"):
        superob(round_value, GRID)
    dense = eqx.tree_at(lambda o: o.error, reports(), Dense(np.eye(7)))
    with pytest.raises(ValueError, match="needs independent errors, got Dense"):
        superob(dense, GRID)
