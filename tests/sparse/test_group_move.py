import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse._evidence import System, log_evidence, scaled, statistics
from skyens.sparse._group_move import group_move

ROWS = 40
GROUPS = np.array([0, 1, 1, 0, 2, 2])
SAME = jnp.asarray(GROUPS[:, None] == GROUPS[None], float)


def system(noise) -> System:
    random = np.random.default_rng(2)
    phi = random.normal(size=(ROWS, 6)) + random.normal(size=(ROWS, 1))
    y = phi @ np.array([1.0, 0, 0, -1, 0.5, 0]) + 0.5 * random.normal(size=ROWS)
    triangle = jnp.asarray(np.linalg.qr(np.column_stack([phi, y]), mode="r"))
    parts = triangle[:-1, :-1], triangle[:-1, -1], triangle[-1, -1] ** 2
    return scaled(*parts, jnp.asarray(float(ROWS)), noise, SAME)[0]


@pytest.mark.parametrize("noise", [None, 0.5])
@pytest.mark.parametrize("start", [(0, 0, 0), (64, 0.5, 0), (1e4, 1e4, 1e4)])
def test_it_is_the_best_of_all_changes_of_one_group(noise, start):
    at = system(noise)
    evidence = jax.jit(jax.vmap(lambda r: log_evidence(at, statistics(at, r))))
    ratio = jnp.asarray(np.array(start, float)[GROUPS])
    move = jax.jit(lambda r: group_move(at, SAME, r, statistics(at, r), True))
    changed, count = move(ratio)
    assert count == 1
    tries = np.append(0, 2.0 ** np.arange(-8, 60))
    best = -np.inf
    for group in range(3):
        several = jnp.where(jnp.asarray(group == GROUPS)[None], tries[:, None], ratio)
        best = max(best, float(np.max(evidence(several))))
    np.testing.assert_allclose(evidence(changed[None])[0], best, rtol=1e-9)


def test_it_stays_where_nothing_gains_or_it_is_not_enabled():
    at = system(None)
    nothing = at._replace(target=jnp.zeros(6).at[0].set(1e-12), rest=jnp.ones(()))
    ratio = jnp.zeros(6)
    for where, enabled in ((nothing, True), (at, False)):
        now = statistics(where, ratio)
        changed, count = group_move(where, SAME, ratio, now, jnp.asarray(enabled))
        assert count == 0
        np.testing.assert_array_equal(changed, ratio)
