import collections
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from skyens.training import _leaves

DTYPES = ["bfloat16", "float16", "float32", "float64", "complex128", "uint8", "bool"]
LEAVES = {
    "a": jnp.ones(2),
    "b": jnp.ones((2, 3), jnp.float32),
    "c": 1.0,
    "d": jr.key(0),
}


def round_trip(tmp_path, tree, like=None):
    _leaves.write(tmp_path / "arrays", {"tree": tree})
    records = {"tree": _leaves.describe("tree", tree)}
    likes = {"tree": tree if like is None else like}
    return _leaves.read(tmp_path / "arrays", records, likes)["tree"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_bit_by_bit(tmp_path, dtype):
    tree = {}
    for shape in [(), (3,), (0, 4), (2, 1, 3)]:
        size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
        words = np.random.default_rng(size).integers(0, 2, size, np.uint8).tobytes()
        array = np.frombuffer(words, jnp.dtype(dtype)).reshape(shape)
        tree[str(shape)] = jnp.asarray(array)
    for shape, again in round_trip(tmp_path, tree).items():
        assert isinstance(again, jax.Array)
        assert (again.dtype, str(again.shape)) == (jnp.dtype(dtype), shape)
        assert np.asarray(again).tobytes() == np.asarray(tree[shape]).tobytes()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_come_back(tmp_path, impl):
    key = jr.key(3, impl=impl)
    keys = [key, jr.split(key, 3), jr.split(key, 0)]
    for before, after in zip(keys, round_trip(tmp_path, keys), strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(jr.key_data(after), jr.key_data(before))


def test_every_other_leaf_keeps_its_class(tmp_path):
    tree = [0.1 + 0.2, True, 7, float("-inf"), np.float32(0.1), np.arange(3), jnp.sin]
    like = [0.0, False, 0, 0.0, np.float32(0), np.zeros(3, int), jnp.cos]
    again = round_trip(tmp_path, tree, like)
    assert [type(x) for x in again[:6]] == [type(x) for x in tree[:6]]
    assert again[:5] == tree[:5]
    np.testing.assert_array_equal(again[5], tree[5])
    assert again[6] is jnp.cos  # what is not kept is the builder's


def test_a_weakly_typed_scalar_stays_one(tmp_path):
    again = round_trip(tmp_path, [jnp.asarray(0.3), jnp.asarray(0.3, float)])
    assert [leaf.weak_type for leaf in again] == [True, False]
    assert again[0] == again[1] == 0.3


def test_devices_are_those_the_like_was_committed_to(tmp_path):
    device = jax.devices()[0]
    shape = jax.ShapeDtypeStruct((2,), float, sharding=SingleDeviceSharding(device))
    like = [jnp.ones(2), jax.device_put(jnp.ones(2), device), shape]
    again = round_trip(tmp_path, [jnp.ones(2), jnp.ones(2), jnp.ones(2)], like)
    assert [leaf.committed for leaf in again] == [False, True, True]


def test_a_shape_alone_is_like_enough(tmp_path):
    tree = {"weight": jnp.arange(3.0), "key": jr.key(1), "empty": jnp.ones(0)}
    again = round_trip(tmp_path, tree, jax.eval_shape(lambda: tree))
    np.testing.assert_array_equal(again["weight"], tree["weight"])
    np.testing.assert_array_equal(jr.key_data(again["key"]), jr.key_data(tree["key"]))
    assert again["empty"].shape == (0,)


def test_leaves_find_their_places_by_path_not_by_order(tmp_path):
    before = collections.namedtuple("State", ["model", "steps"])
    after = collections.namedtuple("State", ["steps", "model"])
    tree = before(model=jnp.ones(2), steps=jnp.zeros(2))
    _leaves.write(tmp_path / "arrays", {"tree": tree})
    records = {"tree": _leaves.describe("tree", tree)}
    like = after(jnp.ones(2), jnp.ones(2))
    assert not _leaves.difference(records["tree"], _leaves.describe("tree", like))
    again = _leaves.read(tmp_path / "arrays", records, {"tree": like})["tree"]
    np.testing.assert_array_equal(again.model, [1.0, 1.0])
    np.testing.assert_array_equal(again.steps, [0.0, 0.0])


def difference(**changed):
    describe = lambda leaves: _leaves.describe("net", leaves)
    return _leaves.difference(describe(LEAVES), describe({**LEAVES, **changed}))


def test_values_and_array_libraries_make_no_difference():
    same = {"a": jnp.zeros(2), "b": np.ones((2, 3), np.float32), "c": 2.0}
    assert difference(**same, d=jr.key(1)) is None


@pytest.mark.parametrize(
    ("changed", "path", "here", "there"),
    [
        ({"b": jnp.ones((2, 4))}, "['b']", "float32 (2, 3)", "float64 (2, 4)"),
        ({"a": None}, "['a']", "float64 (2,)", "nothing"),
        ({"e": jnp.ones(1)}, "['e']", "nothing", "float64 (1,)"),
        ({"c": 1}, "['c']", "a Python float", "a Python int"),
        ({"d": jr.key(0, impl="rbg")}, "['d']", "key<fry> ()", "key<rbg> ()"),
        ({"a": 1.0, "c": 1}, "['a']", "float64 (2,)", "a Python float"),
    ],
)
def test_the_first_difference_is_named(changed, path, here, there):
    words = f"at `net{path}` it has {here}, the builder's model has {there}"
    assert difference(**changed) == words


def test_a_missing_orbax_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'skyens\[train\]'"):
        _leaves.write(tmp_path / "arrays", {"tree": jnp.ones(2)})
