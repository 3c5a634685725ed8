"""Which grid has these coordinates, and if none, what was seen instead."""

import numpy as np

from skyens.sphere._quadrature import KINDS, Kind, rows


def recognise_rows(latitude, tolerance: float) -> tuple[Kind, bool]:
    """Return the kind of grid that has these rows, and whether they run southward.

    Raises:
        ValueError: none has; the message says what was seen.
    """
    latitude = _as_vector("latitude", latitude)
    n = latitude.size
    if n < 2:
        raise ValueError(f"`latitude` needs at least 2 values, got {n}.")
    seen = f"`latitude` ({n} values from {latitude[0]:g} to {latitude[-1]:g})"
    if latitude.min() < -90 - 1e-6 or latitude.max() > 90 + 1e-6:
        if _nearest(90 - latitude)[2].max() <= tolerance * 180 / n:
            raise ValueError(f"{seen} is colatitude: give 90 - it, degrees north.")
        raise ValueError(
            f"{seen} must lie in [-90, 90] degrees; are the arguments swapped?"
        )
    steps = np.diff(latitude)
    if np.any(wrong := np.sign(steps) != np.sign(steps[0])) or steps[0] == 0:
        row = int(np.argmax(wrong)) if steps[0] else 0
        raise ValueError(
            "`latitude` must rise or fall strictly from row to row; it does not "
            f"from row {row} ({latitude[row]:g}) to row {row + 1} "
            f"({latitude[row + 1]:g})."
        )
    kind, known, distance = _nearest(latitude)
    allowed = tolerance * 180 / n
    if distance.max() <= allowed:
        return kind, bool(steps[0] < 0)
    if _nearest(np.rad2deg(latitude))[2].max() <= allowed:
        raise ValueError(f"{seen} is in radians: give degrees, `np.rad2deg` of it.")
    row = int(np.argmax(distance))
    raise ValueError(
        f"{seen} is no known grid: the nearest, {kind}, differs by up to "
        f"{distance[row]:.3g} degrees (allowed: {allowed:.2g}), at row {row}, which is "
        f"{latitude[row]:g} and should be {known[row]:g}. {_guess(latitude, allowed)}"
        "Interpolate to a known grid first, or raise `tolerance`."
    )


def recognise_columns(longitude, tolerance: float) -> tuple[int, float]:
    """Return the number of columns and the first longitude, in degrees.

    Raises:
        ValueError: they are not equal steps east around the circle; the message says
            what they are.
    """
    longitude = _as_vector("longitude", longitude)
    n = longitude.size
    step = 360 / n
    if _strays(longitude, step) <= tolerance:
        return n, _origin(longitude, step)
    east = np.mod(np.diff(longitude), 360)
    seen = f"`longitude` ({n} values from {longitude[0]:g} to {longitude[-1]:g})"
    turn = np.mod(longitude[-1] - longitude[0] + 180, 360) - 180
    if abs(turn) <= tolerance * step and (n == 2 or np.all(east > 0)):
        raise ValueError(
            f"`longitude` repeats its first value at the end ({longitude[0]:g} and "
            f"{longitude[-1]:g} degrees): drop the wrap column."
        )
    if _strays(np.rad2deg(longitude), step) <= tolerance:
        raise ValueError(f"{seen} is in radians: give degrees, `np.rad2deg` of it.")
    if _strays(-longitude, step) <= tolerance:
        raise ValueError(f"{seen} runs west; reverse it so that it runs east.")
    usual = float(np.median(east))
    uneven = np.abs(east - usual) > max(tolerance * usual, 1e-4)
    if np.any(uneven):
        i = int(np.argmax(uneven))
        raise ValueError(
            f"{seen} must cover the circle in equal steps east: from column {i} "
            f"({longitude[i]:g}) to column {i + 1} ({longitude[i + 1]:g}) it steps "
            f"{_signed(east[i]):g} degrees, elsewhere {_signed(usual):g}."
        )
    raise ValueError(
        f"{seen} must cover the circle in {n} equal steps east of {step:g} degrees; "
        f"its steps of {_signed(usual):g} cover {abs(_signed(usual)) * n:g} of 360 "
        "degrees. Fields must be global."
    )


def _nearest(latitude: np.ndarray) -> tuple[Kind, np.ndarray, np.ndarray]:
    """Return the kind whose rows lie nearest, these rows, and their distances."""
    south_first = latitude[-1] > latitude[0]
    candidates = []
    for kind in KINDS:
        known = rows(kind, latitude.size).latitude
        known = known[::-1] if south_first else known
        candidates.append((kind, known, np.abs(known - latitude)))
    return min(candidates, key=lambda candidate: candidate[2].max())


def _guess(latitude: np.ndarray, allowed: float) -> str:
    """Say what the rows may be, where that is plain."""
    n = latitude.size
    full = rows("equiangular", n + 1).latitude
    full = full if latitude[0] > latitude[-1] else full[::-1]
    for part, end in ((full[1:], full[0]), (full[:-1], full[-1])):
        if np.max(np.abs(part - latitude)) <= allowed:
            return (
                f"It is the equiangular grid of {n + 1} rows without its row at "
                f"{end:g}: put that back. "
            )
    steps = np.diff(latitude)
    if np.ptp(steps) <= 2 * allowed:
        return f"Its steps are all {steps.mean():g} degrees: is it a region? "
    return ""


def _strays(longitude: np.ndarray, step: float) -> float:
    """Return the largest distance from equal steps east, as a fraction of a step."""
    offset = longitude - longitude[0] - step * np.arange(longitude.size)
    return float(np.max(np.abs(np.mod(offset + 180, 360) - 180))) / step


def _origin(longitude: np.ndarray, step: float) -> float:
    """Return the first longitude, freed of single precision: grids compare equal.

    Longitudes that went through single precision start at a whole or half step, or
    at the shortest decimal that the stored number stands for.
    """
    origin = longitude[0]
    if np.any(longitude.astype(np.float32) != longitude):
        return float(origin)
    half = np.round(origin / (step / 2)) * (step / 2)
    if abs(half - origin) <= 2.0**-23 * abs(origin):
        return float(half)
    return float(str(np.float32(origin)))


def _signed(step: float) -> float:
    return (step + 180) % 360 - 180


def _as_vector(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`{name}` must have one axis, got shape {values.shape}.")
    if bad := int(np.sum(~np.isfinite(values))):
        raise ValueError(
            f"`{name}` has {bad} values that are not finite, the first at index "
            f"{int(np.argmax(~np.isfinite(values)))}."
        )
    return values
