"""Stepping over gravity waves: what is linear and fast, without resolving it in time.

The shallow-water equations are `dx/dt = L x + N(x)`, where `L` holds gravity waves
about a layer at rest and the hyperdiffusion. It does not mix spectral coefficients,
so that its exponential and its inverse are closed forms, degree by degree.

States are real arrays `[field, part, l, m]`: vorticity, divergence and height, each in
real and imaginary parts.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

State = Float[Array, "3 2 l m"]
# A function of L: what it makes of vorticity, of the others by themselves, and of each
# by the other, in units of `pull` and `-depth`.
Operator = Float[Array, "*batch 3 1 l 1"]


class GravityWaves(eqx.Module):
    """The linear operator of gravity waves about rest, and of hyperdiffusion.

    `d(divergence)/dt = pull h`, `dh/dt = -depth divergence`, and `-damping` times all.

    `pull` is `g l (l + 1) / a^2`; waves of a degree oscillate at `sqrt(pull depth)`.
    Degree 0 has no divergence.
    """

    pull: Float[Array, "1 l 1"]
    depth: Float[Array, ""]
    damping: Float[Array, "1 l 1"]

    def apply(self, operator: Operator, x: State) -> State:
        """Return what a function of `L` makes of `x`."""
        own, waving, turn = operator
        vorticity, divergence, height = x
        return jnp.stack(
            [
                own * vorticity,
                waving * divergence + turn * self.pull * height,
                waving * height - turn * self.depth * divergence,
            ]
        )

    def __call__(self, x: State) -> State:
        """Return `L x`."""
        one = jnp.ones_like(self.damping)
        return self.apply(jnp.stack([-self.damping, -self.damping, one]), x)

    def inverse(self, time: float | Float[Array, ""]) -> Operator:
        """Return `(1 - time L)^-1`."""
        own = 1 + time * self.damping
        scale = 1 / (own**2 + time**2 * self.pull * self.depth)
        return jnp.stack([1 / own, scale * own, scale * time])

    def functions(self, times: tuple[float, ...], lean: float) -> Operator:
        """Return `phi_k(time L')` for k = 0 to 3, `phi_0` the exponential: `[time, k]`.

        `L'` is `L` with gravity waves damped by `lean` times their frequency.
        """
        frequency = self._frequency()
        moves = frequency != 0
        period = jnp.where(moves, 1 / jnp.where(moves, frequency, 1), 0)
        # Less its damping, L' is a turn whose square is -frequency^2.
        damping = jnp.stack([self.damping, self.damping + lean * frequency])
        turn = jnp.stack([jnp.zeros_like(frequency), frequency])
        length = jnp.asarray(times, frequency.dtype)[:, None, None, None, None]
        phi = _phi(lax.complex(-length * damping[None], length * turn[None]))
        table = (
            phi[:, :, 0].real,
            phi[:, :, 1].real,
            phi[:, :, 1].imag * period[None, None],
        )
        return jnp.stack(table, 2).swapaxes(0, 1)

    def lean(self, x: State, lean: float) -> State:
        """Return `(L - L') x`: what the leaning functions took too much."""
        rate = lean * self._frequency()
        return jnp.stack([jnp.zeros_like(rate), rate, rate]) * x

    def _frequency(self):
        squared = self.pull * self.depth
        moves = squared != 0
        return jnp.where(moves, jnp.sqrt(jnp.where(moves, squared, 1)), 0)


class ExponentialRungeKutta(eqx.Module):
    """Fourth order, with gravity waves by their exponential: the accurate choice.

    Krogstad's scheme, four evaluations of the products per step. Steady states stay
    steady. Where a step spans more than 8 radians of the fastest wave, waves that a
    wind carries grow; so a damping of `lean` times their frequency is moved from the
    explicit into the exponential part, which changes no equation. The default is the
    least that keeps the scheme stable for winds to a third of the waves' speed; winds
    limit the step, `step * speed * lmax / radius < 2.5`. It costs waves of several
    radians a step some accuracy; with `lean=0` they are exact.

    Source: Krogstad (2005), J. Comput. Phys. 203, 72-88; the leaning, Buvoli & Minion
    (2022), J. Comput. Appl. Math. 409, 114126.
    """

    lean: float = eqx.field(static=True, default=0.01)

    def stepper(self, waves: GravityWaves, tendency: Callable, step: float) -> Callable:
        """Return the map of a state to the one a `step` (s) later."""
        whole, half = waves.functions((step, step / 2), self.lean)
        operators = jnp.stack(
            [
                whole[0],
                whole[1],
                whole[2],
                whole[1] - 3 * whole[2] + 4 * whole[3],
                2 * whole[2] - 4 * whole[3],
                4 * whole[3] - whole[2],
                half[0],
                half[1] / 2,
                half[2],
            ]
        )
        (e, f1, f2, first_weight, middle_weight, last_weight, e2, g1, g2) = [
            lambda x, operator=operator: waves.apply(operator, x)
            for operator in operators
        ]
        products = lambda x: step * (tendency(x) + waves.lean(x, self.lean))

        def advance(x):
            first = products(x)
            a = e2(x) + g1(first)
            second = products(a)
            b = a + g2(second - first)
            third = products(b)
            c = e(x) + f1(first) + f2(2 * (third - first))
            fourth = products(c)
            middle = middle_weight(second + third)
            return e(x) + first_weight(first) + middle + last_weight(fourth)

        return advance


class ImplicitExplicit(eqx.Module):
    """Gravity waves implicit, all else explicit, in Runge-Kutta stages: long steps.

    Waves that a step does not resolve are slowed and damped; what is in balance keeps
    the order of the scheme. The default is of third order with four evaluations of the
    products, stable to about two hours at T42; `whitaker_kar` is the one of three that
    weather models use.

    Source: Kennedy & Carpenter (2003), Appl. Numer. Math. 44, 139-181, ARK3(2)4L[2]SA.
    """

    explicit: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    implicit: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    explicit_weights: tuple[float, ...] = eqx.field(static=True)
    implicit_weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        explicit: tuple[tuple[float, ...], ...] | None = None,
        implicit: tuple[tuple[float, ...], ...] | None = None,
        explicit_weights: tuple[float, ...] | None = None,
        implicit_weights: tuple[float, ...] | None = None,
    ):
        """Set the tableaus: one row for each stage after the first, and the weights.

        Row i of `explicit` has i entries, row i of `implicit` i + 1.

        Raises:
            ValueError: only some of the four are given, or their sizes do not fit.
        """
        given = explicit, implicit, explicit_weights, implicit_weights
        if all(part is None for part in given):
            given = _KENNEDY_CARPENTER
        if any(part is None for part in given):
            raise ValueError("give all four parts of the tableaus, or none.")
        self.explicit, self.implicit = given[0], given[1]  # pyright: ignore[reportAttributeAccessIssue]
        self.explicit_weights, self.implicit_weights = given[2], given[3]  # pyright: ignore[reportAttributeAccessIssue]
        sizes = [len(row) for row in self.explicit], [len(row) for row in self.implicit]
        stages = len(self.explicit_weights)
        fits = sizes == (list(range(1, stages)), list(range(2, stages + 1)))
        if not fits or len(self.implicit_weights) != stages:
            raise ValueError(f"rows of {sizes} entries do not fit {stages} weights.")

    @classmethod
    def whitaker_kar(cls) -> "ImplicitExplicit":
        """Return the scheme of three evaluations: 3rd order explicit, 2nd implicit.

        Source: Whitaker & Kar (2013), Mon. Wea. Rev. 141, 3426-3434.
        """
        return cls(
            explicit=((1 / 3,), (1 / 6, 1 / 2), (1 / 2, -1 / 2, 1.0)),
            implicit=((1 / 6, 1 / 6), (1 / 3, 0.0, 1 / 3), (3 / 8, 0.0, 3 / 8, 1 / 4)),
            explicit_weights=(1 / 2, -1 / 2, 1.0, 0.0),
            implicit_weights=(3 / 8, 0.0, 3 / 8, 1 / 4),
        )

    def stepper(self, waves: GravityWaves, tendency: Callable, step: float) -> Callable:
        """Return the map of a state to the one a `step` (s) later."""
        inverses = [waves.inverse(step * row[-1]) for row in self.implicit]
        weighted = lambda weights, terms: sum(
            step * weight * term
            for weight, term in zip(weights, terms, strict=False)
            if weight
        )

        def advance(x):
            slow, fast = [tendency(x)], [waves(x)]
            for number, inverse in enumerate(inverses):
                right = x + weighted(self.explicit[number], slow)
                right = right + weighted(self.implicit[number][:-1], fast)
                stage = waves.apply(inverse, right)
                fast.append(waves(stage))
                last = number + 1 == len(inverses)
                if not last or self.explicit_weights[-1]:
                    slow.append(tendency(stage))
            x = x + weighted(self.explicit_weights, slow)
            return x + weighted(self.implicit_weights, fast)

        return advance


_GAMMA = 1767732205903 / 4055673282236
_KENNEDY_CARPENTER = (
    (
        (1767732205903 / 2027836641118,),
        (5535828885825 / 10492691773637, 788022342437 / 10882634858940),
        (
            6485989280629 / 16251701735622,
            -4246266847089 / 9704473918619,
            10755448449292 / 10357097424841,
        ),
    ),
    (
        (_GAMMA, _GAMMA),
        (2746238789719 / 10658868560708, -640167445237 / 6845629431997, _GAMMA),
        (
            1471266399579 / 7840856788654,
            -4482444167858 / 7529755066697,
            11266239266428 / 11593286722821,
            _GAMMA,
        ),
    ),
    *(
        (
            1471266399579 / 7840856788654,
            -4482444167858 / 7529755066697,
            11266239266428 / 11593286722821,
            _GAMMA,
        ),
    )
    * 2,
)


def _phi(z: Complex[Array, "*batch l 1"]) -> Complex[Array, "k *batch l 1"]:
    """`phi_0 = exp`, `phi_{k + 1}(z) = (phi_k(z) - 1 / k!) / z`, up to `phi_3`."""
    small = jnp.abs(z) < 1
    safe = jnp.where(small, jnp.ones_like(z), z)
    far = (((jnp.exp(safe) - 1) / safe - 1) / safe - 0.5) / safe
    # Near 0 the quotients cancel; 18 terms are exact in float64 within the unit disc.
    series = jnp.asarray([1 / math.factorial(k + 3) for k in range(18)][::-1], z.dtype)
    near = jnp.polyval(series, jnp.where(small, z, jnp.zeros_like(z)), unroll=1)
    third = jnp.where(small, near, far)
    second = z * third + 0.5
    first = z * second + 1
    return jnp.stack([z * first + 1, first, second, third])
