"""The weak form: derivatives of noisy fields moved to smooth test functions."""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from skyens.sparse._library import Library, Term


class FluxDerivative(eqx.Module):
    """The derivative of a function of the state, as a term of a library.

    As a callable it is the strong form; `weak_form` takes `flux` and `orders` and never
    differentiates a field.
    """

    flux: Callable  # state -> field
    orders: tuple[int, ...] = eqx.field(static=True)  # along each axis of space
    derivatives: tuple[Callable, ...]  # (field, order) -> field, one for each axis

    def __call__(self, state: PyTree[Array]) -> Float[Array, "..."]:
        """Return the derivative of the flux."""
        field = self.flux(state)
        for derivative, order in zip(self.derivatives, self.orders, strict=True):
            field = derivative(field, order)
        return field


def flux_polynomials(
    derivatives: Sequence[Callable],
    *,
    powers: int = 3,
    orders: int = 4,
    variable: str = "u",
    axes: Sequence[str] = ("x",),
    select: Callable = lambda state: state,
) -> Library:
    """Return derivatives of powers, `d^q (u^p) / dx^q`, and the powers themselves.

    Of several axes each has its derivatives, without mixed ones: `u u_x` is half of
    `(u^2)_x`.

    Args:
        derivatives: `derivative(field, order) -> field` along each axis of space, for
            the strong form.
        powers: the largest power, at least 1.
        orders: the largest order of a derivative, at least 0.
        variable: the field's name in print.
        axes: the coordinates' names in print, one for each of `derivatives`.
        select: what of the state the field is.

    Raises:
        ValueError: `powers` is not positive, `orders` is negative, or `axes` does not
            fit `derivatives`.
    """
    derivatives = tuple(derivatives)
    if powers < 1 or orders < 0:
        raise ValueError(
            "`powers` must be positive and `orders` not negative, got "
            f"{powers} and {orders}."
        )
    if len(axes) != len(derivatives) or not derivatives:
        raise ValueError(
            f"`axes` must name each of {len(derivatives)} derivatives, got {axes}."
        )
    terms = []
    for power in range(1, powers + 1):
        front = variable if power == 1 else f"{variable}^{power}"
        flux = _Power(power, select)
        none = (0,) * len(axes)
        terms.append(Term(front, FluxDerivative(flux, none, derivatives), front))
        for number, axis in enumerate(axes):
            for order in range(1, orders + 1):
                along = tuple(order * (number == n) for n in range(len(axes)))
                body = front if power == 1 else f"({front})"
                terms.append(
                    Term(
                        f"{body}_{axis * order}",
                        FluxDerivative(flux, along, derivatives),
                        f"{body}_{{{axis * order}}}",
                    )
                )
    return Library(terms)


class _Power(eqx.Module):
    power: int = eqx.field(static=True)
    select: Callable

    def __call__(self, state):
        return self.select(state) ** self.power


class WeakForm(eqx.Module):
    """A regression in weak form: `values = matrix @ coefficients`, for `compress`."""

    matrix: Float[Array, "row term"]
    values: Float[Array, " row"]


