"""What a layer of shallow water is in: its wind and the height of its surface."""

import equinox as eqx
from jaxtyping import Array, Complex, Float

from skyens.dynamics._barotropic import EARTH_RADIUS
from skyens.sphere import SphericalHarmonics


class ShallowWaterState(eqx.Module):
    """Coefficients `(l, m)` of vorticity and divergence (s-1) and surface height (m).

    Height is that of the free surface, above the same level as the orography's.
    """

    vorticity: Complex[Array, "*batch l m"]
    divergence: Complex[Array, "*batch l m"]
    height: Complex[Array, "*batch l m"]

    @classmethod
    def from_fields(
        cls,
        sht: SphericalHarmonics,
        u: Float[Array, "*batch latitude longitude"],
        v: Float[Array, "*batch latitude longitude"],
        height: Float[Array, "*batch latitude longitude"],
        *,
        radius: float = EARTH_RADIUS,
    ) -> "ShallowWaterState":
        """Return the state with this wind (m s-1) and height (m), on the grid of `sht`.

        Any grid will do: only `lmax` has to be the model's.

        Raises:
            ValueError: a field does not lie on that grid.
        """
        vorticity, divergence = sht.wind_analysis(u, v, radius=radius)
        return cls(vorticity, divergence, sht.analysis(height))

    def to_fields(
        self, sht: SphericalHarmonics, *, radius: float = EARTH_RADIUS
    ) -> tuple[
        Float[Array, "*batch latitude longitude"],
        Float[Array, "*batch latitude longitude"],
        Float[Array, "*batch latitude longitude"],
    ]:
        """Return eastward and northward wind (m s-1) and height (m) on a grid.

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        u, v = sht.wind_synthesis(self.vorticity, self.divergence, radius=radius)
        return u, v, sht.synthesis(self.height)
