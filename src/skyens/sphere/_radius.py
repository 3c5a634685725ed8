"""The radius of the sphere, in the unit that lengths have."""

from jax.core import Tracer


def check_radius(radius) -> None:
    """Check that a `radius` is positive, and not the Earth's in kilometres.

    Raises:
        ValueError: it is one of these.
    """
    if isinstance(radius, Tracer):
        return
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")
    if 6300 < radius < 6450:
        raise ValueError(
            f"`radius` = {radius} looks like the Earth's in km: lengths are in m here, "
            "so give 6.371e6, or 1 for the unit sphere."
        )