def weak_form(
    states: PyTree[Float[Array, "time ..."]],
    library: Library,
    *,
    dt: float,
    spacing: Sequence[float],
    half_width: Sequence[int],
    stride: Sequence[int] | None = None,
    select: Callable = lambda state: state,
    edge: float = 1e-10,
) -> WeakForm:
    """Return the equation `du/dt = library @ coefficients`, integrated.

    Each row is an integral against a test function that is zero outside of a box of
    time and space, so that derivatives by parts fall on it and noise is averaged away.
    A term whose function is a `FluxDerivative` never has its field differentiated;
    others are integrated as they stand. Space is periodic: a line or a rectangle.

    Boxes overlap and the residuals of rows are correlated: choose terms by the elbow of
    the backward path or by a threshold rather than by evidence or z. Good half widths
    hold a few points per wave of what is to be seen and many points in all.

    Args:
        states: at times `dt` apart, stacked on a leading axis.
        library: the candidate terms; each of one field of the shape of space.
        dt: time from one state to the next.
        spacing: distance of the points along each axis of space.
        half_width: of the boxes, in steps of time and points along each axis.
        stride: from one box to the next, in steps and points, these a divisor of all;
            if None, the largest divisor up to a quarter of `half_width`.
        select: what of the state the equation is for.
        edge: size of the test functions one step inside their box; it sets their power.

    Raises:
        ValueError: a length, width or stride is not positive or does not fit the
            states, or a term's orders do not fit space.

    Source: Messenger & Bortz (2021), J. Comput. Phys. 443, 110525, eqs. (3.3)-(3.9).
    """
    target = jax.vmap(select)(states)
    shape, axes = target.shape, target.ndim
    steps = (float(dt), *(float(length) for length in spacing))
    if stride is None:
        stride = [_stride(m, n) for m, n in zip(half_width, shape, strict=False)]
    _check(shape, steps, half_width, stride, edge)

    known = [isinstance(term.function, FluxDerivative) for term in library.terms]
    orders = [
        term.function.orders if flux else (0,) * (axes - 1)
        for term, flux in zip(library.terms, known, strict=True)
    ]
    for name, order in zip(library.names, orders, strict=True):
        if len(order) != axes - 1:
            raise ValueError(
                f"term {name!r} has orders {order}, the states have {axes - 1} axes of "
                "space."
            )
    highest = max([1, *(value for order in orders for value in order)])
    power = [max(_power(m, edge), highest + 1) for m in half_width]

    def integral(field, order):
        for axis in range(axes):
            weights = _weights(
                order[axis], half_width[axis], power[axis], steps[axis],
                shape[axis], stride[axis], periodic=axis > 0,
            )  # fmt: skip
            weights = jnp.asarray(weights, field.dtype)
            field = jnp.moveaxis(jnp.tensordot(weights, field, (1, axis)), 0, axis)
        return field.ravel()

    columns = []
    for term, flux, order in zip(library.terms, known, orders, strict=True):
        function = term.function.flux if flux else term.function
        field = jax.vmap(function)(states)
        if field.shape != shape:
            raise ValueError(
                f"term {term.name!r} must have the shape {shape[1:]} of what `select` "
                f"takes from the state, got {field.shape[1:]}."
            )
        columns.append((-1) ** sum(order) * integral(field, (0, *order)))
    left = -integral(target, (1,) + (0,) * (axes - 1))
    return WeakForm(jnp.stack(columns, axis=1), left)


def _stride(half_width: int, points: int) -> int:
    """Return the largest divisor of the points up to a quarter of a half width."""
    return max(n for n in range(1, max(half_width // 4, 1) + 1) if points % n == 0)


def _power(half_width: int, edge: float) -> int:
    """Return the power p where `(1 - s^2)^p` is `edge` one point inside of s = 1."""
    inside = (2 * half_width - 1) / half_width**2
    return math.ceil(math.log(edge) / math.log(inside))


def _weights(order, half_width, power, step, points, stride, *, periodic):
    """Return what integrates a derivative of the test functions, one row for each."""
    s = np.arange(-half_width, half_width + 1) / half_width
    slope = np.zeros_like(s)  # of (1 - s)^p (1 + s)^p, by the rule of Leibniz
    for k in range(order + 1):
        parts = math.comb(order, k) * math.perm(power, k)
        parts *= math.perm(power, order - k) * (-1) ** k
        slope += parts * (1 - s) ** (power - k) * (1 + s) ** (power - order + k)
    slope *= step / (half_width * step) ** order
    ends = 0 if periodic else half_width
    centres = np.arange(ends, points - ends, stride)
    weights = np.zeros((len(centres), points))
    for row, centre in enumerate(centres):
        seen = np.arange(centre - half_width, centre + half_width + 1) % points
        weights[row, seen] = slope
    return weights


def _check(shape, steps, half_width, stride, edge):
    axes = len(shape)
    given = {"spacing": steps[1:], "half_width": half_width, "stride": stride}
    for name, values in given.items():
        needed = axes - 1 if name == "spacing" else axes
        if len(values) != needed or not all(0 < value < math.inf for value in values):
            raise ValueError(
                f"`{name}` must be {needed} positive numbers for states of shape "
                f"{shape[1:]} in time, got {values}."
            )
    if not 0 < steps[0] < math.inf:
        raise ValueError(f"`dt` must be positive and finite, got {steps[0]}.")
    if not 0 < edge < 1:
        raise ValueError(f"`edge` must lie between 0 and 1, got {edge}.")
    for number, (points, half) in enumerate(zip(shape, half_width, strict=True)):
        if half < 2 or 2 * half + 1 > points:
            raise ValueError(
                f"`half_width[{number}]` must be at least 2 and a box of twice as many "
                f"points and one must fit into {points}, got {half}."
            )
        if number and points % stride[number]:
            raise ValueError(
                f"`stride[{number}]` must divide the {points} points, got "
                f"{stride[number]}."
            )
