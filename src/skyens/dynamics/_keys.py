"""Keys: every random number of a run has an address, so any member replays alone."""

import enum

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, Key


class Purpose(enum.IntEnum):
    """What random numbers are for; the first thing folded into a run's key."""

    PERTURB = 0
    STEP = 1
    ANALYSE = 2
    OBSERVE = 3
    TRAIN = 4


def run_key(
    key: Key[Array, ""],
    purpose: Purpose,
    *,
    start: np.datetime64 | str | None = None,
    version: int = 0,
) -> Key[Array, ""]:
    """Return the key of one purpose, start and model version of a run.

    `start` counts as whole hours since 1800-01-01, `version` numbers the model (a
    checkpoint, say). Members and leads are folded in after them, by `member_keys` and
    `rollout`, so that adding starts or members changes no other's numbers.

    Raises:
        ValueError: `start` lies before 1800 or not on a whole hour.
    """
    hours = 0
    if start is not None:
        since = np.datetime64(start) - np.datetime64("1800-01-01")
        whole = since.astype("timedelta64[h]")
        hours = int(whole.astype(np.int64))
        if hours < 0 or since != whole:
            raise ValueError(
                f"`start` must be a whole hour from 1800-01-01 on, got {start}."
            )
    for number in (int(purpose), hours, version):
        key = jr.fold_in(key, np.uint32(number))
    return key


def member_keys(
    key: Key[Array, ""], members: int | Int[Array | np.ndarray, " member"]
) -> Key[Array, " member"]:
    """Return one key for each member: a number of members, or their indices."""
    indices = jnp.arange(members) if isinstance(members, int) else jnp.asarray(members)
    return jax.vmap(lambda member: jr.fold_in(key, member))(indices)
