import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import backward_path, compress, elbow

path_jit = eqx.filter_jit(backward_path)


def data(noise, w=(1, -2, 0.5, 3), seed=0):
    random = np.random.default_rng(seed)
    phi = random.normal(size=(120, 12)) + 3 * random.normal(size=(120, 1))
    truth = np.zeros(12)
    truth[: len(w)] = w
    return phi, phi @ truth + noise * random.normal(size=120)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.1])
def test_the_elbow_is_the_true_support(noise):
    phi, y = data(noise)
    path = path_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    bend = elbow(path)
    assert bend.size == 4
    assert np.flatnonzero(bend.support).tolist() == [0, 1, 2, 3]
    assert bend.jump > 1


def test_every_size_is_greedy_least_squares():
    phi, y = data(0.5)
    path = path_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    kept = list(range(12))
    for size in range(12, 0, -1):
        assert np.flatnonzero(path.support[size]).tolist() == kept
        w, misfit, *_ = np.linalg.lstsq(phi[:, kept], y, rcond=None)
        np.testing.assert_allclose(path.mean[size][np.array(kept)], w, atol=1e-10)
        np.testing.assert_allclose(path.misfit[size], misfit[0], rtol=1e-10)
        without = [np.delete(phi[:, kept], i, 1) for i in range(size)]
        loss = [np.sum((y - m @ np.linalg.pinv(m) @ y) ** 2) for m in without]
        kept.pop(int(np.argmin(loss)))
    np.testing.assert_allclose(path.misfit[0], np.sum(y**2), rtol=1e-12)
    assert not np.any(path.support[0])


def test_scales_do_not_matter_and_empty_columns_leave_first():
    phi, y = data(0.1)
    scale = 10.0 ** np.linspace(-9, 9, 12)
    scaled = path_jit(compress(jnp.asarray(phi * scale), jnp.asarray(y)))
    plain = path_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    assert np.array_equal(scaled.support, plain.support)
    phi[:, 6] = 0
    path = path_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    assert not path.support[11, 6]
    assert np.all(np.isfinite(path.mean))


def test_pure_noise_has_no_clear_elbow():
    phi, y = data(1.0, w=())
    bend = elbow(path_jit(compress(jnp.asarray(phi), jnp.asarray(y))))
    # The best of 12 useless terms: a chi-square of about 8 over 120 rows.
    assert bend.jump < 0.15


def test_float32_stays():
    phi, y = data(0.1)
    problem = compress(jnp.asarray(phi, jnp.float32), jnp.asarray(y, jnp.float32))
    path = path_jit(problem)
    assert path.mean.dtype == path.log_misfit.dtype == jnp.float32
    assert elbow(path).size == 4
