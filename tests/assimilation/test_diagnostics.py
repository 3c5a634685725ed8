import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import scores
from skyens.assimilation import (
    ETKF,
    AgainstObservations,
    AgainstTruth,
    Diagnostic,
    Information,
    cycle,
    twin,
)
from skyens.observations import Dense, Diagonal, Index, Observation

KEY = jr.key(21)
TWO = Index(np.arange(2))


def turn(state, forcing=None, *, key):
    angle = 0.3
    rotation = jnp.asarray(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    return 0.95 * rotation @ state + 0.4 * jr.normal(key, state.shape)


def run(diagnostics, times, error=None, members=20):
    error = Diagonal(1.5) if error is None else error
    world = twin(turn, jnp.zeros(2), TWO, error, times, key=KEY, missing=0.1)
    ensemble = jr.normal(jr.key(2), (members, 2))
    return world, jax.jit(
        lambda: cycle(
            turn,
            ETKF(),
            ensemble,
            world.observe,
            world.data,
            key=KEY,
            truth=world.truth,
            diagnostics=diagnostics,
        )
    )()


def test_sums_of_a_cycle_are_those_of_its_ensembles():
    statistics = {
        "desroziers": AgainstObservations(scores.Desroziers(), burn_in=10),
        "ranks": AgainstObservations(scores.RankHistogram(20), burn_in=10),
        "truth": AgainstTruth(scores.SpreadSkill(), burn_in=10),
        "before": AgainstTruth(scores.RMSE(), background=True),
        "info": Information(burn_in=10),
    }
    assert all(isinstance(each, Diagnostic) for each in statistics.values())
    world, result = run(statistics, times=40)
    late = slice(10, None)
    # The members show themselves, in units of the error.
    members = lambda ensembles: np.moveaxis(ensembles[late], 0, 1) / 1.5
    background, analysis = members(result.backgrounds), members(result.analyses)
    values = world.data[late] / 1.5
    where = ~jnp.isnan(values)
    one = jnp.ones(values.shape)
    values = jnp.where(where, values, 0)

    def expect(statistic, ensemble, truth, **more):
        state = statistic.update(
            statistic.init(), jnp.asarray(ensemble), jnp.asarray(truth), **more
        )
        return statistic.finalize(state)

    found = result.diagnostics
    expected = expect(
        scores.Desroziers(),
        background,
        values,
        where=where[None],
        observation_error=one,
        analysis=jnp.asarray(analysis),
    )
    np.testing.assert_allclose(found["desroziers"], expected, rtol=1e-10)
    expected = expect(
        scores.RankHistogram(20), background, values, where=where[None], truth_error=one
    )
    np.testing.assert_allclose(found["ranks"], expected, rtol=1e-10)
    expected = expect(scores.SpreadSkill(), analysis * 1.5, world.truth[late])
    np.testing.assert_allclose(found["truth"], expected, rtol=1e-10)
    before = np.sqrt(np.mean((result.backgrounds.mean(1) - world.truth) ** 2))
    np.testing.assert_allclose(found["before"], before, rtol=1e-10)
    infos = jax.tree.map(lambda x: x[late], result.infos)
    info = found["info"]
    assert (int(info.analyses), int(info.used)) == (30, int(infos.used.sum()))
    assert int(info.masked) == int(infos.masked.sum()) == int((~where).sum())
    chi_square = np.average(infos.chi_square, weights=infos.used)
    np.testing.assert_allclose(info.chi_square, chi_square, rtol=1e-10)
    freedom = infos.degrees_of_freedom.mean()
    np.testing.assert_allclose(info.degrees_of_freedom, freedom, rtol=1e-10)


@pytest.mark.parametrize(
    "error", [Diagonal(1.5), Dense(np.array([[2.0, 0.9], [0.9, 1.0]]))]
)
def test_a_filter_that_knows_all_errors_is_consistent(error):
    consistency = AgainstObservations(scores.Desroziers(), burn_in=20)
    statistics = {"innovations": consistency, "info": Information(burn_in=20)}
    _, result = run(statistics, times=1500, error=error, members=40)
    found, info = result.diagnostics["innovations"], result.diagnostics["info"]
    # About 2,700 values: two standard errors of a mean square are 0.06.
    assert abs(found.estimated_observation_variance - 1) < 0.08
    assert abs(found.ratio - 1) < 0.08
    assert abs(info.chi_square - 1) < 0.08


def test_states_merge_and_stations_may_be_kept():
    each = AgainstObservations(scores.Desroziers(), keep=1)
    statistics = {"each": each, "info": Information(), "t": AgainstTruth(scores.CRPS())}
    _, result = run(statistics, times=12)
    assert result.diagnostics["each"].ratio.shape == (2,)
    for name, statistic in statistics.items():
        state = result.sums[name]
        twice = statistic.finalize(statistic.merge(state, state))
        once = result.diagnostics[name]
        if name == "info":
            assert float(twice.analyses) == 2 * float(once.analyses)
            np.testing.assert_allclose(twice.chi_square, once.chi_square, rtol=1e-12)
        else:
            for a, b in zip(*map(jax.tree.leaves, (twice, once)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_wrong_use_is_reported():
    observe = lambda value: Observation(value, lambda state: state, Diagonal(1.0))
    go = lambda diagnostic, state=None, **more: cycle(
        lambda state, forcing=None, *, key=None: state,
        lambda background, observation, *, key=None: (background, None),
        jnp.ones((3, 2)) if state is None else state,
        observe,
        jnp.ones((2, 2)),
        key=KEY,
        diagnostics={"it": diagnostic},
        **more,
    )
    with pytest.raises(ValueError, match="`burn_in` must not be negative, got -1"):
        Information(burn_in=-1)
    with pytest.raises(ValueError, match=r"`keep` is 2, an observation has the shape"):
        go(AgainstObservations(scores.RMSE(), keep=2))
    with pytest.raises(ValueError, match="needs the `truth` of the cycle"):
        go(AgainstTruth(scores.RMSE()))
    with pytest.raises(ValueError, match=r"of `truth` has the shape \(3,\), of a memb"):
        go(AgainstTruth(scores.RMSE()), truth=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="the state has 2 leaves; say by `select`"):
        go(AgainstTruth(scores.RMSE()), truth=(jnp.ones((2, 2)),) * 2)
    with pytest.raises(ValueError, match="method that returns an Info, got NoneType"):
        go(Information())
