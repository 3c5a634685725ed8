import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.nn import Channels

CHANNELS = Channels(["z500", "t850", "u10"], ["m2 s-2", "K", "m s-1"])


def fields(shape=(4, 5), dtype=jnp.float64):
    keys = jr.split(jr.key(0), 3)
    names = ("u10", "z500", "t850")
    return {n: jr.normal(k, shape, dtype) for n, k in zip(names, keys, strict=True)}


class ChannelsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_packing_follows_the_order_of_names_not_of_the_dict(self):
        for shape in ((4, 5), (2, 4, 5), (3, 2, 4, 5)):
            named = fields(shape, jnp.float32)
            packed = self.variant(Channels.pack)(CHANNELS, named)
            order = [np.asarray(named[name]) for name in ("z500", "t850", "u10")]
            chex.assert_trees_all_equal(packed, jnp.asarray(np.stack(order, -3)))
            assert packed.dtype == jnp.float32


@settings(deadline=None, max_examples=10)
@given(names=st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True))
def test_unpack_undoes_pack_and_keeps_the_order(names):
    channels = Channels(names, ["1"] * len(names))
    array = jnp.arange(float(len(names) * 24)).reshape(2, len(names), 3, 4)
    named = channels.unpack(array)
    assert list(named) == names
    chex.assert_trees_all_equal(channels.pack(named), array)
    assert [channels.index(name) for name in names] == list(range(len(names)))


def test_equal_channels_never_compile_again():
    traces = []

    @jax.jit
    def double(channels, array):
        traces.append(channels)
        return 2 * array

    twin = Channels(CHANNELS.names, CHANNELS.units)
    double(CHANNELS, jnp.ones(2))
    double(twin, jnp.ones(2))
    assert len(traces) == 1
    assert twin == CHANNELS
    assert hash(twin) == hash(CHANNELS)
    assert twin != Channels(CHANNELS.names, ("1", "K", "m s-1"))


def test_gradient_reaches_each_field():
    weights = jnp.asarray([1.0, 2.0, 3.0])[:, None, None]
    total = lambda named: (weights * CHANNELS.pack(named)).sum()
    gradients = jax.grad(total)(fields())
    expected = {"z500": 1.0, "t850": 2.0, "u10": 3.0}
    for name, value in expected.items():
        np.testing.assert_array_equal(gradients[name], np.full((4, 5), value))


def test_wrong_fields_are_reported():
    named = fields()
    with pytest.raises(ValueError, match=r"missing: \['t850'\], unknown: \['t2m'\]"):
        CHANNELS.pack(
            {"t2m": named["t850"], "z500": named["z500"], "u10": named["u10"]}
        )
    with pytest.raises(ValueError, match=r"'u10' is float64 \(4, 6\)"):
        CHANNELS.pack({**named, "u10": jnp.zeros((4, 6))})
    with pytest.raises(ValueError, match=r"'t850' is float32 \(4, 5\)"):
        CHANNELS.pack({**named, "t850": named["t850"].astype(jnp.float32)})
    with pytest.raises(ValueError, match=r"3 channels .* got \(2, 4, 5\)"):
        CHANNELS.unpack(jnp.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match=r"one of .* got 'q700'"):
        CHANNELS.index("q700")


def test_wrong_names_are_reported():
    with pytest.raises(ValueError, match=r"got 'z500' twice"):
        Channels(("z500", "z500"), ("m", "m"))
    with pytest.raises(ValueError, match="got 1 for 2 names"):
        Channels(("a", "b"), ("K",))
    with pytest.raises(ValueError, match=r"write \('K',\)"):
        Channels(("t",), "K")
    with pytest.raises(ValueError, match="at least one"):
        Channels((), ())
