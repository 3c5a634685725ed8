"""Two layers of quasi-geostrophic flow: storms on a jet, and the world of MEDIDA."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.dynamics._checks import check_shape, check_time_step

Number = float | Float[Array, ""]
Pair = tuple[Number, Number] | Float[Array, " layer"]


class TwoLayerQG(eqx.Module):
    """One step `dt` of two quasi-geostrophic layers, periodic in x and y.

    The state is `q`, `(layer, y, x)`, upper layer first: the potential vorticity of the
    streamfunction `psi`, without the planet's,

        q_1 = lap psi_1 - F_1 (psi_1 - psi_2)
        q_2 = lap psi_2 + F_2 (psi_1 - psi_2)
        dq_k/dt = -jacobian J(psi_k, q_k) - beta psi_kx - U_k q_kx - Q_k psi_kx
                  + s_k F_k relaxation (psi_1 - psi_2 - psi_R) - [k = 2] drag lap psi_2
                  - curl(sponge(y) u_k) - hyperviscosity (-lap)^order q_k

    with `s = +1, -1`, the slopes of the background winds U,
    `Q_1 = F_1 (U_1 - U_2)` and `Q_2 = -F_2 (U_1 - U_2)`, and an equilibrium jet
    `-psi_Ry = jet_speed sech^2((y - y_mid) / jet_width)`, whose mean streams back
    uniformly so that it is periodic. In the channel of the default no winds blow, and a
    `sponge` brakes both layers where y begins and ends, at `sponge_rate sech^2` of the
    distance to that edge over `sponge_width`. `sponge_rate = 0` makes it doubly
    periodic; winds instead of relaxation make it the flow of Phillips. Every
    coefficient is a leaf and a switch: a model whose coefficient is 0 lacks the term.
    All is dimensionless, lengths in deformation radii where F is 1.

    Spectral in space, products without aliasing (the 3/2 rule); hyperviscosity exactly
    and all else by the classical Runge-Kutta method. A `forcing`, where given, is added
    to the tendency of q, constant over the step. The mean of the streamfunction over
    layers and area is arbitrary, and 0.

    Source: Phillips (1954), Tellus 6, 273-286; the jet and its sponges as in Lutsko &
    Hell (2021), J. Atmos. Sci. 78, and Mojgani et al. (2024), J. Adv. Model.
    Earth Syst. 16, e2023MS004033.
    """

    jacobian: Float[Array, ""]
    beta: Float[Array, ""]
    stretching: Float[Array, "layer"]
    winds: Float[Array, "layer"]
    relaxation: Float[Array, ""]
    jet_speed: Float[Array, ""]
    jet_width: Float[Array, ""]
    drag: Float[Array, ""]
    hyperviscosity: Float[Array, ""]
    sponge_rate: Float[Array, ""]
    sponge_width: Float[Array, ""]
    shape: tuple[int, int] = eqx.field(static=True)
    lengths: tuple[float, float] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    order: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int] = (192, 96),
        lengths: tuple[float, float] = (68.0, 46.0),
        dt: float = 0.025,
        *,
        jacobian: Number = 1.0,
        beta: Number = 0.196,
        stretching: Pair = (1.0, 1.0),
        winds: Pair = (0.0, 0.0),
        relaxation: Number = 0.01,
        jet_speed: Number = 1.0,
        jet_width: Number = 3.5,
        drag: Number = 0.07,
        hyperviscosity: Number = 1e-6,
        order: int = 4,
        sponge_rate: Number = 1.0,
        sponge_width: Number = 3.5,
    ):
        """Set grid, step and coefficients; the default is the channel of MEDIDA.

        Args:
            shape: the numbers of points along y and x.
            lengths: of the domain along y and x.
            dt: the step; stable up to about one point per step of the fastest wind.
            jacobian: coefficient of advection; 1 is nature's.
            beta: slope of the planet's vorticity along y.
            stretching: F of each layer; a layer of depth H has F proportional to 1 / H.
            winds: U of each layer.
            relaxation: rate at which `psi_1 - psi_2` goes to that of the jet.
            jet_speed: of the jet at its core, above the uniform return flow.
            jet_width: scale of the jet along y.
            drag: rate at which the lower layer's vorticity goes.
            hyperviscosity: coefficient of the Laplacian to the `order`.
            order: half of the derivatives in it.
            sponge_rate: rate of the brake at the edges.
            sponge_width: scale of the brake along y.

        Raises:
            ValueError: fewer than 8 points either way, a length or `dt` is not
                positive, `order` is below 1, or a pair has another shape.
        """
        if len(shape) != 2 or min(shape) < 8:
            raise ValueError(f"`shape` must be two numbers of at least 8, got {shape}.")
        if len(lengths) != 2 or not min(lengths) > 0:
            raise ValueError(f"`lengths` must be two positive numbers, got {lengths}.")
        if order < 1:
            raise ValueError(f"`order` must be at least 1, got {order}.")
        self.shape, self.order = (int(shape[0]), int(shape[1])), order
        self.lengths = (float(lengths[0]), float(lengths[1]))
        self.dt = check_time_step(dt)
        self.stretching, self.winds = _pair(stretching=stretching), _pair(winds=winds)
        self.jacobian, self.beta = (
            jnp.asarray(jacobian, float),
            jnp.asarray(beta, float),
        )
        self.relaxation = jnp.asarray(relaxation, float)
        self.jet_speed = jnp.asarray(jet_speed, float)
        self.jet_width = jnp.asarray(jet_width, float)
        self.drag = jnp.asarray(drag, float)
        self.hyperviscosity = jnp.asarray(hyperviscosity, float)
        self.sponge_rate = jnp.asarray(sponge_rate, float)
        self.sponge_width = jnp.asarray(sponge_width, float)

    @property
    def y(self) -> np.ndarray:
        """Where the rows are, from 0."""
        return np.arange(self.shape[0]) * self.lengths[0] / self.shape[0]

    @property
    def x(self) -> np.ndarray:
        """Where the columns are, from 0."""
        return np.arange(self.shape[1]) * self.lengths[1] / self.shape[1]

    def __call__(
        self,
        state: Float[Array, "layer y x"],
        forcing: Float[Array, "layer y x"] | None = None,
        *,
        key=None,
    ) -> Float[Array, "layer y x"]:
        """Return the potential vorticity `dt` later, in its dtype.

        Raises:
            ValueError: state or forcing has not two layers of the world's shape.
        """
        start, kept = self._spectrum("state", state)
        push = 0 if forcing is None else self._spectrum("forcing", forcing)[0]
        change = self._change(start.dtype)
        # Runge and Kutta see what hyperviscosity leaves (an integrating factor).
        half = jnp.exp(-self.dt / 2 * self._damping(start.dtype))
        whole = half**2
        at_start = change(start) + push
        a = half * (start + self.dt / 2 * at_start)
        at_a = change(a) + push
        b = half * start + self.dt / 2 * at_a
        at_b = change(b) + push
        c = whole * start + self.dt * half * at_b
        inner = whole * at_start + 2 * half * (at_a + at_b) + change(c) + push
        end = whole * start + self.dt / 6 * inner
        return jnp.fft.irfft2(end, self.shape).astype(kept)

    def tendency(self, state: Float[Array, "layer y x"]) -> Float[Array, "layer y x"]:
        """Return the time derivative of the potential vorticity."""
        q, kept = self._spectrum("state", state)
        change = self._change(q.dtype)(q) - self._damping(q.dtype) * q
        return jnp.fft.irfft2(change, self.shape).astype(kept)

    def streamfunction(
        self, state: Float[Array, "layer y x"]
    ) -> Float[Array, "layer y x"]:
        """Return the streamfunction of a potential vorticity."""
        q, kept = self._spectrum("state", state)
        return jnp.fft.irfft2(self._invert(q), self.shape).astype(kept)

    def potential_vorticity(
        self, streamfunction: Float[Array, "layer y x"]
    ) -> Float[Array, "layer y x"]:
        """Return the potential vorticity of a streamfunction, the state of a flow."""
        psi, kept = self._spectrum("streamfunction", streamfunction)
        upper, lower = self.stretching.astype(psi.dtype)
        pull = jnp.stack([-upper, lower])[:, None, None] * (psi[0] - psi[1])[None]
        q = pull - self._squares(psi.dtype)[None] * psi
        return jnp.fft.irfft2(q, self.shape).astype(kept)

    def equilibrium(self) -> Float[Array, "y x"]:
        """Return `psi_R`, the shear that relaxation seeks, of mean 0."""
        distance = np.abs(self.y - self.lengths[0] / 2)
        v = jnp.fft.fft(self.jet_speed * _sech_squared(distance, self.jet_width))
        slope = 1j * self._waves()[0][:, 0] * self._resolved()[:, 0]
        moves = slope != 0
        inverse = jnp.asarray(
            np.where(moves, 1 / np.where(moves, slope, 1), 0), v.dtype
        )
        profile = jnp.fft.ifft(-v * inverse).real
        return jnp.broadcast_to(profile[:, None], self.shape)

    def energy(self, state: Float[Array, "layer y x"]) -> Float[Array, ""]:
        """Return the mean kinetic and available potential energy per mass.

        Layers count by depth, the inverse of their stretching. Advection keeps it.
        """
        product = self.streamfunction(state) * state
        depths = self._depths(state.dtype)
        return -jnp.sum(depths * jnp.mean(product, axis=(1, 2))) / 2

    def enstrophy(self, state: Float[Array, "layer y x"]) -> Float[Array, "layer"]:
        """Return the mean of half the square of each layer's potential vorticity.

        Advection keeps it where there is neither beta nor wind.
        """
        state = check_shape("state", state, (2, *self.shape))
        return jnp.mean(state**2, axis=(1, 2)) / 2

    def _spectrum(self, name, field):
        """The half spectrum `(layer, l, k)` of a field, and the field's dtype."""
        field = check_shape(name, field, (2, *self.shape))
        kept = field.dtype
        if jnp.finfo(kept).bits < 32:  # transforms know no 16-bit numbers
            field = field.astype(jnp.float32)
        return jnp.fft.rfft2(field), kept

    def _waves(self) -> tuple[np.ndarray, np.ndarray]:
        """Angular wavenumbers along y (l, 1) and x (1, k)."""
        rows, columns = self.shape
        l = np.fft.fftfreq(rows, self.lengths[0] / rows)[:, None]
        k = np.fft.rfftfreq(columns, self.lengths[1] / columns)[None, :]
        return 2 * np.pi * l, 2 * np.pi * k

    def _resolved(self) -> np.ndarray:
        """All but the shortest waves of even numbers of points, which have no slope."""
        rows, columns = self.shape
        l = np.abs(np.fft.fftfreq(rows, 1 / rows))[:, None]
        return (2 * l < rows) & (2 * np.arange(columns // 2 + 1)[None, :] < columns)

    def _squares(self, dtype):
        l, k = self._waves()
        return jnp.asarray(l**2 + k**2, dtype)

    def _damping(self, dtype):
        """The rate of hyperviscosity (1, l, k)."""
        # A power of float32 squares would keep less than the coefficient has.
        l, k = self._waves()
        powers = jnp.asarray((l**2 + k**2) ** self.order, dtype)
        return (self.hyperviscosity.astype(dtype) * powers)[None]

    def _depths(self, dtype):
        """Depth of each layer over that of both."""
        upper, lower = self.stretching.astype(dtype)
        return jnp.stack([lower, upper]) / (upper + lower)

    def _invert(self, q):
        """The streamfunction of a potential vorticity, by its two vertical modes."""
        squares, depths = self._squares(q.dtype), self._depths(q.dtype)
        moves = squares != 0
        mean = depths[0] * q[0] + depths[1] * q[1]
        mean = jnp.where(moves, -mean / jnp.where(moves, squares, 1), 0)
        shear = (q[1] - q[0]) / (squares + jnp.sum(self.stretching.astype(q.dtype)))
        return jnp.stack([mean + depths[1] * shear, mean - depths[0] * shear])

    def _change(self, dtype):
        """All that changes the spectrum of q but hyperviscosity and forcing."""
        real = jnp.finfo(dtype).dtype
        spectral = lambda value: value.astype(dtype)
        each = lambda value: value[:, None, None]
        resolved = self._resolved()
        l, k = self._waves()
        slope_y = jnp.asarray(np.where(resolved, 1j * l, 0), dtype)[None]
        slope_x = jnp.asarray(np.where(resolved, 1j * k, 0), dtype)[None]
        upper, lower = self.stretching
        shear = self.winds[0] - self.winds[1]
        gradient = self.beta + shear * jnp.stack([upper, -lower])
        held = jnp.asarray(resolved, dtype)[None]
        winds, gradient = each(spectral(self.winds)), each(spectral(gradient))
        pull = each(spectral(self.relaxation * jnp.stack([upper, -lower])))
        sought = jnp.fft.rfft2(self.equilibrium().astype(real))
        drag = spectral(self.drag) * self._squares(dtype)

        fine = rows, columns = tuple(-(-3 * n // 2) for n in self.shape)
        finer = rows * columns / (self.shape[0] * self.shape[1])
        y = np.arange(rows) * self.lengths[0] / rows
        to_edge = np.minimum(y, self.lengths[0] - y)
        brake = self.sponge_rate * _sech_squared(to_edge, self.sponge_width)
        brake, jacobian = brake.astype(real)[None, :, None], self.jacobian.astype(real)

        def change(q):
            psi = self._invert(q)
            moving = jnp.stack([-slope_y * psi, slope_x * psi, held * q])
            u, v, carried = jnp.fft.irfft2(_pad(moving, self.shape, fine) * finer, fine)
            # The curl of a brake is the divergence of a flux, like advection.
            east = jacobian * u * carried + brake * v
            north = jacobian * v * carried - brake * u
            fluxes = _cut(jnp.fft.rfft2(jnp.stack([east, north])), self.shape) / finer
            total = -slope_x * fluxes[0] - slope_y * fluxes[1]
            total = total - slope_x * (winds * q + gradient * psi)
            total = total + pull * (psi[0] - psi[1] - sought)[None]
            return total.at[1].add(drag * psi[1])

        return change


def _sech_squared(distance: np.ndarray, width: Float[Array, ""]) -> Float[Array, " y"]:
    # By exponentials that only fall: far away it is 0, and so is its gradient.
    fall = jnp.exp(-2 * jnp.asarray(distance, width.dtype) / width)
    return 4 * fall / (1 + fall) ** 2


def _pad(spectrum, shape, fine):
    """The half spectrum of a finer grid: zeros after the shortest waves."""
    rows, columns = fine
    north = (shape[0] + 1) // 2
    before = [(0, 0)] * (spectrum.ndim - 2)
    wide = [(0, columns // 2 + 1 - spectrum.shape[-1])]
    south = [(rows - shape[0], 0)]
    upper, lower = spectrum[..., :north, :], spectrum[..., north:, :]
    upper = jnp.pad(upper, [*before, (0, 0), *wide])
    lower = jnp.pad(lower, [*before, *south, *wide])
    return jnp.concatenate([upper, lower], axis=-2)


def _cut(spectrum, shape):
    """The waves of a finer grid that `shape` has."""
    north, waves = (shape[0] + 1) // 2, shape[1] // 2 + 1
    upper = spectrum[..., :north, :waves]
    lower = spectrum[..., spectrum.shape[-2] + north - shape[0] :, :waves]
    return jnp.concatenate([upper, lower], axis=-2)


def _pair(**given) -> Float[Array, " layer"]:
    ((name, pair),) = given.items()
    if len(pair) != 2:
        raise ValueError(f"`{name}` must be a pair, one for each layer, got {pair}.")
    return jnp.stack([jnp.asarray(value, float) for value in pair])
