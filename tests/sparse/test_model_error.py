import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.dynamics import KuramotoSivashinsky, rollout
from skyens.sparse import (
    Endpoint,
    Library,
    Simpson,
    SpectralDerivative,
    Term,
    Trapezoid,
    backward_path,
    compress,
    elbow,
    model_error_pairs,
    polynomials,
)

SIZE, LENGTH, PAIRS = 128, 50.0, 60
WORLD = {"uux": 1.0, "uxx": 1.0, "uxxx": 0.0, "uxxxx": 1.0, "uuux": 0.0}
TERMS = {"uux": "u u_x", "uxx": "u_xx", "uxxx": "u_xxx", "uxxxx": "u_xxxx"}
TERMS |= {"uuux": "u^2 u_x"}
LIBRARY = polynomials(SpectralDerivative(LENGTH))


def oscillator(u, lacks=1.0):
    """A pendulum and a clock; without what it lacks, neither is damped nor driven."""
    angle, speed = u
    lacked = jnp.stack([0.3 * angle**3, -0.8 * speed * angle**2])
    return jnp.stack([speed, -2 * jnp.sin(angle)]) + lacks * lacked


def flow(dt, lacks, state):
    """Exact to rounding: many small steps of Runge and Kutta."""
    small = dt / 64

    def step(u, _):
        k1 = oscillator(u, lacks)
        k2 = oscillator(u + small / 2 * k1, lacks)
        k3 = oscillator(u + small / 2 * k2, lacks)
        k4 = oscillator(u + small * k3, lacks)
        return u + small / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(step, state, length=64)[0]


class Model(eqx.Module):
    dt: float

    def __call__(self, state, forcing=None, *, key=None):
        return flow(self.dt, 0.0, state)


DAMPED = Library(
    [
        Term("cube", lambda u: jnp.stack([u[0] ** 3, 0 * u[1]])),
        Term("drag", lambda u: jnp.stack([0 * u[0], u[1] * u[0] ** 2])),
    ]
)
MISSING = np.array([0.3, -0.8])
STARTS = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 2)))


@pytest.mark.parametrize(
    ("kind", "order", "known"),
    [
        ("end", 1, None),
        ("trapezoid", 2, None),
        ("simpson", 2, None),
        ("simpson", 4, MISSING),
    ],
)
def test_columns_explain_the_error_to_the_order_of_their_quadrature(kind, order, known):
    wrong = []
    for dt in (0.1, 0.05):
        rule = {"end": Endpoint(), "trapezoid": Trapezoid()}
        rule["simpson"] = Simpson(Model(dt / 2))
        after = jax.vmap(lambda u, dt=dt: flow(dt, 1.0, u))(STARTS)
        pairs = model_error_pairs(
            Model(dt), STARTS, after, DAMPED, dt=dt, quadrature=rule[kind], known=known
        )
        left = pairs.values - pairs.matrix @ jnp.asarray(MISSING)
        wrong.append(np.sqrt(np.mean(left**2)))
    assert wrong[0] < 0.1
    assert 2**order / 1.35 < wrong[0] / wrong[1] < 2 ** (order + 1) * 1.35


@eqx.filter_jit
def sparse_fit(pairs):
    """Coefficients at the elbow of the backward path."""
    return elbow(backward_path(compress(pairs.matrix, pairs.values))).mean


def truth(dt, **terms):
    """Pairs of states of a world, a step apart; five units of time between pairs."""
    world = KuramotoSivashinsky(SIZE, LENGTH, 0.1, **WORLD | terms)
    x = 2 * np.pi / LENGTH * world.points
    start = jnp.asarray(np.cos(x) * (1 + np.sin(2 * x)))
    before = eqx.filter_jit(rollout)(world, start, 500 + 50 * PAIRS)[500::50]
    short = KuramotoSivashinsky(SIZE, LENGTH, 0.01, **WORLD | terms)
    steps = round(dt / 0.01)
    later = eqx.filter_jit(jax.vmap(lambda u: rollout(short, u, steps)[-1]))
    return before, later(before)


