"""Biases of instruments: parameters of an operator, to be estimated with the state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from skyens.observations._callables import as_pytree
from skyens.observations._parameters import over


class LinearBias(eqx.Module):
    """A bias of an `offset` and a sum of predictors, `coefficients @ predictors`.

    Predictors are numbers that are known, the scan angle say, or a function of the
    state, which returns the thickness of a layer say. Offset and coefficients are
    parameters to train; predictors are not. Keep predictors near 1 in size, so that all
    coefficients have about the same.

    Source: Dee (2005), Quart. J. Roy. Meteor. Soc. 131, 3323-3343, section 3.
    """

    coefficients: Float[Array, "predictor"]
    offset: Float[Array, "*offset"]
    predictors: Float[Array, "predictor *observation"] | Callable[[Any], Array] = (
        eqx.field(metadata={"trainable": False})
    )

    def __init__(
        self,
        coefficients: Float[Array | np.ndarray, "predictor"],
        predictors: Float[Array | np.ndarray, "..."] | Callable[[Any], Array],
        offset: float | int | Float[Array | np.ndarray, "..."] = 0.0,
    ):
        """Set the parameters and what they multiply.

        Args:
            coefficients: in the value's units, one for each predictor.
            predictors: `(predictor, ...)`, dimensionless, the rest as the value; or a
                function of the state that returns them.
            offset: in the value's units; it broadcasts to the value's shape.

        Raises:
            ValueError: there is not one coefficient for each predictor.
        """
        self.coefficients = jnp.asarray(coefficients)
        self.offset = jnp.asarray(offset, self.coefficients.dtype)
        if callable(predictors):
            self.predictors = as_pytree(predictors)
        else:
            self.predictors = jnp.asarray(predictors)
            self._check(self.predictors)

    def __call__(self, state: PyTree[Any]) -> Float[Array, "*observation"]:
        """Return the bias, in the value's units and the parameters' dtype.

        Raises:
            ValueError: the function returns another number of predictors, or the
                offset does not broadcast to their shape.
        """
        predictors = self.predictors
        if callable(predictors):
            predictors = jnp.asarray(predictors(state))
            self._check(predictors)
        predictors = predictors.astype(self.coefficients.dtype)
        bias = jnp.tensordot(self.coefficients, predictors, 1, precision="highest")
        return bias + over("offset", self.offset, bias)

    def _check(self, predictors):
        if predictors.shape[:1] != self.coefficients.shape:
            raise ValueError(
                f"`predictors` of shape {predictors.shape} need one coefficient each, "
                f"got {self.coefficients.size}."
            )


class Biased(eqx.Module):
    """See what another operator sees, plus the bias of the instrument.

    The bias is a number or an array that broadcasts to the value's shape, or a function
    of the state that returns one: a `LinearBias` or, for a bias that is estimated as a
    part of the state, `lambda state: state["bias"]`. Its arrays are parameters.
    """

    operator: Callable[[Any], Array]
    bias: Float[Array, "*bias"] | Callable[[Any], Array]

    def __init__(
        self,
        operator: Callable[[Any], Array],
        bias: float
        | int
        | Float[Array | np.ndarray, "..."]
        | Callable[[Any], Array] = 0.0,
    ):
        """Set the operator without bias, and the bias, in the value's units."""
        self.operator = as_pytree(operator)
        if callable(bias):
            self.bias = as_pytree(bias)
        else:
            number = isinstance(bias, int | float)
            self.bias = jnp.asarray(bias, float) if number else jnp.asarray(bias)

    def __call__(self, state: PyTree[Any]) -> Float[Array, "*observation"]:
        """Return the biased prediction, in the operator's dtype.

        Raises:
            ValueError: the bias does not broadcast to the prediction's shape.
        """
        prediction = self.operator(state)
        bias = jnp.asarray(self.bias(state)) if callable(self.bias) else self.bias
        return prediction + over("bias", bias, prediction)

    @property
    def coordinates(self) -> dict[str, Array] | None:
        """Those of the operator, if it has any."""
        return getattr(self.operator, "coordinates", None)

    @property
    def period(self) -> float | Array | None:
        """That of the operator, if it has one."""
        return getattr(self.operator, "period", None)
