import jax
import jax.numpy as jnp
import pytest

from skyens.nn import Condition
from skyens.nn._condition import Taken

TAKEN = Taken(fields=2, vector=3, tokens=4)
X = jnp.zeros((1, 5, 6), jnp.float32)


def test_what_is_missing_is_zeros_of_the_input_s_dtype():
    for condition in (None, Condition(), Condition(vector=jnp.zeros(3))):
        parts = TAKEN(condition, X)
        assert [part.shape for part in parts] == [(2, 5, 6), (3,), (1, 4)]
        assert all(part.dtype == jnp.float32 and not part.any() for part in parts)


def test_what_is_given_is_handed_on():
    given = Condition(jnp.ones((2, 5, 6)), 2 * jnp.ones(3), 3 * jnp.ones((7, 4)))
    parts = TAKEN(given, X)
    for part, size in zip(parts, (1, 2, 3), strict=True):
        assert part.dtype == jnp.float32
        assert (part == size).all()
    assert parts.tokens.shape == (7, 4)


def test_an_empty_set_of_tokens_is_none():
    parts = TAKEN(Condition(tokens=jnp.zeros((0, 4))), X)
    assert parts.tokens.shape == (1, 4)


def test_batches_are_mapped():
    batch = Condition(fields=jnp.ones((9, 2, 5, 6)), vector=jnp.ones((9, 3)))
    parts = jax.vmap(lambda condition: TAKEN(condition, X))(batch)
    assert parts.fields.shape == (9, 2, 5, 6)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"negative, got \{'vector_size': -1\}"):
        Taken(0, -1, 0)
    for part, shape in (("fields", (1, 5, 6)), ("vector", (2,)), ("tokens", (4,))):
        given = Condition(**{part: jnp.zeros(shape)})
        with pytest.raises(ValueError, match=rf"`condition.{part}` must"):
            TAKEN(given, X)
    with pytest.raises(ValueError, match=r"shape \(0,\) that this network was made"):
        Taken(0, 0, 0)(Condition(vector=jnp.ones(1)), X)
    with pytest.raises(ValueError, match="takes no `members`"):
        TAKEN(Condition(members=jnp.ones((2, 1, 5, 6))), X)
