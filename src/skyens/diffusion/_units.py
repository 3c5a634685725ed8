"""Units: what a prior's normalised states stand for, and what an observation is of.

Numbers do not tell whether they are kelvin or standard deviations. A prior that states
how it was normalised takes no observation that does not state its units too, nor one
of other units, and brings one of the same units into its own terms.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.observations import Observation

Units = str | tuple[str, ...]


class Normalised(eqx.Module):
    """A prior of normalised states, which says how to bring them to their units.

        prior = Normalised(denoiser, normaliser.inverse, "K")
        posterior = guide(prior, InUnits(observation, "K"))

    It is the denoiser that it holds. `guide`, `smc`, `split_gibbs` and
    `ensemble_guidance` then see observations of physical states through `decode`; what
    they draw is normalised, and `decode` brings it to its units.
    """

    denoiser: Denoiser
    decode: Callable[[Any], Any] = eqx.field(metadata={"trainable": False})
    units: Units = eqx.field(static=True)

    def __init__(self, denoiser: Denoiser, decode: Callable[[Any], Any], units: Units):
        """State what the states of a denoiser are.

        Args:
            denoiser: of the normalised states.
            decode: from one normalised state to the physical one, such as the `inverse`
                of a `Normaliser` or the `decode` of a `LatentSpace`.
            units: of what `decode` returns, one name or one for each channel.

        Raises:
            ValueError: `units` is empty.
        """
        self.denoiser, self.decode, self.units = denoiser, decode, _named(units)

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, normalised as `x` is."""
        return self.denoiser(x, sigma, condition=condition)


class InUnits(eqx.Module):
    """An observation that says in which units the states are that its operator sees."""

    observation: Observation
    units: Units = eqx.field(static=True)

    def __init__(self, observation: Observation, units: Units):
        """State the `units` of the states, named as the prior names them.

        Raises:
            ValueError: `units` is empty.
        """
        self.observation, self.units = observation, _named(units)


def in_terms_of(denoiser: Any, observation: Any) -> Any:
    """Return the observation as one of the denoiser's states.

    Neither states units: it comes back as it is. A denoiser that wraps another in an
    attribute `denoiser`, as a guided one does, states what that one does.

    Raises:
        ValueError: only one of them states its units, or they differ.
    """
    prior = denoiser
    while prior is not None and not isinstance(prior, Normalised):
        prior = getattr(prior, "denoiser", None)
    stated = isinstance(observation, InUnits)
    if prior is None and not stated:
        return observation
    if prior is None:
        raise ValueError(
            f"`observation` is of states in {observation.units}, and `denoiser` does "
            "not say how its states become that: give it as `Normalised(denoiser, "
            "decode, units)`."
        )
    if not stated:
        raise ValueError(
            f"`denoiser` knows normalised states, which decode to {prior.units}, and "
            "`observation` does not say which units the states have that it is of: "
            "give it as `InUnits(observation, units)`."
        )
    if prior.units != observation.units:
        raise ValueError(
            f"`observation` is of states in {observation.units}, and those of "
            f"`denoiser` decode to {prior.units}: let `decode`, or "
            "`observation.pullback`, convert one to the other."
        )
    return observation.observation.pullback(prior.decode)


def _named(units):
    if not units:
        raise ValueError('`units` must be named, "1" for none, got nothing.')
    return units
