import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import EM, MacKay, Sequential
from skyens.sparse._evidence import System, log_evidence, scaled, slope, statistics

ROWS, TERMS = 60, 8
solve = eqx.filter_jit(lambda update, system: update.solve(system))


def system(kind="plain") -> System:
    random = np.random.default_rng(3)
    phi = random.normal(size=(ROWS, TERMS))
    if kind == "overlap":
        x = np.linspace(-1, 1, ROWS)[:, None]
        phi = np.exp(-((x - np.linspace(-1, 1, TERMS)) ** 2) / 0.3)
    if kind == "empty":
        phi[:, 2:] = 0
    y = phi @ np.array([1.0, -1, 0, 0, 0.5, 0, 0, 0]) + 0.3 * random.normal(size=ROWS)
    triangle = jnp.asarray(np.linalg.qr(np.column_stack([phi, y]), mode="r"))
    parts = triangle[:-1, :-1], triangle[:-1, -1], triangle[-1, -1] ** 2
    return scaled(*parts, jnp.asarray(float(ROWS)), None)[0]


@pytest.mark.parametrize("update", [Sequential(), MacKay(), EM()])
@pytest.mark.parametrize("kind", ["plain", "overlap", "empty"])
def test_kept_terms_are_stationary_and_their_statistics_are_given(update, kind):
    at = system(kind)
    found = solve(update, at)
    assert found.converged
    now = jax.jit(statistics)(at, found.ratio)
    chex.assert_trees_all_close(found.now, now, rtol=1e-9, atol=1e-9)
    slopes = slope(at, now)
    np.testing.assert_allclose(found.ratio * slopes, 0, atol=1e-5)
    # A pruned term has nothing to gain near 0.
    norms = jnp.sum(at.factor**2, axis=0)
    assert np.all(slopes[(found.ratio == 0) & (norms > 0)] < 1e-6)
    assert not np.any(found.ratio[norms == 0])


@pytest.mark.parametrize("kind", ["plain", "overlap"])
def test_one_term_at_a_time_ends_as_high_as_a_fixed_point(kind):
    at = system(kind)
    height = lambda update: log_evidence(at, solve(update, at).now)
    assert height(Sequential()) >= height(MacKay()) - 1e-8


def test_steps_that_run_out_are_reported_and_leave_a_whole_answer():
    at = system()
    for update in (Sequential(2), MacKay(2)):
        found = solve(update, at)
        assert not found.converged
        now = statistics(at, found.ratio)
        chex.assert_trees_all_close(found.now, now, rtol=1e-9, atol=1e-9)


def test_systems_are_mapped_over_with_different_numbers_of_steps():
    both = [system(), system("overlap")]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *both)
    found = jax.jit(jax.vmap(Sequential().solve))(stacked)
    assert np.all(found.converged)
    for number, at in enumerate(both):
        alone = solve(Sequential(), at)
        now = jax.tree.map(lambda leaf, number=number: leaf[number], found.now)
        np.testing.assert_allclose(
            log_evidence(at, now), log_evidence(at, alone.now), rtol=1e-10
        )


def test_what_is_not_finite_comes_to_an_end():
    at = system()
    found = solve(Sequential(), at._replace(target=at.target.at[0].set(jnp.nan)))
    assert found.steps < 100
