"""Errors that depend on what is predicted: larger for stronger winds, or rain."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Scalar

from skyens.observations._callables import as_pytree
from skyens.observations._errors import Diagonal, Error, unchecked
from skyens.observations._parameters import Positive, over, positive


class Heteroscedastic(eqx.Module):
    """Errors whose law is a function of what is predicted.

        Heteroscedastic(lambda prediction: Diagonal(0.5 + 0.1 * jnp.abs(prediction)))

    Any law may be returned, a `StudentT` or a `Dense` too, and the function may be a
    Module with parameters to train: they have gradients, from `log_prob` (which weighs
    the size of the law too) and through filters.

    A Gaussian analysis takes the law at one prediction, that of the state it linearises
    about (of the ensemble's mean), and no derivative goes through this choice.
    """

    law: Callable[[Array], Error]
    independent: bool = eqx.field(static=True)

    def __init__(self, law: Callable[[Array], Error], *, independent: bool = True):
        """Set the law.

        Args:
            law: from a prediction, of the shape and units of the value and finite, to
                the error law there.
            independent: whether errors of different entries are.
        """
        self.law = as_pytree(law)
        self.independent = independent

    def at(self, prediction: Float[Array, "*shape"]) -> Error:
        """Return the law where this is predicted.

        Raises:
            ValueError: it is not as `independent` as was said.
        """
        law = self.law(prediction)
        if law.independent != self.independent:
            raise ValueError(
                f"`law` returned a {type(law).__name__} with independent="
                f"{law.independent}; say so: Heteroscedastic(law, "
                f"independent={law.independent})."
            )
        return law

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Refuse: a residual does not tell what is predicted.

        Raises:
            ValueError: always.
        """
        raise ValueError(_NEEDS_PREDICTION)

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Refuse: a residual does not tell what is predicted.

        Raises:
            ValueError: always.
        """
        raise ValueError(_NEEDS_PREDICTION)

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return one error of the law at `prediction`, in its units."""
        return self.at(prediction).sample(prediction, key=key)


class Proportional(eqx.Module):
    """A law for `Heteroscedastic`: Gaussian, with a part that grows with the value.

    The standard deviation is `sqrt(floor^2 + (fraction * prediction)^2)`: what the
    instrument adds by itself, and what grows with what it sees.
    """

    floor: Float[Array, "*floor"]
    fraction: Float[Array, "*fraction"]

    def __init__(self, floor: Positive, fraction: Positive):
        """Set the two parts; numbers, or arrays that broadcast to the value's shape.

        Args:
            floor: the error where 0 is predicted, in the value's units.
            fraction: of the prediction, dimensionless.

        Raises:
            EquinoxRuntimeError: one is not finite and above 0 everywhere.
        """
        self.floor = positive("floor", floor)
        self.fraction = positive("fraction", fraction)

    def __call__(self, prediction: Float[Array, "*shape"]) -> Diagonal:
        """Return the law where this is predicted."""
        floor = over("floor", self.floor, prediction)
        part = over("fraction", self.fraction, prediction) * prediction
        return unchecked(jnp.sqrt(floor**2 + part**2))


_NEEDS_PREDICTION = (
    "a heteroscedastic error depends on what is predicted: ask "
    "`observation.law(prediction)`, or `error.at(prediction)`, for the law there."
)
