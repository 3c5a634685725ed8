"""Forecasts of height by balance: what an analysis knows and a vortex model needs."""

import equinox as eqx
import jax
from jaxtyping import Array, Complex, Float

from skyens.dynamics._barotropic import BarotropicVorticity, LinearBalance
from skyens.sphere import SphericalHarmonics

STANDARD_GRAVITY = 9.80665


class BalancedHeight(eqx.Module):
    """Step fields of geopotential height (m) with a model of the streamfunction.

    The field is brought into balance, the model makes `steps` of its steps, and the
    height that balances the change is added to the field: what the balance or the
    truncation leaves out stays where it is.
    """

    model: BarotropicVorticity
    balance: LinearBalance
    sht: SphericalHarmonics
    steps: int = eqx.field(static=True)

    def __init__(
        self,
        model: BarotropicVorticity,
        balance: LinearBalance,
        sht: SphericalHarmonics,
        *,
        steps: int = 1,
    ):
        """Join the parts.

        Args:
            model: steps streamfunction coefficients.
            balance: between streamfunction and geopotential.
            sht: the transform of the grid the heights lie on.
            steps: model steps per call.

        Raises:
            ValueError: the three do not share one `lmax`, or `steps` is below 1.
        """
        degrees = {"model": model.sht.lmax, "balance": balance.lmax, "sht": sht.lmax}
        if len(set(degrees.values())) > 1:
            raise ValueError(f"all parts must have the same lmax, got {degrees}.")
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}.")
        self.model, self.balance, self.sht, self.steps = model, balance, sht, steps

    @property
    def time_step(self) -> float:
        """The length of one call, in s."""
        return self.steps * self.model.time_step

    def __call__(
        self,
        state: Float[Array, "*channel latitude longitude"],
        forcing: Complex[Array, "l m"] | None = None,
        *,
        key=None,
    ) -> Float[Array, "*channel latitude longitude"]:
        """Return the height one `time_step` later; `forcing` goes to the model."""
        before = self.streamfunction(state)
        flat = before.reshape(-1, *before.shape[-2:])
        advance = lambda psi, _: (jax.vmap(lambda p: self.model(p, forcing))(psi), None)
        after = jax.lax.scan(advance, flat, None, length=self.steps)[0]
        change = self.height(after.reshape(before.shape) - before)
        return state + change.astype(state.dtype)

    def streamfunction(
        self, height: Float[Array, "*channel latitude longitude"]
    ) -> Complex[Array, "*channel l m"]:
        """Return the coefficients (m2 s-1) of the streamfunction in balance."""
        coefficients = self.sht.analysis(height * STANDARD_GRAVITY)
        return self.balance.streamfunction(coefficients)

    def height(
        self, streamfunction: Complex[Array, "*channel l m"]
    ) -> Float[Array, "*channel latitude longitude"]:
        """Return the height (m), of zero mean, that balances a streamfunction."""
        geopotential = self.balance.geopotential(streamfunction)
        return self.sht.synthesis(geopotential) / STANDARD_GRAVITY
