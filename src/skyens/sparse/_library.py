"""Candidate terms of an equation: named callables, their columns and their print."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree


class Term(eqx.Module):
    """A candidate term: a callable of the state with a name and its LaTeX.

    Any `function(state)` will do: a Jacobian, a relaxation to a climate, a tendency of
    another model. It returns what the equation's left-hand side is made of: an array,
    or a pytree like the state.
    """

    name: str = eqx.field(static=True)
    function: Callable
    latex: str = eqx.field(static=True)

    def __init__(self, name: str, function: Callable, latex: str | None = None):
        """Name a term.

        Args:
            name: as it is printed, unlike that of any other term of the library.
            function: `function(state) -> tendency`.
            latex: as LaTeX prints it; the name in upright letters if None.

        Raises:
            ValueError: `name` is empty.
        """
        if not name:
            raise ValueError("`name` of a term must not be empty.")
        self.name, self.function = name, function
        self.latex = rf"\mathrm{{{name}}}" if latex is None else latex

    def __call__(self, state: PyTree[Array]) -> PyTree[Array]:
        """Return the term's tendency, with coefficient 1."""
        return self.function(state)


class Library(eqx.Module):
    """Candidate terms, evaluated together: the columns of a regression.

    Two libraries add to one. A library is a pytree: numbers inside its terms (a rate, a
    climate) are leaves.
    """

    terms: tuple[Term, ...]

    def __init__(self, terms: Sequence[Term]):
        """Set the terms, in the order of the columns.

        Raises:
            ValueError: there is no term, or two have the same name.
        """
        self.terms = tuple(terms)
        if not self.terms:
            raise ValueError("`terms` must hold at least one term.")
        seen = set()
        for name in self.names:
            if name in seen:
                raise ValueError(f"`terms` holds two terms called {name!r}.")
            seen.add(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the terms."""
        return tuple(term.name for term in self.terms)

    def __len__(self) -> int:
        """Return how many terms there are."""
        return len(self.terms)

    def __add__(self, other: "Library") -> "Library":
        """Return the terms of both."""
        return Library((*self.terms, *other.terms))

    def fields(self, state: PyTree[Array]) -> PyTree[Float[Array, "term ..."]]:
        """Return the tendencies of all terms, along a leading axis `term`.

        Raises:
            ValueError: the terms' tendencies have not one structure and shape.
            EquinoxRuntimeError: a term is not finite (the first is named); under
                tracing it propagates.
        """
        fields = [term(state) for term in self.terms]
        first = _outline(fields[0])
        for term, field in zip(self.terms, fields, strict=True):
            if _outline(field) != first:
                raise ValueError(
                    f"terms must agree in structure and shape: {self.names[0]!r} has "
                    f"{first}, {term.name!r} has {_outline(field)}."
                )
            _check_finite(term.name, field)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fields)

    def __call__(self, state: PyTree[Array]) -> Float[Array, "row term"]:
        """Return one column for each term, one row for each value of its tendency.

        Rows run through the leaves in order, each flattened. The columns of many states
        come from `jax.vmap`, with their rows laid one after another.

        Raises:
            ValueError: as for `fields`.
            EquinoxRuntimeError: as for `fields`.
        """
        leaves = jax.tree.leaves(self.fields(state))
        flat = [leaf.reshape(len(self), -1) for leaf in leaves]
        return jnp.concatenate(flat, axis=1).T

    def tendency(
        self, state: PyTree[Array], coefficients: Float[Array, "term"]
    ) -> PyTree[Array]:
        """Return the sum of the terms, each times its coefficient.

        Raises:
            ValueError: there is not one coefficient for each term.
        """
        self._check_coefficients(coefficients)
        fields = self.fields(state)
        total = lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1)
        return jax.tree.map(total, fields)

    def equation(
        self,
        coefficients: ArrayLike,
        *,
        left: str = "du/dt",
        digits: int = 4,
    ) -> str:
        """Return the equation as text; terms of coefficient 0 are left out.

        Args:
            coefficients: one for each term, known numbers.
            left: the left-hand side.
            digits: significant digits of the coefficients.

        Raises:
            ValueError: there is not one coefficient for each term.
        """
        return self._print(coefficients, left, digits, self.names, " ", "e")

    def latex(
        self,
        coefficients: ArrayLike,
        *,
        left: str = r"\partial_t u",
        digits: int = 4,
    ) -> str:
        """Return the equation as LaTeX, without dollar signs; else as `equation`.

        Raises:
            ValueError: there is not one coefficient for each term.
        """
        names = tuple(term.latex for term in self.terms)
        return self._print(coefficients, left, digits, names, r" \, ", r" \times 10^")

    def _print(self, coefficients, left, digits, names, times, power) -> str:
        values = np.asarray(coefficients)
        self._check_coefficients(values)
        right = ""
        for value, name in zip(values.tolist(), names, strict=True):
            if value == 0:
                continue
            mantissa, _, exponent = f"{abs(value):.{digits}g}".partition("e")
            number = mantissa
            if exponent:
                scale = str(int(exponent))
                number += power + (scale if power == "e" else f"{{{scale}}}")
            sign = (" - " if value < 0 else " + ") if right else "-" * (value < 0)
            right += sign + number + times + name
        return f"{left} = {right or '0'}"

    def _check_coefficients(self, coefficients) -> None:
        if coefficients.shape != (len(self),):
            raise ValueError(
                f"`coefficients` must have the shape ({len(self)},), one for each "
                f"term, got {coefficients.shape}."
            )


class _Outline(NamedTuple):
    structure: str
    shapes: list


def _outline(tree) -> _Outline:
    leaves, structure = jax.tree.flatten(tree)
    return _Outline(str(structure), [jnp.shape(leaf) for leaf in leaves])


def _check_finite(name: str, field) -> None:
    for leaf in jax.tree.leaves(field):
        if isinstance(leaf, Tracer):
            continue
        wrong = int(np.sum(~np.isfinite(np.asarray(leaf))))
        if wrong:
            message = (
                f"term {name!r} blows up: {wrong} of its {np.size(leaf)} values are "
                "not finite. Mend the state, or leave the term out."
            )
            eqx.error_if(leaf, np.asarray(True), message)


def polynomials(
    derivative: Callable,
    *,
    powers: int = 4,
    orders: int = 4,
    variable: str = "u",
    axis: str = "x",
    select: Callable = lambda state: state,
) -> Library:
    """Return the products of powers and derivatives, `u^p d^q u / dx^q`.

    All powers up to `powers` times all derivatives of order 1 to `orders`, and the
    powers alone, without the constant: (powers + 1) (orders + 1) - 1 terms.

    Args:
        derivative: `derivative(field, order) -> field`, such as `SpectralDerivative`.
        powers: the largest power, at least 0.
        orders: the largest order of a derivative, at least 0.
        variable: the field's name in print.
        axis: the coordinate's name in print.
        select: what of the state the field is.

    Raises:
        ValueError: `powers` or `orders` is negative, or both are 0.
    """
    if min(powers, orders) < 0 or powers + orders == 0:
        raise ValueError(
            "`powers` and `orders` must not be negative nor both be 0, got "
            f"{powers} and {orders}."
        )
    terms = []
    for order in range(orders + 1):
        for power in range(powers + 1):
            if power + order == 0:
                continue
            front = {0: "", 1: variable}.get(power, f"{variable}^{power}")
            last = f"{variable}_{axis * order}" if order else ""
            latex_last = f"{variable}_{{{axis * order}}}" if order else ""
            terms.append(
                Term(
                    " ".join(filter(None, (front, last))),
                    _Product(derivative, power, order, select),
                    r" \, ".join(filter(None, (front, latex_last))),
                )
            )
    return Library(terms)


class _Product(eqx.Module):
    derivative: Callable
    power: int = eqx.field(static=True)
    order: int = eqx.field(static=True)
    select: Callable

    def __call__(self, state):
        field = self.select(state)
        if self.order == 0:
            return field**self.power
        slope = self.derivative(field, self.order)
        return field**self.power * slope if self.power else slope


def active_names(
    library: Library, support: Bool[Array, "term"] | np.ndarray
) -> tuple[str, ...]:
    """Return the names of the terms in a known `support`.

    Raises:
        ValueError: `support` has not one entry for each term.
    """
    if support.shape != (len(library),):
        raise ValueError(
            f"`support` must have the shape ({len(library)},), got {support.shape}."
        )
    chosen = np.asarray(support).tolist()
    return tuple(n for n, kept in zip(library.names, chosen, strict=True) if kept)
