import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import demo, dynamics, ensembles
from skyens.demo import _members


@pytest.fixture(scope="module")
def analyses():
    return demo.open_analyses()


@pytest.fixture(scope="module")
def noisy(analyses):
    model = demo.physics(analyses.grid)
    return demo.fit_model_error(model, analyses, members=8, key=jr.key(0))


def test_members_start_in_pairs_about_the_analyses(analyses, noisy):
    start = demo.starting_members(
        demo.physics(analyses.grid), analyses, 20, key=jr.key(0)
    )
    assert start.shape == (20, 61, 120)
    pairs = np.asarray(start).reshape(10, 2, 61, 120)
    np.testing.assert_allclose(pairs.mean(1), analyses.height[:, 0], atol=2e-3)
    size = np.abs(pairs[:, 0] - analyses.height[:, 0])[:, 37:57].mean()
    assert 1.5 < size < 6
    with pytest.raises(ValueError, match="multiple of 20"):
        demo.starting_members(demo.physics(analyses.grid), analyses, 30, key=jr.key(0))


def test_a_member_is_replayed_bit_for_bit(analyses, noisy):
    start = jnp.asarray(np.repeat(analyses.height[:, 0], 3, axis=0))
    keys = dynamics.member_keys(jr.key(1), 30)
    states = jax.vmap(lambda value, key: noisy.start(value, key=key))(start, keys)
    everyone = demo.forecast(noisy, states, 2, key=jr.key(2))
    one = jax.tree.map(lambda leaf: leaf[23:24], states)
    alone = eqx.filter_jit(ensembles.rollout)(
        noisy,
        one,
        2,
        key=jr.key(2),
        members=np.array([23]),
        width=_members.WIDTH,
        reduce=_members._value,
    )
    np.testing.assert_array_equal(np.asarray(alone[0]), np.asarray(everyone[23]))


def test_persistence_is_dressed_about_the_start(analyses):
    dressed = demo.dressed_persistence(analyses, 10, key=jr.key(0))
    assert dressed.shape == (10, 3, 61, 120)
    start = np.broadcast_to(analyses.height[0, 0], (3, 61, 120))
    np.testing.assert_allclose(dressed.mean(0), start, atol=2e-3)
    # A longitude turn keeps the size of a change; it grows as the root of the lead.
    change = np.sqrt(np.mean((dressed - start) ** 2, axis=(0, 2, 3)))
    np.testing.assert_allclose(change / change[0], np.sqrt([1, 2, 3]), rtol=1e-3)


def test_stations_pull_members_to_the_truth(analyses, noisy):
    keys = dynamics.member_keys(jr.key(1), 20)
    start = demo.starting_members(
        demo.physics(analyses.grid), analyses, 20, key=jr.key(0)
    )
    states = jax.vmap(lambda value, key: noisy.start(value, key=key))(start, keys)
    at_12 = demo.forecast(noisy, states, 2, key=jr.key(2), reduce=lambda state: state)
    at_12 = jax.tree.map(lambda leaf: leaf[:, -1], at_12)
    analysed, info, observation = demo.assimilate(at_12, analyses, key=jr.key(3))
    assert int(info.used) == observation.value.size > 300
    np.testing.assert_array_equal(analysed["noise"], at_12["noise"])
    error = lambda value: np.sqrt(
        np.mean((np.asarray(value).mean(0) - analyses.truth[0])[37:57] ** 2)
    )
    assert error(analysed["value"]) < 0.8 * error(at_12["value"])
