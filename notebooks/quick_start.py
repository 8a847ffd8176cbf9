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
# # Quick start
#
# Train a small network on real images with some noisy labels, with and without sharpness-aware minimisation. It runs in
# half a minute on two CPU cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_sam

matplotlib.rcParams["figure.dpi"] = 150

# %% [markdown]
# ## Data
#
# 500 of scikit-learn's handwritten digits for training, 40 % of them with noisy labels; 1,297 with clean labels for
# testing. Without this noise the task is too easy to show anything.

# %%
images, labels = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
order = rng.permutation(len(labels))
images = (images - images.mean()) / images.std()
images, labels = jnp.asarray(images[order], jnp.float32), labels[order]
wrong = rng.permutation(500)[:200]
given = labels[:500].copy()
given[wrong] = (given[wrong] + rng.integers(1, 10, 200)) % 10
x, y = images[:500], jnp.asarray(given)
x_test, y_test = images[500:], jnp.asarray(labels[500:])

# %% [markdown]
# ## A network
#
# Parameters are a list of dictionaries. With Flax or Equinox only the loss looks different.


# %%
def init(key, sizes=(64, 128, 128, 10)):
    return [
        {"kernel": jax.random.normal(key, (n, m)) * (1 / n) ** 0.5, "bias": jnp.zeros(m)}
        for key, n, m in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


@jax.jit
def test_accuracy(params):
    return 100 * (logits(params, x_test).argmax(-1) == y_test).mean()


# %% [markdown]
# ## The training step
#
# The only things that sharpness-aware minimisation needs are a method in front of the optimizer, and `value_fn`: the loss
# of the same batch as a function of the parameters.


# %%
def train(tx, seed, num_epochs=30, batch_size=50):
    def train_step(carry, rows):
        params, state = carry
        value_fn = lambda params: loss_fn(params, x[rows], y[rows])
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        rows = jax.random.permutation(key, 500).reshape(-1, batch_size)
        carry, _ = jax.lax.scan(train_step, carry, rows)
        return carry, test_accuracy(carry[0])

    params = init(jax.random.key(seed))
    keys = jax.random.split(jax.random.key(100 + seed), num_epochs)
    (params, state), accuracies = jax.lax.scan(epoch, (params, tx.init(params)), keys)
    return params, state, accuracies


# %% [markdown]
# With `rho=0` the method is plain SGD. Five seeds each, side by side in one program:

# %%
radii, seeds = (0.0, 0.2, 0.5), jnp.arange(5)
runs = {}
for rho in radii:
    tx = optax.chain(optax_sam.sam(rho), optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9))
    runs[rho] = jax.jit(jax.vmap(lambda seed, tx=tx: train(tx, seed)))(seeds)
    final = np.asarray(runs[rho][2][:, -1])
    error = final.std(ddof=1) / len(final) ** 0.5
    print(f"rho {rho:<4g} test accuracy {final.mean():.1f} ± {error:.1f} %")

# %%
figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
looks = (("#000000", "o", "-"), ("#0072B2", "s", "--"), ("#0072B2", "^", "-"))
for rho, (colour, marker, line) in zip(radii, looks, strict=True):
    accuracies = np.asarray(runs[rho][2])
    epochs = 1 + np.arange(accuracies.shape[1])
    label = "SGD" if rho == 0 else f"SAM, ρ = {rho:g}"
    style = {"color": colour, "marker": marker, "ls": line, "markevery": 3, "markersize": 4}
    axes.plot(epochs, accuracies.mean(0), label=label, **style)
    axes.fill_between(epochs, accuracies.min(0), accuracies.max(0), color=colour, alpha=0.15, linewidth=0)
axes.set(xlabel="epoch", ylabel="test accuracy (%)")
axes.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# Lines are means over the seeds, bands run from the lowest to the highest. SGD learns the clean labels first and then
# memorises the noisy ones; with a sufficient radius SAM memorises them later, if it is not trained for much longer. The setting was
# made to show this: on clean, easy data expect little or nothing, and here strong weight decay would help SGD too.
#
# ## What the state knows
#
# `ascent_value` is the loss at the worst point nearby, a by-product of the second gradient.

# %%
params, state, _ = jax.tree.map(lambda leaf: leaf[0], runs[0.5])
print(f"loss on the training set {float(loss_fn(params, x, y)):.2f}")
print(f"at the worst point near w, on the last batch {float(optax.tree.get(state, 'ascent_value')):.2f}")

# %% [markdown]
# Next: the documentation has pages on which method and which radius, and recipes for BatchNorm, dropout, micro-batches and
# several devices. The notebook "The family in one picture" shows what the methods do differently.
