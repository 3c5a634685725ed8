import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import EKI, EKS, UKI, GaussianPrior, InversionInfo, invert
from skyens.observations import Diagonal, Observation

MEMBERS = 8
generator = np.random.default_rng(0)
ENSEMBLE = {
    "drag": jnp.asarray(generator.normal(size=MEMBERS) + 1.0),
    "heating": jnp.asarray(generator.normal(size=(MEMBERS, 2)), jnp.float32),
    "label": jnp.arange(MEMBERS),
}
VALUES = jnp.asarray([1.0, np.nan, 0.5])


def model(parameters):
    """Two numbers that know of three parameters, and one that is not measured."""
    drag = parameters["drag"]
    one, two = parameters["heating"].astype(float)
    return jnp.stack([drag + one, jnp.log(drag - 100.0), jnp.sin(two) * drag])


OBSERVATION = Observation(VALUES, model, Diagonal(0.3))
run = eqx.filter_jit(
    lambda method, *args, **kwargs: invert(method, *args, key=jr.key(1), **kwargs)
)


class Halve(eqx.Module):
    """Halves what it is given until it is small."""

    count: jax.Array

    def __call__(self, ensemble, observation, *, key):
        half = jax.tree.map(lambda leaf: leaf / 2, ensemble)
        zero = jnp.asarray(0)
        return half, InversionInfo(
            *(4 * [zero]),
            misfit=jnp.max(half),
            time=jnp.asarray(0.0),
            converged=jnp.max(half) < 0.1,
            method=Halve(self.count + 1),
        )


def test_it_stops_where_the_method_has_converged_and_says_when():
    start = jnp.asarray([[1.0], [0.5]])
    result = run(Halve(jnp.asarray(0)), start, OBSERVATION, steps=7)
    np.testing.assert_allclose(result.ensemble, start / 16)
    assert (int(result.steps), int(result.method.count)) == (4, 4)
    assert bool(result.converged)
    expected = [0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0625, 0.0625]
    np.testing.assert_allclose(result.infos.misfit, expected)
    assert result.infos.method is None
    early = run(Halve(jnp.asarray(0)), start, OBSERVATION, steps=2)
    assert (int(early.steps), bool(early.converged)) == (2, False)
    again = run(early.method, early.ensemble, OBSERVATION, steps=7)
    np.testing.assert_allclose(again.ensemble, start / 16)


@pytest.mark.parametrize("method", [EKI(), UKI(), EKS()], ids=["EKI", "UKI", "EKS"])
def test_any_pytree_of_parameters_masks_and_missing_values(method):
    result = run(method, ENSEMBLE, OBSERVATION, steps=60)
    assert result.ensemble["drag"].dtype == jnp.float64
    assert result.ensemble["heating"].dtype == jnp.float32
    assert result.ensemble["label"].dtype == ENSEMBLE["label"].dtype
    assert bool(result.converged)
    assert (int(result.infos.used[0]), int(result.infos.masked[0])) == (2, 1)
    # What is not measured fails everywhere, and that is of no matter.
    assert result.infos.failed.max() == 0
    assert result.infos.misfit[-1] < result.infos.misfit[0]
    assert jnp.isfinite(result.ensemble["drag"]).all()


def test_experiments_batch_and_the_gradient_is_that_of_the_result():
    double = jax.tree.map(lambda leaf: leaf.astype(float), ENSEMBLE)

    def loss(value):
        seen = eqx.tree_at(lambda o: o.value, OBSERVATION, value)
        result = invert(EKI(), double, seen, key=jr.key(1), steps=4)
        return jnp.mean(result.ensemble["drag"] ** 2)

    way = jnp.asarray([1.0, 0.0, -0.5])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(loss)))(
        jnp.stack([jnp.nan_to_num(VALUES) + e * way for e in (-1e-4, 0.0, 1e-4)])
    )
    slope = jnp.vdot(gradient[1], way)
    np.testing.assert_allclose(slope, (value[2] - value[0]) / 2e-4, rtol=1e-5)
    assert float(gradient[1, 1]) == 0


def test_a_prior_whitens_and_reads_an_ensemble():
    factor = generator.normal(size=(3, 3))
    covariance = factor @ factor.T + np.eye(3)
    prior = GaussianPrior({"a": 1.0, "b": jnp.asarray([2.0, 3.0])}, covariance)
    np.testing.assert_array_equal(prior.mean, [1.0, 2.0, 3.0])
    white = prior.whiten(jnp.asarray(factor))
    np.testing.assert_allclose(
        white @ white.T, factor @ np.linalg.solve(covariance, factor.T), rtol=1e-10
    )


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        invert(EKI(), ENSEMBLE, OBSERVATION, key=jr.key(0), steps=0)
    with pytest.raises(ValueError, match="same leading `member` axis"):
        invert(EKI(), {"a": jnp.ones(3), "b": jnp.ones(4)}, OBSERVATION, key=jr.key(0))
    with pytest.raises(ValueError, match="parameters must be real, got complex128"):
        invert(EKI(), jnp.ones((3, 1), complex), OBSERVATION, key=jr.key(0))
    few = jax.tree.map(lambda leaf: leaf[:3], ENSEMBLE)
    with pytest.raises(ValueError, match="more members than that, got 3"):
        invert(EKS(), few, OBSERVATION, key=jr.key(0))
    with pytest.raises(ValueError, match="does not fit a `mean` of 2 entries"):
        GaussianPrior(jnp.ones(2), np.eye(3))
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be positive definite"):
        GaussianPrior(jnp.ones(2), -np.eye(2))
    with pytest.raises(ValueError, match="`key` is needed, to draw failed"):
        EKI()(ENSEMBLE, OBSERVATION)
    prior = GaussianPrior(jnp.ones(2), np.eye(2))
    with pytest.raises(ValueError, match="is of 2 parameters, the ensemble has 3"):
        invert(EKS(prior), ENSEMBLE, OBSERVATION, key=jr.key(0))
