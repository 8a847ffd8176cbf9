# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write your own method
#
# A method is an ascent and a descent, both gradient transformations. This notebook writes an ascent that the package
# does not have, ZSharp (Yun, [2025](https://arxiv.org/abs/2505.02369)): SAM's perturbation along the entries of the
# gradient that stand out in their array,
#
# $$
# z_i = \frac{g_i - \operatorname{mean}(g)}{\operatorname{std}(g)}, \quad \varepsilon = \rho\, \frac{r}{\lVert r\rVert},
# $$
#
# $$
# r_i = \begin{cases} g_i & |z_i| \ge Q_p(|z|) \\ 0 & \text{otherwise,}\end{cases}
# $$
#
# with the mean, the deviation and the quantile Q of each parameter array.

# %%
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_sam
from optax_sam import diagnostics

matplotlib.rcParams["figure.dpi"] = 150

# %% [markdown]
# ## The stage, and the method
#
# In an ascent `updates` is the gradient g. The new stage maps it to r, and `steepest_ascent` follows in the chain: stages
# that change what the ascent follows go in front of it. There is nothing to remember, so the state is empty. The method
# is one line; everything else (a second gradient at w + ε, several ascents, many devices, errors for what is
# forgotten) comes from `sharpness_aware`.


# %%
def keep_outstanding(quantile):
    """Maps a gradient to its entries with the largest |z| in their array; the others become 0."""

    def leaf(g):
        z = jnp.abs(g - g.mean())  # The deviation, the same for all entries, changes no order.
        return jnp.where(z >= jnp.quantile(z, quantile), g, 0)

    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def z_sharp(rho, quantile=0.95, *, num_steps=1):
    ascent = optax.chain(keep_outstanding(quantile), optax_sam.steepest_ascent(rho))
    return optax_sam.sharpness_aware(ascent, num_steps=num_steps)


# %% [markdown]
# ## Test the equation, not that the loss falls
#
# The equation says which entries are kept, and that ε is on the sphere. And a method has to return the gradient at w + ε.

# %%
g = {"a": jnp.array([1.0, -8.0, 2.0, 1.5]), "b": jnp.array([[0.1, 0.2], [0.2, 0.9]])}
kept, _ = keep_outstanding(0.75).update(g, optax.EmptyState())
assert kept["a"].tolist() == [0.0, -8.0, 0.0, 0.0]
assert (kept["b"] != 0).tolist() == [[False, False], [False, True]]

w = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([3.0, 1.0])}
loss = lambda w: (w["a"] ** 4).sum() + w["a"][0] * (w["b"] ** 2).sum()
g = jax.grad(loss)(w)
method, seen = z_sharp(0.1, 0.5), {}
direction, _ = method.update(g, method.init(w), w, value_fn=loss, observe=seen.update)
epsilon = seen["perturbation"]
assert jnp.allclose(optax.tree.norm(epsilon), 0.1)
expected = jax.grad(loss)(jax.tree.map(jnp.add, w, epsilon))
assert all(map(jnp.allclose, jax.tree.leaves(direction), jax.tree.leaves(expected)))

# %% [markdown]
# And a limit in which it must equal another method: with the quantile 0 everything is kept, and it is SAM.

# %%
one, other = z_sharp(0.1, 0.0), optax_sam.sam(0.1)
first, _ = one.update(g, one.init(w), w, value_fn=loss)
second, _ = other.update(g, other.init(w), w, value_fn=loss)
assert all(map(jnp.allclose, jax.tree.leaves(first), jax.tree.leaves(second)))

# %% [markdown]
# ## Combine it
#
# The stage works wherever a stage works: on ASAM's ball, with XSAM's search as the descent, on eight devices.

# %%
combined = optax_sam.sharpness_aware(
    optax.chain(
        keep_outstanding(0.5), optax_sam.steepest_ascent(0.5, constraint=optax_sam.weight_magnitude())
    ),
    optax_sam.spherical_search(rho_max=0.3, interval=10),
)
direction, _ = jax.jit(lambda g, w: combined.update(g, combined.init(w), w, value_fn=loss))(g, w)
print(direction)

# %% [markdown]
# ## Does it help?
#
# The digits with 40 % noisy labels, as in the other notebooks. Both radii are tuned, on validation images.

