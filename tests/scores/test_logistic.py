import jax.numpy as jnp
import numpy as np
import scoringrules
from scipy import stats

from skyens.scores import crps_logistic, log_score_logistic


def test_it_agrees_with_scoringrules_and_scipy():
    truth = jnp.array([0.5, 4.0, -2.0])
    parameters = [jnp.array(x) for x in [[0.2, -1.0, 3.0], [0.7, 2.0, 0.1]]]
    args = [*parameters, truth]
    peer = scoringrules.crps_logistic(np.asarray(truth), *map(np.asarray, parameters))
    np.testing.assert_allclose(crps_logistic(*args), peer, rtol=1e-10)
    log_density = stats.logistic.logpdf(truth, *parameters)
    score = log_score_logistic(*args)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)
