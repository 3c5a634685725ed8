"""Winds as anemometers see them: how fast, and from where."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

Components = (
    tuple[Float[Array, "*observation"], Float[Array, "*observation"]]
    | Float[Array, "component *observation"]
)


class WindSpeed(eqx.Module):
    """See the speed of a wind `(eastward, northward)`, in its units.

    The wind is a pair of arrays or an array with a leading axis of two, as after
    `Interpolate` of both components: `Chain(Interpolate(...), WindSpeed())`. In a calm
    its derivative is 0.
    """

    def __call__(self, wind: Components) -> Float[Array, "*observation"]:
        """Return the speed.

        Raises:
            ValueError: `wind` is no pair.
        """
        u, v = _components(wind)
        square = u**2 + v**2
        # Double where: the square root must never see the 0 it would differentiate.
        moving = square > 0
        return jnp.where(moving, jnp.sqrt(jnp.where(moving, square, 1)), 0)


class WindDirection(eqx.Module):
    """See where a wind `(eastward, northward)` comes from, degrees clockwise of north.

    A wind from the north has 0, from the east 90; they lie in [0, 360). A direction is
    periodic, and an observation made with it knows that: innovations are the shortest
    way round, in [-180, 180). A wind no faster than `calm` has direction 0 and no
    derivative; as directions of weak winds say little, give a larger error there by
    `Heteroscedastic`, or mask them.
    """

    calm: float = eqx.field(default=1e-3, static=True)  # in the wind's units

    def __check_init__(self):
        """Check the setting.

        Raises:
            ValueError: `calm` is not above 0.
        """
        if not self.calm > 0:
            raise ValueError(f"`calm` must be above 0, got {self.calm}.")

    @property
    def period(self) -> float:
        """360 degrees."""
        return 360.0

    def __call__(self, wind: Components) -> Float[Array, "*observation"]:
        """Return the direction in degrees.

        Raises:
            ValueError: `wind` is no pair.
        """
        u, v = _components(wind)
        blowing = u**2 + v**2 > self.calm**2
        # Double where: a calm has no direction to differentiate. NaN is no calm.
        blowing = blowing | jnp.isnan(u) | jnp.isnan(v)
        u, v = jnp.where(blowing, u, 0), jnp.where(blowing, v, -1)
        direction = jnp.mod(jnp.rad2deg(jnp.atan2(-u, -v)), 360)
        # The remainder of a tiny negative angle rounds to 360.
        return jnp.where(direction >= 360, 0, direction)


def _components(wind: Components) -> tuple[Array, Array]:
    if len(wind) != 2:
        raise ValueError(
            "`wind` must be a pair of eastward and northward components, got "
            f"{len(wind)} arrays."
        )
    return wind[0], wind[1]
