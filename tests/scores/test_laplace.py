import jax.numpy as jnp
import numpy as np
import scoringrules
from scipy import stats

from skyens.scores import crps_laplace, log_score_laplace


def test_it_agrees_with_scoringrules_and_scipy():
    truth = jnp.array([0.5, 4.0, -2.0])
    parameters = [jnp.array(x) for x in [[0.2, -1.0, 3.0], [0.7, 2.0, 0.1]]]
    args = [*parameters, truth]
    peer = scoringrules.crps_laplace(np.asarray(truth), *map(np.asarray, parameters))
    np.testing.assert_allclose(crps_laplace(*args), peer, rtol=1e-10)
    log_density = stats.laplace.logpdf(truth, *parameters)
    score = log_score_laplace(*args)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)