# %%
images, labels = load_digits(return_X_y=True)
images = (images - images.mean()) / images.std()
rng = np.random.default_rng(0)
order = rng.permutation(len(labels))
images, labels = jnp.asarray(images[order], jnp.float32), labels[order]
wrong = rng.permutation(500)[:200]
given = labels[:500].copy()
given[wrong] = (given[wrong] + rng.integers(1, 10, 200)) % 10
train, valid, test = (
    (images[:500], jnp.asarray(given)),
    (images[500:800], jnp.asarray(labels[500:800])),
    (images[800:], jnp.asarray(labels[800:])),
)


def init(key, sizes=(64, 128, 10)):
    return [
        {"kernel": jax.random.normal(key, (n, m)) * n**-0.5, "bias": jnp.zeros(m)}
        for key, n, m in zip(jax.random.split(key), sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params, x):
    inner, outer = params
    return jax.nn.relu(x @ inner["kernel"] + inner["bias"]) @ outer["kernel"] + outer["bias"]


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def fit(method, seed, num_epochs=30, batch_size=50):
    tx = optax.chain(method, optax.sgd(0.05, momentum=0.9))

    def step(carry, rows):
        params, state = carry
        value_fn = lambda params: loss_fn(params, train[0][rows], train[1][rows])
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), None

    params = init(jax.random.key(seed))
    epochs = jax.random.split(jax.random.key(100 + seed), num_epochs)
    rows = jax.vmap(lambda key: jax.random.permutation(key, 500).reshape(-1, batch_size))(epochs)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), rows.reshape(-1, batch_size))
    return params


@jax.jit
def accuracy(params, batch):
    return 100 * (logits(params, batch[0]).argmax(-1) == batch[1]).mean()


seeds = jnp.arange(5)
radii = {"SAM": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6), "ZSharp": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)}
makers = {"SAM": optax_sam.sam, "ZSharp": z_sharp}
networks = {}
for name, make in makers.items():
    # One program for all radii and seeds: rho may be a traced number.
    grid = jax.jit(
        jax.vmap(jax.vmap(lambda rho, seed, make=make: fit(make(rho), seed), (None, 0)), (0, None))
    )
    networks[name] = grid(jnp.array(radii[name]), seeds)

# %%
figure, panels = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", sharey=True)
for axes, (name, params) in zip(panels, networks.items(), strict=True):
    for part, batch, colour, marker in (
        ("validation", valid, "#E69F00", "o"),
        ("test", test, "#0072B2", "s"),
    ):
        values = np.asarray(jax.vmap(jax.vmap(lambda p, batch=batch: accuracy(p, batch)))(params))
        error = values.std(1, ddof=1) / values.shape[1] ** 0.5
        axes.errorbar(
            range(len(values)), values.mean(1), error, color=colour, marker=marker, capsize=2, label=part
        )
    axes.set(
        xlabel="ρ",
        title=name,
        xticks=range(len(radii[name])),
        xticklabels=[f"{rho:g}" for rho in radii[name]],
    )
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("accuracy (%)")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)

# %%
best = {}
for name, params in networks.items():
    validation = np.asarray(jax.vmap(jax.vmap(lambda p: accuracy(p, valid)))(params)).mean(1)
    chosen = int(validation.argmax())
    best[name] = jax.tree.map(lambda leaf, i=chosen: leaf[i], params)
    tested = np.asarray(jax.vmap(lambda p: accuracy(p, test))(best[name]))
    error = tested.std(ddof=1) / len(tested) ** 0.5
    print(f"{name:6s} rho {radii[name][chosen]:<6g} test accuracy {tested.mean():.1f} ± {error:.1f} %")

# %% [markdown]
# One small data set and one network: enough to see that the method works, not that it is better.
#
# ## What did it do?
#
# The diagnostics compare perturbations: how far does the loss rise at ε, as a part of the largest rise in the ball?

# %%
value_fn = lambda params: loss_fn(params, *train)
network = jax.tree.map(lambda leaf: leaf[0], best["SAM"])
gradient = jax.grad(value_fn)(network)
for name, ascent in (
    ("SAM", optax_sam.steepest_ascent(0.2)),
    ("ZSharp", optax.chain(keep_outstanding(0.95), optax_sam.steepest_ascent(0.2))),
):
    epsilon, _ = ascent.update(gradient, ascent.init(network), network)
    gain = diagnostics.perturbation_gain(value_fn, network, epsilon)
    print(f"{name:6s} {float(gain.ratio):.0%} of the largest rise")

# %% [markdown]
# How to add a method to the package (its page, its row in the contract tests) is in the documentation under "Contributing".
