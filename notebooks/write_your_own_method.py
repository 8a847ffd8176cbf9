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
# A method is an ascent and a descent, both gradient transformations. This notebook writes a new ascent: SAM in a *cube*
# instead of a ball. Foret et al. (2021) derive the perturbation for every p-norm; for p = ∞,
#
# $$
# \max_\varepsilon\ \langle g, \varepsilon\rangle \ \text{ subject to }\ \lVert \varepsilon\rVert_\infty \le \rho
# \qquad\Rightarrow\qquad \varepsilon = \rho\, \operatorname{sign}(g).
# $$

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
# `updates` is the gradient g; what is returned is ε. There is nothing to remember, so the state is empty. The method is one line: everything else (a second gradient at w + ε, several ascents,
# many devices, errors for what is forgotten) comes from `sharpness_aware`.


# %%
def cube_ascent(rho):
    """Maps a gradient g to ε = ρ sign(g), the corner of a cube where the linear model of the loss is largest."""

    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(lambda g: rho * jnp.sign(g), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def cube_sam(rho, *, num_steps=1):
    return optax_sam.sharpness_aware(cube_ascent(rho), num_steps=num_steps)


# %% [markdown]
# ## Test the equation, not that the loss falls
#
# Two properties define the method: ε lies in the cube, and no other point of the cube has a larger inner product with g.
# The latter is the dual norm, ⟨g, ε⟩ = ρ ‖g‖₁. And a method has to return the gradient at w + ε.

# %%
w = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
loss = lambda w: (w["a"] ** 4).sum() + (w["a"][0] * w["b"] ** 2).sum()
g = jax.grad(loss)(w)
epsilon, _ = cube_ascent(0.1).update(g, optax.EmptyState(), w)
assert optax.tree.norm(epsilon, ord=jnp.inf) <= 0.1 + 1e-6
assert jnp.allclose(optax.tree.vdot(g, epsilon), 0.1 * optax.tree.norm(g, ord=1))

method = cube_sam(0.1)
direction, _ = method.update(g, method.init(w), w, value_fn=loss)
expected = jax.grad(loss)(jax.tree.map(jnp.add, w, epsilon))
assert all(map(jnp.allclose, jax.tree.leaves(direction), jax.tree.leaves(expected)))

# %% [markdown]
# And a limit in which it must equal another method: with one parameter a cube is a ball.

# %%
number, square = jnp.array([3.0]), lambda w: jnp.sum(w**2)
one, other = cube_sam(0.1), optax_sam.sam(0.1)
first, _ = one.update(jax.grad(square)(number), one.init(number), number, value_fn=square)
second, _ = other.update(jax.grad(square)(number), other.init(number), number, value_fn=square)
assert jnp.allclose(first, second)

# %% [markdown]
# ## Combine it
#
# The stage works wherever a stage works: with XSAM's search as the descent, behind a mask, on eight devices. Eigen-SAM's tilt
# in the cube is

# %%
combined = optax_sam.sharpness_aware(
    optax.chain(cube_ascent(0.01), optax_sam.tilt_to_top_eigenvector(alpha=0.2, interval=10)),
    optax_sam.spherical_search(rho_max=0.3, interval=10),
)
direction, _ = jax.jit(lambda g, w: combined.update(g, combined.init(w), w, value_fn=loss))(g, w)
print(direction)

# %% [markdown]
# ## Does it help?
#
# The digits with 40 % wrong labels, as in the other notebooks. A cube's corner is √n times as far away as its side is long, so ρ is another
# number than SAM's: both are tuned, on validation images.

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
radii = {"SAM": (0.0, 0.1, 0.2, 0.4, 0.8), "cube": (0.0, 0.002, 0.004, 0.008, 0.016)}
makers = {"SAM": optax_sam.sam, "cube": cube_sam}
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
        axes.errorbar(range(5), values.mean(1), error, color=colour, marker=marker, capsize=2, label=part)
    axes.set(xlabel="ρ", title=name, xticks=range(5), xticklabels=[f"{rho:g}" for rho in radii[name]])
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
    print(f"{name:5s} rho {radii[name][chosen]:<6g} test accuracy {tested.mean():.1f} ± {error:.1f} %")

# %% [markdown]
# On these images a cube does what a ball does: the difference is within the standard errors.
#
# ## What did it do?
#
# The diagnostics measure in cubes too (`ord=jnp.inf`): is the network that was trained in the cube flatter there?

# %%
value_fn = lambda params: loss_fn(params, *train)
for name, params in best.items():
    network = jax.tree.map(lambda leaf: leaf[0], params)
    ball = diagnostics.worst_case_sharpness(value_fn, network, 0.4, num_iters=10, num_ascents=2)
    cube = diagnostics.worst_case_sharpness(
        value_fn, network, 0.008, ord=jnp.inf, num_iters=10, num_ascents=2
    )
    print(f"{name:5s} rise in the ball {float(ball.sharpness):.2f}, in the cube {float(cube.sharpness):.2f}")

# %% [markdown]
# Each network is the flatter one in the shape in which it was trained.
#
# How to add a method to the package (its page, its row in the contract tests) is in the documentation under "Contributing".
