import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import Library, SpectralDerivative, Term, active_names, polynomials

X = jnp.linspace(0, 2 * jnp.pi, 32, endpoint=False)


def library():
    return polynomials(SpectralDerivative(2 * np.pi), powers=2, orders=2)


def test_columns_are_powers_times_derivatives():
    u = jnp.sin(X)
    columns = jax.jit(lambda u: library()(u))(u)
    assert library().names == ("u", "u^2", "u_x", "u u_x", "u^2 u_x",
                               "u_xx", "u u_xx", "u^2 u_xx")  # fmt: skip
    s, c = jnp.sin(X), jnp.cos(X)
    expected = [s, s**2, c, s * c, s**2 * c, -s, -(s**2), -(s**3)]
    np.testing.assert_allclose(columns, jnp.stack(expected, axis=1), atol=1e-13)
    assert len(polynomials(SpectralDerivative(1.0))) == 24
    assert library()(u.astype(jnp.float32)).dtype == jnp.float32


def test_custom_terms_of_a_pytree_and_the_tendency():
    state = {"a": jnp.ones((2, 3)), "b": jnp.arange(4.0)}
    drag = Term("drag", lambda s: jax.tree.map(lambda x: -x, s), "-u")
    square = Term("square", lambda s: jax.tree.map(lambda x: x**2, s))
    terms = Library([drag]) + Library([square])
    assert terms(state).shape == (10, 2)
    tendency = terms.tendency(state, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(tendency["b"], -state["b"] + 2 * state["b"] ** 2)
    np.testing.assert_allclose(
        terms(state) @ jnp.array([1.0, 2.0]),
        jnp.concatenate([tendency["a"].ravel(), tendency["b"]]),
    )


def test_equations_are_printed():
    terms = Library([Term("u u_x", lambda u: u, r"u \, u_{x}"), Term("drag", abs)])
    w = np.array([-1.5, 0])
    assert terms.equation(w) == "du/dt = -1.5 u u_x"
    assert terms.latex(w) == r"\partial_t u = -1.5 \, u \, u_{x}"
    w = np.array([2.00001, -1.25e-7])
    assert terms.equation(w, left="r") == "r = 2 u u_x - 1.25e-7 drag"
    assert terms.latex(w, left="r").endswith(r" - 1.25 \times 10^{-7} \, \mathrm{drag}")
    assert terms.equation(np.zeros(2)) == "du/dt = 0"
    assert active_names(terms, np.array([False, True])) == ("drag",)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="two terms called 'u'"):
        Library([Term("u", abs), Term("u", abs)])
    with pytest.raises(ValueError, match="at least one term"):
        Library([])
    with pytest.raises(ValueError, match="must not be empty"):
        Term("", abs)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"term '1 / u' blows up: 1 of"):
        Library([Term("1 / u", lambda u: 1 / u)])(jnp.arange(3.0))
    with pytest.raises(ValueError, match="agree in structure and shape"):
        Library([Term("u", abs), Term("sum", jnp.sum)])(jnp.ones(3))
    with pytest.raises(ValueError, match=r"must have the shape \(1,\)"):
        Library([Term("u", abs)]).equation(np.zeros(2))
    with pytest.raises(ValueError, match=r"must have the shape \(1,\)"):
        active_names(Library([Term("u", abs)]), np.zeros(2, bool))
    with pytest.raises(ValueError, match="nor both be 0"):
        polynomials(SpectralDerivative(1.0), powers=0, orders=0)