def smooth(noisy):
    """The Wiener filter that the noisy states themselves suggest."""
    waves = np.fft.rfft(noisy)
    power = np.mean(np.abs(waves) ** 2, axis=0)
    noise = np.median(power[2 * len(power) // 3 :])  # where no signal is left
    last = np.flatnonzero(power > 2 * noise).max()
    weight = np.maximum(1 - noise / power, 0) * (np.arange(len(power)) <= last)
    return jnp.asarray(np.fft.irfft(weight * waves, SIZE))


def found(dt, world, model, *, fits=2, noise=0.0):
    """Coefficients by Simpson's rule, and those that the model lacks, by name."""
    before, after = truth(dt, **world)
    if noise:
        rng = np.random.default_rng(2)
        draw = lambda u: u + noise * np.std(u) * rng.normal(size=u.shape)
        before, after = smooth(draw(before)), smooth(draw(after))
    build = lambda dt: Steps(KuramotoSivashinsky(SIZE, LENGTH, dt / 4, **WORLD | model))
    rule = Simpson(build(dt / 2))
    known = None
    for _ in range(fits):
        pairs = model_error_pairs(
            build(dt), before, after, LIBRARY, dt=dt, quadrature=rule, known=known
        )
        known = sparse_fit(pairs)
    world, model = WORLD | world, WORLD | model
    lacked = {TERMS[n]: model[n] - world[n] for n in WORLD if model[n] != world[n]}
    assert known is not None
    return dict(zip(LIBRARY.names, known.tolist(), strict=True)), lacked


class Steps(eqx.Module):
    """Four short steps as one."""

    world: KuramotoSivashinsky

    def __call__(self, state, forcing=None, *, key=None):
        return rollout(self.world, state, 4)[-1]


CASES = {
    "no advection": ({}, {"uux": 0.0}),
    "no growth": ({}, {"uxx": 0.0}),
    "neither": ({}, {"uux": 0.0, "uxx": 0.0}),
    "half the damping": ({}, {"uxxxx": 0.5}),
    "all doubled": ({}, {"uux": 2.0, "uxx": 2.0, "uxxxx": 2.0}),
    "dispersion": ({"uxxx": 0.5}, {}),
    "steeper": ({"uuux": 0.15}, {}),
}


def check(dt, case, *, accuracy=0.01, **options):
    coefficients, lacked = found(dt, *CASES[case], **options)
    assert {name for name, value in coefficients.items() if value} == set(lacked)
    for name, value in lacked.items():
        assert abs(coefficients[name] - value) < accuracy * abs(value)


def test_the_missing_growth_is_found_from_long_steps():
    check(0.1, "no growth")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dt", [0.01, 0.1])
def test_what_is_missing_is_found_alone_and_exactly(dt, case):
    check(dt, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no advection", "no growth", "dispersion"])
def test_noise_of_five_percent_leaves_the_support_and_most_digits(case):
    check(0.5, case, accuracy=0.05, noise=0.05)


@pytest.mark.slow
def test_without_the_damping_of_short_waves_steps_must_be_short():
    """What the docstring says: waves that grow in the model set the limit."""
    undamped, name = WORLD | {"uxxxx": 0.0}, TERMS["uxxxx"]
    rule = Trapezoid()
    model = lambda dt, terms: Steps(KuramotoSivashinsky(SIZE, LENGTH, dt / 4, **terms))
    fits = lambda dt, terms: dict(
        zip(
            LIBRARY.names,
            sparse_fit(
                model_error_pairs(
                    model(dt, terms), *pairs[dt], LIBRARY, dt=dt, quadrature=rule
                )
            ).tolist(),
            strict=True,
        )
    )
    pairs = {dt: truth(dt) for dt in (0.01, 0.1)}
    for dt, accuracy in ((0.01, 0.01), (0.1, 0.12)):
        coefficients = fits(dt, undamped)
        assert {n for n, value in coefficients.items() if value} == {name}
        assert abs(coefficients[name] + 1) < accuracy
    rough = fits(0.1, WORLD | {"uxxxx": 0.3})
    assert {n for n, value in rough.items() if value} == {name}
    assert abs(rough[name] + 0.7) < 0.01
    later = model(0.5, undamped)(pairs[0.1][0][0])
    assert not np.isfinite(later).all()


def test_parts_of_a_state_have_regressions_of_their_own():
    square = Term("square", lambda s: jax.tree.map(lambda x: x**2, s))
    itself = Term("itself", lambda s: s)
    library, dt = Library([square, itself]), 0.1
    still = lambda state, forcing=None, *, key=None: state
    rng = np.random.default_rng(1)
    before = {n: jnp.asarray(rng.normal(size=(4, 3))) for n in ("air", "sea")}
    coefficients = {"air": (2.0, 0.0), "sea": (0.5, -1.0)}
    after = {
        n: before[n] + dt * (a * before[n] ** 2 + b * before[n])
        for n, (a, b) in coefficients.items()
    }
    # Carried by a model that stands still: the start is the middle of nothing.
    pairs = model_error_pairs(
        still, before, before, library, dt=dt, quadrature=Trapezoid()
    )
    assert pairs.matrix.shape == (24, 2)
    pairs = eqx.tree_at(
        lambda p: p.target,
        pairs,
        jax.tree.map(lambda a, b: (a - b) / dt, after, before),
    )
    for name, expected in coefficients.items():
        part = pairs.of(lambda state, name=name: state[name])
        solved = np.linalg.lstsq(part.matrix, part.values, rcond=None)[0]
        np.testing.assert_allclose(solved, expected, atol=1e-10)


def test_forcings_reach_the_model():
    step = lambda state, forcing=None, *, key=None: state + forcing
    half = lambda state, forcing=0.0, *, key=None: state + forcing / 2
    library = Library([Term("itself", lambda s: s)])
    before, pushes = jnp.ones((3, 2)), jnp.arange(6.0).reshape(3, 2)
    pairs = model_error_pairs(
        step, before, before + pushes, library, dt=0.5, quadrature=Simpson(half),
        forcings=pushes,
    )  # fmt: skip
    np.testing.assert_allclose(pairs.values, 0, atol=1e-14)


def test_what_was_observed_is_the_target_of_the_columns_of_the_analyses():
    step = lambda state, forcing=None, *, key=None: 2 * state
    library = Library([Term("itself", lambda s: s)])
    before, after = jnp.ones((2, 3)), jnp.full((2, 3), 5.0)
    observed = jnp.arange(6.0).reshape(2, 3).at[1, 2].set(jnp.nan)
    pairs = model_error_pairs(
        step, before, after, library, dt=0.5, quadrature=Endpoint(), observed=observed
    )
    np.testing.assert_allclose(pairs.matrix[:, 0], 5)
    np.testing.assert_allclose(pairs.values, (np.ravel(observed) - 2) / 0.5)
    kept = compress(pairs.matrix, pairs.values, drop_missing=True)
    assert kept.rows == 5


def test_single_precision_stays_and_jit_changes_nothing():
    after = jax.vmap(lambda u: flow(0.1, 1.0, u))(STARTS)
    states = STARTS.astype(jnp.float32), after.astype(jnp.float32)
    rule = Simpson(Model(0.05))

    @jax.jit
    def regression(before, after):
        return model_error_pairs(
            Model(0.1), before, after, DAMPED, dt=0.1, quadrature=rule
        )

    single, double = regression(*states), regression(STARTS, after)
    assert single.matrix.dtype == single.values.dtype == jnp.float32
    np.testing.assert_allclose(single.matrix, double.matrix, atol=1e-5)
    np.testing.assert_allclose(single.values, double.values, atol=1e-5)
    plain = model_error_pairs(
        Model(0.1), STARTS, after, DAMPED, dt=0.1, quadrature=rule
    )
    np.testing.assert_allclose(plain.matrix, double.matrix, rtol=1e-12)


def test_terms_that_blow_up_are_named():
    library = Library([Term("itself", lambda s: s), Term("pole", lambda s: 1 / s)])
    still = lambda state, forcing=None, *, key=None: state
    before = jnp.array([[1.0, 0.0], [2.0, 3.0]])
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"not finite .* pole \(1 rows\)"):
        model_error_pairs(still, before, before, library, dt=1.0, quadrature=Endpoint())
    # A missing state is another matter: its row says so in `compress`.
    missing = before.at[0, 1].set(jnp.nan)
    pairs = model_error_pairs(
        still, missing, missing, library, dt=1.0, quadrature=Endpoint()
    )
    np.testing.assert_array_equal(np.isnan(pairs.values), [False, True, False, False])


@pytest.mark.parametrize("known", [None, np.zeros(2)])
def test_a_half_step_must_be_half_a_step(known):
    fit = lambda half: model_error_pairs(
        Model(0.1), STARTS, STARTS, DAMPED, dt=0.1, quadrature=Simpson(half),
        known=known,
    )  # fmt: skip
    chex.assert_tree_all_finite(fit(Model(0.05)))
    for wrong in (Model(0.1), Model(0.01)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`half_step`, taken twice"):
            fit(wrong)


def test_wrong_use_is_reported():
    still = lambda state, forcing=None, *, key=None: state
    library = Library([Term("itself", lambda s: s)])
    rule, states = Endpoint(), jnp.ones((3, 2))
    for dt in (0.0, np.inf, np.array([0.1, 0.2, 0.1])):
        with pytest.raises(ValueError, match="`dt` must be one positive number"):
            model_error_pairs(still, states, states, library, dt=dt, quadrature=rule)
    with pytest.raises(ValueError, match="must be states of one structure"):
        model_error_pairs(
            still, {"u": states}, states, library, dt=1.0, quadrature=rule
        )
    with pytest.raises(ValueError, match=r"agree in shape .*\(\(3, 2\), \(2, 2\)\)"):
        model_error_pairs(still, states, states[:2], library, dt=1.0, quadrature=rule)
    with pytest.raises(ValueError, match="at least one pair"):
        model_error_pairs(
            still, states[:0], states[:0], library, dt=1.0, quadrature=rule
        )
    with pytest.raises(ValueError, match=r"`observed` and `after` must agree in shape"):
        model_error_pairs(
            still, states, states, library, dt=1.0, quadrature=rule, observed=states[:2]
        )

    def pointwise(state, forcing=None, *, key=None):
        raise ValueError(f"one state has 16 points, got {state.shape}")

    slopes = Library([Term("u_x", lambda s: jnp.gradient(s))])
    with pytest.raises(ValueError, match=r"one state has 16 points, got \(\)"):
        model_error_pairs(pointwise, jnp.ones(16), jnp.ones(16), slopes, dt=0.1)
