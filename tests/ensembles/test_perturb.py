import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.ensembles import HemisphericRMS, breed, centred, failed_members


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


GRID = sphere.gauss_legendre(9, 16)


@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize(("analyses", "pairs"), [(1, 1), (3, 2)])
def test_members_stand_in_pairs_about_their_analysis(analyses, pairs, shape):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(analyses, *shape))
    d = rng.normal(size=(analyses, pairs, *shape))
    members = np.asarray(jax.jit(centred)(a, d))
    expected = [
        a[i] + sign * d[i, j]
        for i in range(analyses)
        for j in range(pairs)
        for sign in (1, -1)
    ]
    np.testing.assert_array_equal(members, np.stack(expected))
    means = members.reshape(analyses, 2 * pairs, *shape).mean(axis=1)
    np.testing.assert_allclose(means, a, atol=1e-12)


def test_centred_keeps_float32_and_reports_other_shapes():
    a, d = jnp.zeros((2, 5), jnp.float32), jnp.zeros((2, 3, 5), jnp.float32)
    assert centred(a, d).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"shape \(2, 5\), got \(2, 3, 4\)"):
        centred(a, d[..., :4])
    with pytest.raises(ValueError, match=r"shape \(2, 5\), got \(1, 3, 5\)"):
        centred(a, d[:1])


def test_the_norm_is_each_hemisphere_s_amplitude_blended_across_the_tropics():
    latitude = GRID.latitude[:, None]
    wave = np.sqrt(2) * np.cos(np.deg2rad(3 * GRID.longitude))
    amplitude = np.where(latitude >= 20, 7.0, np.where(latitude <= -20, 2.0, 99.0))
    norm = HemisphericRMS(GRID)(jnp.asarray(amplitude * wave))
    expected = np.interp(GRID.latitude, [-20, 20], [2.0, 7.0])[:, None]
    np.testing.assert_allclose(norm, expected, rtol=1e-12)


def test_the_norm_weighs_rows_by_their_area():
    # The square of sin(latitude) over a cap: (1 - s^3) / (3 (1 - s)), s = sin(20).
    grid = sphere.cell_centred(180, 4)
    sine = np.broadcast_to(np.sin(np.deg2rad(grid.latitude))[:, None], grid.shape)
    s = np.sin(np.deg2rad(20))
    expected = np.sqrt((1 - s**3) / (3 * (1 - s)))
    norm = HemisphericRMS(grid)(jnp.asarray(sine))
    np.testing.assert_allclose(norm, np.full((180, 1), expected), rtol=1e-4)


@settings(deadline=None, max_examples=8)
@given(
    latitude=st.sampled_from([10.0, 20.0, 30.0, 40.0, 60.0]),
    scale=st.floats(-1e3, 1e3).filter(lambda scale: abs(scale) > 1e-3),
    make=st.sampled_from([sphere.equiangular, sphere.cell_centred]),
    north_first=st.booleans(),
)
def test_the_norm_scales_and_mirrors_with_its_field(latitude, scale, make, north_first):
    grid = make(19, 4, north_first=north_first)  # every 10 degrees with poles
    norm = jax.jit(HemisphericRMS(grid, latitude).__call__)
    field = normal(2, *grid.shape)
    one = np.asarray(norm(field))
    np.testing.assert_allclose(norm(scale * field), abs(scale) * one, rtol=1e-12)
    np.testing.assert_allclose(norm(field[:, ::-1]), one[:, ::-1], rtol=1e-12)
    np.testing.assert_allclose(norm(field[0]), one[0], rtol=1e-12)


def test_the_norm_of_nothing_is_0_with_a_finite_gradient():
    norm = HemisphericRMS(GRID)
    for dtype in (jnp.float32, jnp.float64):
        nothing = jnp.zeros((2, *GRID.shape), dtype)
        chex.assert_trees_all_equal(norm(nothing), jnp.zeros((2, 9, 1), dtype))
        slope = jax.jit(jax.grad(lambda x: norm(x).sum()))(nothing)
        chex.assert_trees_all_equal(slope, nothing)


def test_a_norm_without_rows_is_reported():
    with pytest.raises(ValueError, match=r"last rows, 75\.\d+ degrees, got 80\.0"):
        HemisphericRMS(GRID, 80.0)
    with pytest.raises(ValueError, match=r"above 0 .* got 0\.0"):
        HemisphericRMS(GRID, 0.0)
    with pytest.raises(ValueError, match="does not lie on this"):
        HemisphericRMS(GRID)(jnp.zeros((8, 16)))


EIGENVALUES = np.array([-1.7, 0.9, 0.5, 0.2])
VECTORS = np.random.default_rng(3).normal(size=(4, 4))
MATRIX = jnp.asarray(VECTORS @ np.diag(EIGENVALUES) @ np.linalg.inv(VECTORS))


def linear(state, forcing=None, *, key=None):
    return MATRIX @ state + 1.0


