"""XSAM's search when the loss is computed in 16 bits, and what would help.

    python -m benchmarks.experiments.sixteen_bits    one minute; writes benchmarks/results/sixteen_bits.jsonl

At 60 points of the training of an MLP (digits, 40 % wrong labels, three seeds) the 21 losses on the arc of
`xsam(0.1, 0.3)` are compared in several ways, by the rule of `spherical_search`. For each: the mean distance
of its α* from that of float32, and what its choice loses, as a part of the largest minus the smallest loss on
the arc.

    float32              model and loss in float32
    bfloat16             model and loss in bfloat16
    logits in float32    a bfloat16 model whose outputs are cast before the loss
    midpoint             ⟨∇L(w + ρ_m v/2), ρ_m v⟩, model and loss in bfloat16: about L(w + ρ_m v) − L(w), but
                         with an error relative to the difference instead of the loss; two forward passes
    two points           the same with the two points of Gauss's rule; four forward passes
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.data import sources
from benchmarks.data.arrays import load
from benchmarks.records import RESULTS, Record, versions_and_device, write_records
from optax_sam import tree_math
from optax_sam.descent.spherical_search import _worst as worst
from optax_sam.descent.spherical_search import slerp

FILE = RESULTS / "sixteen_bits.jsonl"
RHO, RHO_MAX = 0.1, 0.3
ALPHAS = jnp.linspace(0, 2, 21)
WIDTHS = (64, 64, 64, 10)
MIDPOINT = ((0.5, 1.0),)
TWO_POINTS = ((0.5 - 0.5 / 3**0.5, 0.5), (0.5 + 0.5 / 3**0.5, 0.5))


def loss(params, batch, model_dtype=jnp.float32, loss_dtype=jnp.float32):
    """Mean cross-entropy of an MLP."""
    x, labels = batch
    x = x.astype(model_dtype)
    for i, (weight, bias) in enumerate(params):
        x = x @ weight.astype(model_dtype) + bias.astype(model_dtype)
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return optax.softmax_cross_entropy_with_integer_labels(x.astype(loss_dtype), labels).mean()


@jax.jit
def search(params, batch):
    """Returns what each way compares, for every α."""
    g = jax.grad(loss)(params, batch)
    epsilon = tree_math.scale(RHO / tree_math.norm(g), g)
    g_prime = jax.grad(loss)(tree_math.add(params, epsilon), batch)
    length = tree_math.norm(g_prime)
    cosine = tree_math.vdot(epsilon, g_prime) / (RHO * length)

    def step(alpha):
        weight_0, weight_1 = slerp(alpha, cosine)
        return tree_math.combine(RHO_MAX * weight_1 / length, g_prime, RHO_MAX * weight_0 / RHO, epsilon)

    def values(model_dtype, loss_dtype):
        return lambda alpha: loss(tree_math.add(params, step(alpha)), batch, model_dtype, loss_dtype)

    def along(points):
        def value(alpha):
            slope = lambda at: jax.jvp(
                lambda w: loss(w, batch, jnp.bfloat16, jnp.bfloat16),
                (tree_math.add(params, tree_math.scale(jnp.asarray(at), step(alpha))),),
                (step(alpha),),
            )[1].astype(jnp.float32)
            return sum(weight * slope(at) for at, weight in points)

        return value

    ways = {
        "float32": values(jnp.float32, jnp.float32),
        "bfloat16": values(jnp.bfloat16, jnp.bfloat16),
        "logits in float32": values(jnp.bfloat16, jnp.float32),
        "midpoint": along(MIDPOINT),
        "two points": along(TWO_POINTS),
    }
    return {name: jax.lax.map(way, ALPHAS).astype(jnp.float32) for name, way in ways.items()}


def searches(images, labels, seed, num_steps=400, every=20):
    """Yields the result of `search` along a training."""
    keys = jax.random.split(jax.random.key(seed), len(WIDTHS) - 1)
    shapes = itertools.pairwise(WIDTHS)
    params = [
        (jax.random.normal(key, shape) * shape[0] ** -0.5, jnp.zeros(shape[1]))
        for key, shape in zip(keys, shapes, strict=True)
    ]
    update = jax.jit(lambda w, b: jax.tree.map(lambda x, g: x - 0.1 * g, w, jax.grad(loss)(w, b)))
    rng = np.random.default_rng(seed)
    for step in range(1, num_steps + 1):
        which = rng.integers(0, len(labels), 50)
        batch = images[which], labels[which]
        params = update(params, batch)
        if step % every == 0:
            yield jax.tree.map(np.asarray, search(params, batch))


def chosen_along(results, name) -> list[int]:
    """Indices of the α that `spherical_search` keeps, search after search."""
    alpha, chosen = jnp.ones(()), []
    for result in results:
        alpha = worst(ALPHAS, jnp.asarray(result[name]), alpha)
        chosen.append(int(jnp.argmin(jnp.abs(ALPHAS - alpha))))
    return chosen


def measure(seeds=(0, 1, 2)) -> list[Record]:
    """One record for each way."""
    data = load("digits", sources.DEFAULT_DATA_DIR, train_size=500).train
    images = jnp.asarray(data.images, jnp.float32).reshape(len(data.labels), -1)
    images /= jnp.std(images)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(data.labels)) < 0.4
    labels = jnp.asarray(np.where(wrong, rng.integers(0, 10, len(wrong)), data.labels))
    runs = [list(searches(images, labels, seed)) for seed in seeds]
    found = [result for results in runs for result in results]

    def record(name: str) -> Record:
        chosen = [i for results in runs for i in chosen_along(results, name)]
        exact = [result["float32"] for result in found]
        lost = [(x.max() - x[i]) / np.ptp(x) for x, i in zip(exact, chosen, strict=True)]
        error = [abs(ALPHAS[i] - ALPHAS[x.argmax()]) for x, i in zip(exact, chosen, strict=True)]
        return {
            "compared": name,
            "searches": len(found),
            "error_of_alpha": float(np.mean(error)),
            "lost_part": float(np.mean(lost)),
            "distinct_values": float(np.mean([len(np.unique(result[name])) for result in found])),
            "versions": versions_and_device(),
        }

    return [record(name) for name in found[0]]


if __name__ == "__main__":
    records = measure()
    write_records(FILE, records)
    for r in records:
        print(f"{r['compared']:18}  error of α* {r['error_of_alpha']:.3f}  lost {r['lost_part']:.2%}")
