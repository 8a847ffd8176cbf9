"""Random keys: a number folded in, whatever the generator."""

import jax


def fold_in(key: jax.Array, number: jax.Array | int) -> jax.Array:
    """Returns `jax.random.fold_in`, in which the order of the numbers counts with every generator.

    With `unsafe_rbg` JAX's is an exclusive or: the second array of step 1 would draw the numbers of the first
    array of step 2, and folding in the same number twice would give the key itself.
    """
    key = jax.random.fold_in(key, number)
    if jax.random.key_impl(key) == "unsafe_rbg":
        return jax.random.split(key, 1)[0]
    return key