def test_breeding_finds_the_leading_eigenvector_of_a_linear_step():
    analyses = jnp.asarray(
        normal(60, 4)
    )  # a linear step grows the same about any state
    run = jax.jit(
        lambda seed: breed(linear, analyses, seed, amplitude=0.01, norm=jnp.linalg.norm)
    )
    bred, growth = run(normal(4, seed=1))
    leading = VECTORS[:, 0] / np.linalg.norm(VECTORS[:, 0])
    # The next eigenvalue falls off as (0.9 / 1.7)^60; what is added and taken away
    # leaves 1e-16 of an analysis, 1e-14 of the amplitude.
    np.testing.assert_allclose(np.abs(leading @ bred), 0.01, rtol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(bred), 0.01, rtol=1e-12)
    assert growth.shape == (60,)
    np.testing.assert_allclose(growth[-5:], 1.7, rtol=1e-10)


def storm(state, forcing=None, *, key=None):
    """A nonlinear step of fields, noisy where keyed."""
    grown = state + 0.5 * jnp.sin(state) * jnp.roll(state, 1, -1)
    if key is None:
        return grown
    return grown * (jr.key_data(key).astype(state.dtype) / 2**32).sum()


@pytest.mark.parametrize("key", [None, jr.key(5)])
def test_breeding_is_grow_rescale_and_go_on_from_the_next_analysis(key):
    analyses = 5 * normal(3, 2, *GRID.shape)
    seed = normal(2, *GRID.shape, seed=1)
    amplitude = np.array([0.5, 0.1])[:, None, None]
    norm = HemisphericRMS(GRID)
    forward, measure = jax.jit(storm), jax.jit(norm.__call__)
    breed_all = lambda a, s: breed(storm, a, s, amplitude=amplitude, norm=norm, key=key)
    bred, growth = jax.jit(breed_all)(analyses, seed)
    perturbation = seed
    for number, analysis in enumerate(analyses):
        k = None if key is None else jr.fold_in(key, number)
        both = [forward(analysis + d, key=k) for d in (perturbation, 0)]
        grown = np.asarray(both[0]) - np.asarray(both[1])
        size = np.asarray(measure(grown))
        np.testing.assert_allclose(growth[number], size / amplitude, rtol=1e-10)
        perturbation = grown * amplitude / size
    np.testing.assert_allclose(bred, perturbation, rtol=1e-10)


def test_trees_are_rescaled_leaf_by_leaf():
    def step(state, forcing=None, *, key=None):
        return {"a": 3 * state["a"], "b": state["b"] * 0.5}

    analyses = {"a": jnp.ones((2, 4)), "b": jnp.ones((2, 3))}
    seed = {"a": jnp.ones(4), "b": jnp.ones(3)}
    norm = lambda x: jnp.abs(x).max()
    amplitude = {"a": 0.2, "b": 7.0}
    bred, growth = breed(step, analyses, seed, amplitude=amplitude, norm=norm)
    chex.assert_trees_all_close(
        bred, {"a": jnp.full(4, 0.2), "b": jnp.full(3, 7.0)}, rtol=1e-12
    )
    second = {"a": growth["a"][1], "b": growth["b"][1]}
    chex.assert_trees_all_close(
        second, {"a": jnp.asarray(3.0), "b": jnp.asarray(0.5)}, rtol=1e-12
    )


def test_nothing_to_breed_stays_nothing_with_finite_gradients():
    norm = HemisphericRMS(GRID)
    analyses = jnp.asarray(normal(2, *GRID.shape), jnp.float32)

    @jax.jit
    def bred_and_slope(seed):
        run = lambda s: breed(storm, analyses, s, amplitude=0.5, norm=norm)
        return run(seed), jax.grad(lambda s: run(s)[0].sum())(seed)

    # A perturbation of one hemisphere alone leaves nothing to measure in the other.
    north = np.broadcast_to(GRID.latitude[:, None] >= 20, GRID.shape)
    for seed in (np.zeros(GRID.shape), np.where(north, 1.0, 0.0)):
        (bred, growth), slope = bred_and_slope(seed.astype(np.float32))
        chex.assert_tree_all_finite((bred, growth, slope))
        assert bred.dtype == growth.dtype == jnp.float32
        bred = np.asarray(bred)
        assert (bred[~north] == 0).all()
        assert (bred[north] == 0).all() == (seed == 0).all()


def test_members_are_bred_side_by_side():
    analyses = jnp.asarray(normal(2, *GRID.shape))
    seeds = normal(3, *GRID.shape, seed=1)
    norm = HemisphericRMS(GRID)
    one = lambda seed: breed(storm, analyses, seed, amplitude=0.5, norm=norm)
    mapped = jax.jit(jax.vmap(one))(seeds)
    alone = jax.tree.map(lambda *x: np.stack(x), *map(jax.jit(one), seeds))
    chex.assert_trees_all_close(mapped, alone, rtol=1e-10)


class FailedMembersTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_a_member_fails_by_one_number_in_any_leaf(self):
        trajectory = {
            "x": jnp.ones((5, 3, 4)).at[1, 2, 3].set(jnp.nan),
            "y": jnp.ones((5, 2), jnp.float32).at[3, 0].set(-jnp.inf),
            "z": jnp.ones(5, complex).at[4].set(1j * jnp.nan),
            "clock": jnp.zeros((5, 3), int),
        }
        failed = self.variant(failed_members)(trajectory)
        np.testing.assert_array_equal(failed, [False, True, False, True, True])


def test_sound_and_empty_trajectories_have_not_failed():
    assert not failed_members(jnp.full((4, 3), 1e300)).any()
    np.testing.assert_array_equal(failed_members(jnp.zeros((4, 0, 3))), [False] * 4)
