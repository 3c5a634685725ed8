import jax.numpy as jnp
import pytest

from skyens.scores import RMSE, SpreadSkill

STATE = RMSE().init((2,))
ENSEMBLE, TRUTH = jnp.zeros((3, 2, 4)), jnp.zeros((2, 4))


@pytest.mark.parametrize(
    ("ensemble", "truth", "more", "message"),
    [
        (ENSEMBLE, TRUTH[0], {}, r"shapes \(3, 2, 4\) and \(4,\)"),
        (ENSEMBLE, jnp.zeros((2, 5)), {}, r"'truth': \(2, 5\)"),
        (ENSEMBLE, TRUTH, {"weights": jnp.ones(3)}, r"'weights': \(1, 3\)"),
        (ENSEMBLE, TRUTH, {"weights": jnp.ones((1, 2, 4, 1))}, "more than 2 axes"),
        (ENSEMBLE, TRUTH, {"where": jnp.ones((2, 2, 4), bool)}, "`where` of shape"),
        (ENSEMBLE[:0], TRUTH, {}, "at least 1 members, got 0"),
        (ENSEMBLE[:, :1], TRUTH[:1], {}, r"init\(shape=\(2,\)\).*shape \(1, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(ensemble, truth, more, message):
    with pytest.raises(ValueError, match=message):
        RMSE().update(STATE, ensemble, truth, **more)


def test_a_spread_needs_two_members():
    stat = SpreadSkill()
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        stat.update(stat.init((2,)), ENSEMBLE[:1], TRUTH)
