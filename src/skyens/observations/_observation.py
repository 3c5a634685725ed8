"""The observation: what was measured, how a state would show it, and how well."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from skyens.observations._callables import as_pytree
from skyens.observations._chain import Chain
from skyens.observations._errors import Error, solve
from skyens.observations._places import check_latitude
from skyens.observations._precision import wide
from skyens.sphere._precision import as_float


class Observation(eqx.Module):
    """Values, the operator that predicts them from one state, and their error.

    `value = operator(state) + error`. Filters, variational methods and diffusion
    posteriors all take this one object. Its residuals are in float32 at least;
    float32 states give float32 whatever the dtype of the value.

    A value that is not finite joins the `mask`, under tracing too. A masked entry
    changes neither a result nor a gradient, as long as the operator's derivative is
    finite there.

    An error law may depend on what is predicted (`error.at(prediction)`) and need not
    be Gaussian. Whatever whitens (`innovation`, `linearise`, every Kalman filter) then
    uses the Gaussian law that stands for it there, see `gaussian_error`; `log_prob` and
    `sample` use the law itself.

    A value may be periodic, a direction say: its residuals then lie in
    `[-period / 2, period / 2)`, and predictions of members are averaged in the turn
    that `unwrap` brings them to.

    An observation whose operator is a Module or a function is a pytree of arrays only:
    it passes through `jax.jit`, `vmap` and `scan`.
    """

    value: Float[Array, "*observation"]
    operator: Callable[[Any], Array]
    error: Error
    mask: Bool[Array, "*observation"]
    rejected: Bool[Array, "*observation"]
    coordinates: dict[str, Float[Array, "*observation"]] | None
    period: Float[Array, "*observation"] | None

    def __init__(
        self,
        value: Float[Array | np.ndarray, "*observation"],
        operator: Callable[[Any], Array],
        error: Error,
        mask: Bool[Array | np.ndarray, "..."] | None = None,
        coordinates: Mapping[str, Float[Array | np.ndarray, "..."]] | None = None,
        *,
        rejected: Bool[Array | np.ndarray, "..."] | None = None,
        period: float | int | Float[Array | np.ndarray, "..."] | None = None,
    ):
        """Put together what was seen.

        Args:
            value: what was measured, any shape and unit, NaN where nothing was.
            operator: from one state to an array of the value's shape and unit.
            error: law of `value - operator(state)`, for example `Diagonal(std)`.
            mask: True where the value counts; broadcasts to the value's shape.
            coordinates: where each entry is, by name (`latitude` and `longitude` in
                degrees); they broadcast to the value's shape. Those of the operator,
                if it has any, when not given.
            rejected: True where quality control has refused a value, which is masked
                then and counted apart; broadcasts to the value's shape.
            period: after which a value is the same again, 360 for a direction in
                degrees, infinite for entries that are not periodic; broadcasts to the
                value's shape. That of the operator, if it has one, when not given.

        Raises:
            ValueError: `value` is empty, or mask, coordinates, period or error do not
                fit its shape.
            EquinoxRuntimeError: a latitude that was given lies outside [-90, 90].
        """
        value = as_float(value)
        if value.size == 0:
            raise ValueError(
                f"`value` is empty, of shape {value.shape}. To observe nothing at "
                "times, keep the entries and mask them."
            )
        mask = jnp.asarray(True if mask is None else mask)
        if coordinates is None:
            coordinates = getattr(operator, "coordinates", None)
        elif "latitude" in coordinates:
            latitude = check_latitude(coordinates["latitude"])
            coordinates = {**coordinates, "latitude": latitude}
        if period is None:
            period = getattr(operator, "period", None)
        if coordinates is not None:
            coordinates = {
                name: _fit(f"coordinates[{name!r}]", jnp.asarray(where), value.shape)
                for name, where in coordinates.items()
            }
        self.value = value
        self.operator = as_pytree(operator)
        self.error = error
        present = _fit("mask", mask, value.shape) & jnp.isfinite(value)
        refused = jnp.asarray(False if rejected is None else rejected)
        self.rejected = _fit("rejected", refused, value.shape) & jnp.isfinite(value)
        self.mask = present & ~self.rejected
        self.coordinates = coordinates
        if period is not None:
            period = _fit("period", jnp.asarray(period, value.dtype), value.shape)
        self.period = period
        white = jax.eval_shape(
            lambda value, mask: self.law(value).whiten(value, mask), value, self.mask
        )
        if white.shape != value.shape:
            raise ValueError(
                f"`error` whitens values of shape {value.shape} to {white.shape}."
            )

    def predict(self, state: PyTree[Any]) -> Float[Array, "*observation"]:
        """Return what `state`, one member, would show, in the units of the value.

        Raises:
            ValueError: the operator's output has not the value's shape, or is not real.
        """
        return check_prediction(self.operator(state), self.value.shape)

    def unwrap(
        self, predictions: Float[Array, "member *observation"]
    ) -> Float[Array, "member *observation"]:
        """Return predictions of members in the turn that is nearest to the first's.

        Means and anomalies of periodic ones make sense then: the mean of 359 and 1
        degrees is 360, not 180. Without a period they come back as they are.
        """
        if self.period is None:
            return predictions
        first = predictions[:1]
        return first + wrap(predictions - first, self.period[None])

    def residual(
        self, prediction: Float[Array, "*observation"]
    ) -> Float[Array, "*observation"]:
        """Return `value - prediction`, 0 where masked, in the value's units.

        Where the value is periodic, it is the shortest way round.
        """
        dtype = wide(prediction.dtype)
        # Double where: neither a missing value nor an unseen state may leak its NaN.
        value = jnp.where(self.mask, self.value, 0).astype(dtype)
        prediction = jnp.where(self.mask, prediction, 0).astype(dtype)
        difference = value - prediction
        if self.period is not None:
            difference = wrap(difference, self.period)
        return jnp.where(self.mask, difference, 0)

    def law(self, prediction: Float[Array, "*observation"]) -> Error:
        """Return the law of the error, given what is predicted: `error.at`, if any.

        A prediction that is not finite counts as 0: its residual says that it is not,
        if the entry counts.
        """
        at = getattr(self.error, "at", None)
        if at is None:
            return self.error
        return at(jnp.where(jnp.isfinite(prediction), prediction, 0))

    def gaussian_error(self, prediction: Float[Array, "*observation"]) -> Error:
        """Return the Gaussian law that stands for the error about this prediction.

        That is `error` itself if it is Gaussian. A robust law says by
        `law.gaussian(residual, mask)` how much it trusts each value; methods that
        iterate ask again at each iterate (iteratively reweighted least squares). No
        derivative goes through this choice.
        """
        law = self.law(jax.lax.stop_gradient(prediction))
        gaussian = getattr(law, "gaussian", None)
        if gaussian is None:
            return law
        return gaussian(jax.lax.stop_gradient(self.residual(prediction)), self.mask)

    def innovation(self, state: PyTree[Any]) -> Float[Array, "*observation"]:
        """Return `R^-1/2 (value - predict(state))`, 0 where masked, dimensionless."""
        prediction = self.predict(state)
        error = self.gaussian_error(prediction)
        return error.whiten(self.residual(prediction), self.mask)

    def solve(
        self,
        residual: Float[Array, "*observation"],
        prediction: Float[Array, "*observation"] | None = None,
    ) -> Float[Array, "*observation"]:
        """Return `R^-1 residual`, 0 where masked, per unit of the value.

        R is the covariance of `gaussian_error` about the `prediction`; if that is left
        out, about the one that leaves this residual. It matters for errors that are
        robust or depend on the prediction only.
        """
        if prediction is None:
            prediction = jnp.where(self.mask, self.value, 0).astype(residual.dtype)
            prediction = prediction - jnp.where(self.mask, residual, 0)
        return solve(self.gaussian_error(prediction), residual, self.mask)

    def about(self, prediction: Float[Array, "*observation"]) -> "Observation":
        """Return the observation with its Gaussian error about this prediction.

        An analysis with it, and again about what that analysis predicts, and so on, is
        iteratively reweighted least squares for robust errors.
        """
        law = self.gaussian_error(prediction)
        # An error may hold no array at all.
        here = lambda node: node is self.error
        return eqx.tree_at(lambda o: o.error, self, law, is_leaf=here)

    def log_prob(self, state: PyTree[Any]) -> Scalar:
        """Return the log-likelihood of `state`, over the entries that count."""
        prediction = self.predict(state)
        law = self.law(prediction)
        return law.log_prob(self.residual(prediction), self.mask)

    def reject(self, wrong: Bool[Array, "*observation"]) -> "Observation":
        """Return the observation without the entries that are `wrong`.

        They are masked, and counted as rejected; those that were masked before stay so.
        """
        rejected = self.rejected | (wrong & self.mask)
        return eqx.tree_at(
            lambda o: (o.mask, o.rejected), self, (self.mask & ~wrong, rejected)
        )

    def sample(
        self, state: PyTree[Any], *, key: Key[Array, ""]
    ) -> Float[Array, "*observation"]:
        """Return a value that `state` might have given, at masked entries too.

        One that is periodic may be in any turn.
        """
        prediction = self.predict(state)
        return prediction + self.law(prediction).sample(prediction, key=key)

    def linearise(
        self, state: PyTree[Any]
    ) -> tuple[Float[Array, "*observation"], lx.FunctionLinearOperator]:
        """Return the innovation and the derivative of the whitened prediction.

        With `innovation = R^-1/2 (y - H(x))`, the operator is `R^-1/2 dH/dx`, so a
        change dx of the state leaves the innovation `innovation - operator.mv(dx)`;
        masked entries are 0 in both. The operator is matrix-free: `mv` is a
        Jacobian-vector product, `operator.transpose().mv` its adjoint. Its input has
        the structure of the state's inexact leaves, None in place of the others; its
        output has the shape of the value. In complex leaves it is real-linear.
        """
        state = jax.tree.map(jnp.asarray, state)
        inexact, rest = eqx.partition(state, eqx.is_inexact_array)
        prediction = lambda x: -self.innovation(eqx.combine(x, rest))
        negative, derivative = jax.linearize(prediction, inexact)
        structure = jax.eval_shape(lambda: inexact)
        return -negative, lx.FunctionLinearOperator(derivative, structure)

    def pullback(self, f: Callable[[Any], PyTree[Any]]) -> "Observation":
        """Return the same observation of what `f` decodes: `operator(f(state))`.

        `f` maps a state in other terms (other units, a latent, control variables, a
        part of a larger state) to the state that the operator knows.
        """
        return Observation(
            self.value,
            Chain(f, self.operator),
            self.error,
            self.mask,
            self.coordinates,
            rejected=self.rejected,
            period=self.period,
        )


def check_prediction(prediction: Any, shape: tuple[int, ...]) -> Array:
    """Return what an operator returned, as an array.

    Raises:
        ValueError: it has not the value's shape, or is not real.
    """
    prediction = jnp.asarray(prediction)
    if prediction.shape != shape:
        raise ValueError(
            f"`operator` returned the shape {prediction.shape}, `value` has {shape}."
        )
    if not jnp.issubdtype(prediction.dtype, jnp.floating):
        raise ValueError(
            f"`operator` must return real numbers, got {prediction.dtype}."
        )
    return prediction


def wrap(difference: Array, period: Array) -> Array:
    """Return `difference` less whole periods, in [-period / 2, period / 2)."""
    period = period.astype(difference.dtype)
    finite = jnp.isfinite(period)
    period = jnp.where(finite, period, 1)
    turns = jnp.floor(difference / period + 0.5)
    return difference - jnp.where(finite, turns, 0) * period


def _fit(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"`{name}` of shape {array.shape} does not broadcast to the value's shape "
            f"{shape}."
        ) from None
