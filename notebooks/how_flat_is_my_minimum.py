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
# # How flat is my minimum?
#
# Sharpness-aware methods look for parameters whose whole neighbourhood has a low loss. Did they find them? And are
# flat networks better? This notebook trains SGD, SAM and Eigen-SAM on real images, measures the sharpness of what they
# found in several ways, shows the loss around it, and asks which of these measures correlate with test accuracy.
#
# It runs in about two minutes on two CPU cores. `jupytext --to notebook how_flat_is_my_minimum.py` converts it to an `.ipynb`.

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.ticker import LogLocator, NullLocator
from scipy.stats import kendalltau
from sklearn.datasets import load_digits

import optax_sam
from optax_sam import curvature, diagnostics
from optax_sam.diagnostics import plotting

# %% [markdown]
# ## Real images, noisy labels
#
# 500 of scikit-learn's digits for training, 40 % noisy labels, and 1,297 digits with clean labels for
# testing. Networks that memorise the noisy labels do badly on the test images, so there is something for flatness to
# explain.

# %%
images, labels = load_digits(return_X_y=True)
images = (images - images.mean()) / images.std()
rng = np.random.default_rng(0)
order = rng.permutation(len(labels))
images, labels = jnp.asarray(images[order], jnp.float32), labels[order]
wrong = rng.permutation(500)[:200]
noisy = labels[:500].copy()
noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, 200)) % 10
train = images[:500], jnp.asarray(noisy)
test = images[500:], jnp.asarray(labels[500:])

# %% [markdown]
# ## A network, and a training loop
#
# Parameters are a plain dictionary; Flax or Equinox would work as well.


# %%
def init(seed, sizes=(64, 64, 64, 10)):
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(key, (n, m)) * (2 / n) ** 0.5,
            "bias": jnp.zeros(m),
        }
        for i, (key, n, m) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }


def logits(params, x):
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


@jax.jit
def loss(params, batch=train):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


@jax.jit
def accuracy(params, batch):
    x, y = batch
    return (logits(params, x).argmax(-1) == y).mean()


def fit(method, weight_decay, seeds, epochs=60, batch_size=50):
    steps = 500 // batch_size
    tx = optax.chain(
        method,
        optax.add_decayed_weights(weight_decay),
        optax.sgd(optax.cosine_decay_schedule(0.05, epochs * steps), momentum=0.9),
    )

    @jax.jit
    def epoch(params, state, key):
        def step(carry, rows):
            params, state = carry
            batch = train[0][rows], train[1][rows]
            grads = jax.grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params, value_fn=lambda p: loss(p, batch))
            return (optax.apply_updates(params, updates), state), None

        rows = jax.random.permutation(key, 500).reshape(steps, batch_size)
        return jax.lax.scan(step, (params, state), rows)[0]

    def run(seed):
        params = init(seed)
        state = tx.init(params)
        for key in jax.random.split(jax.random.key(seed + 100), epochs):
            params, state = epoch(params, state, key)
        return params

    return [run(seed) for seed in seeds]


# %% [markdown]
# Three methods, with weak and with strong weight decay, two seeds each. (`optax.with_extra_args_support` lets
# `optax.identity`, in front of plain SGD, ignore the `value_fn` that the others need.)

# %%
methods = {
    "SGD": optax.with_extra_args_support(optax.identity()),
    "SAM": optax_sam.sam(0.3),
    "Eigen-SAM": optax_sam.eigen_sam(0.3, alpha=0.2, interval=50, solver="lanczos"),
}
decays, seeds = (5e-4, 5e-3, 2e-2), (0, 1)
networks = {
    (name, decay, seed): params
    for name, decay in itertools.product(methods, decays)
    for seed, params in zip(seeds, fit(methods[name], decay, seeds), strict=True)
}

# %% [markdown]
# ## How sharp?
#
# No single number answers this. All of the following use the loss on the whole training set, noisy labels included:
#
# - **λ_max** and the **trace** of the Hessian: curvature along the worst direction, and over all directions;
# - **first order**, what SAM's own perturbation finds: $L(w + \rho\, g/\|g\|) - L(w)$;
# - **worst case** in the ball $\|\varepsilon\| \le \rho$, by projected gradient ascent with restarts;
# - **adaptive**: the same in ASAM's ball, measured in units of the weights, so that it does not change when one layer is
#   scaled up and the next one down;
# - **average case**: the mean rise under Gaussian noise.

# %%
RHO = 0.3
SEARCH = {"num_iters": 20, "num_ascents": 4}


def measure(params):
    adaptive = optax_sam.weight_magnitude(eta=0.0)
    return {
        "test accuracy": float(accuracy(params, test)),
        "train accuracy": float(accuracy(params, train)),
        "λ_max": float(curvature.top_eigenpairs(loss, params, num_iters=15).eigenvalues[0]),
        "trace": float(curvature.trace(loss, params, num_samples=5).estimate),
        "first order": float(diagnostics.sharpness(loss, params, RHO).sharpness),
        "worst case": float(diagnostics.worst_case_sharpness(loss, params, RHO, **SEARCH).sharpness),
        "adaptive": float(
            diagnostics.worst_case_sharpness(loss, params, 10 * RHO, constraint=adaptive, **SEARCH).sharpness
        ),
        "average case": float(diagnostics.average_case_sharpness(loss, params, 0.02).estimate),
    }


measured = {key: measure(params) for key, params in networks.items()}
columns = list(next(iter(measured.values())))
print(f"{'':24s}" + "".join(f"{name:>16s}" for name in columns))
for name, decay in itertools.product(methods, decays):
    rows = [measured[name, decay, seed] for seed in seeds]
    means = (np.mean([row[column] for row in rows]) for column in columns)
    print(f"{name:10s} decay {decay:<7g} " + "".join(f"{mean:16.3f}" for mean in means))

# %% [markdown]
# The worst case is the result of a search: a lower bound. How good is the search? For the networks with the middle weight
# decay, in ASAM's ball, the next cell compares the rise found by one short ascent, by the search above, and by twelve
# ascents of forty gradients from other random points.

# %%
for name in methods:
    params = networks[name, 5e-3, 0]
    ball = {"rho": 10 * RHO, "constraint": optax_sam.weight_magnitude(eta=0.0)}
    short = diagnostics.worst_case_sharpness(loss, params, **ball, num_iters=10, num_ascents=1)
    used = diagnostics.worst_case_sharpness(loss, params, **ball, **SEARCH)
    long = diagnostics.worst_case_sharpness(loss, params, **ball, num_iters=40, num_ascents=12, key=1)
    print(
        f"{name:10s} short {float(short.sharpness):6.3f}   used {float(used.sharpness):6.3f}"
        f"   long {float(long.sharpness):6.3f}   ascents of the one used: {[round(float(x), 2) for x in used.ascents]}"
    )

# %% [markdown]
# One short ascent finds a sixth of the rise around SAM's and Eigen-SAM's networks, so it would rank the methods by how
# well the ascent works on each. The second ascent of a search starts opposite to where the first one ended, and here that
# is where the highest rises are. The search used above finds nearly as much as the long one. All of them are lower bounds.

# %% [markdown]
# At the same weight decay SAM's and Eigen-SAM's networks are more accurate than SGD's, and flatter by every measure but
# one. The exception is the first-order measure, the one that SAM itself uses: where SGD has memorised every noisy label,
# hardly any gradient is left to follow, and the measure calls the sharpest network in the table flat. The worst case in
# the same ball is many times higher.
#
# Eigen-SAM, which was designed to lower λ_max, lowers it further than SAM.

# %%
for decay in decays:
    sgd, sam, eigen_sam = (
        np.mean([measured[name, decay, seed]["λ_max"] for seed in seeds]) for name in methods
    )
    print(f"weight decay {decay:<7g} λ_max: SGD {sgd:6.2f}   SAM {sam:6.2f}   Eigen-SAM {eigen_sam:6.2f}")

# %% [markdown]
# ## What does *not* correlate
#
# Kendall's rank correlation of each measure with test accuracy: −1 if flatter is always better, 0 if the measure says
# nothing. First over all networks, then among those of one method, which differ only in weight decay and seed.

# %%
correlations = {}
for measure_name in columns[2:]:
    groups = {"all": list(networks)} | {name: [k for k in networks if k[0] == name] for name in methods}
    correlations[measure_name] = {
        group: kendalltau(
            [measured[key][measure_name] for key in keys], [measured[key]["test accuracy"] for key in keys]
        ).statistic
        for group, keys in groups.items()
    }
print(f"{'':14s}" + "".join(f"{group:>12s}" for group in ("all", *methods)))
for measure_name, by_group in correlations.items():
    print(f"{measure_name:14s}" + "".join(f"{value:12.2f}" for value in by_group.values()))

# %%
figure, panels = plt.subplots(3, 1, figsize=(5.5, 7.5), layout="constrained")
colours = dict(zip(methods, ("#000000", "#0072B2", "#CC79A7"), strict=True))
markers = dict(zip(decays, "o^s", strict=True))
for axes, measure_name in zip(panels, ("λ_max", "worst case", "adaptive"), strict=True):
    for (name, decay, _), numbers in measured.items():
        axes.scatter(
            numbers[measure_name],
            100 * numbers["test accuracy"],
            color=colours[name],
            marker=markers[decay],
        )
    axes.set(xlabel=measure_name, xscale="log", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
looks = [({"color": colour, "marker": "o"}, name) for name, colour in colours.items()]
looks += [({"color": "#7F7F7F", "marker": marker}, f"decay {decay:g}") for decay, marker in markers.items()]
handles = [plt.Line2D([], [], ls="none", label=label, **look) for look, label in looks]
figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# - The **first-order** measure correlates with accuracy with the wrong sign.
# - Among **SGD's** networks λ_max, trace and average case say nothing, or the opposite: ten times the weight decay makes
#   the network *sharper* and better.
# - The **adaptive** worst case correlates with accuracy over all networks, and is the only measure here that also does so
#   among those of each method. It is measured in units of the weights, and the networks differ in weight decay, which
#   changes the size of the weights. This is not a general rule: Andriushchenko et al. (2023, "A modern look at the
#   relationship between sharpness and generalization") found that it fails for modern networks.
# - There are only six networks of each method: a rank correlation below about 0.8 among them may be due to chance.
#
# Measure sharpness to see what a method *did*; measure accuracy to see whether it helped.

# %% [markdown]
# ## The whole spectrum
#
# λ_max is one of 8,970 eigenvalues. Stochastic Lanczos quadrature estimates the density of all of them: most are near
# zero, a few stand out, some are negative.

# %%
compared = {name: networks[name, 5e-4, 0] for name in methods}
axes = None
for name, params in compared.items():
    density = curvature.spectral_density(loss, params, num_iters=40, num_samples=4)
    axes = plotting.plot_spectral_density(density, ax=axes, label=name)

# %% [markdown]
# ## What it looks like
#
# Two slices of the loss: along one random direction, scaled filter by filter to the length of the weights (Li et al.,
# 2018), so that networks with different weights can be compared; and along each network's own top eigenvector, where the
# difference is.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained", sharey=True)
for name, params in compared.items():
    random = diagnostics.random_directions(params, 1, key=0)
    plotting.plot_loss_surface(diagnostics.loss_surface(loss, params, random), ax=left, label=name)
    top = jax.tree.map(lambda v: v[0], curvature.top_eigenpairs(loss, params).eigenvectors)
    line = diagnostics.loss_surface(loss, params, [top], np.linspace(-2, 2, 51))
    plotting.plot_loss_surface(line, ax=right, label=name)
left.set(xlabel="along a random direction", ylim=(0, 4))
right.set(xlabel="along the top eigenvector", ylabel="")

# %% [markdown]
# The plane through the three solutions, which started at the same point and used the same batches: SGD's solution lies in
# a deep and narrow basin, SAM's and Eigen-SAM's in a wide and shallow one.

# %%
plane = diagnostics.plane_through(list(compared.values()))
reach = np.asarray(plane.coordinates)
margin = 0.3 * np.ptp(reach)
grids = [np.linspace(reach[:, i].min() - margin, reach[:, i].max() + margin, 31) for i in (0, 1)]
surface = diagnostics.loss_surface(loss, plane.origin, plane.directions, grids)
plotting.plot_loss_surface(surface, points=dict(zip(compared, plane.coordinates, strict=True)), log=True)

# %% [markdown]
# And the plane in which XSAM searches for the worst point (Chen and Zhou, 2026, figure 1), at the initial weights: g₀ is
# the gradient there, g₁ the gradient at w + ε. SAM steps along g₁. Is that where the loss rises most? The star is the highest
# loss on the circle of radius ρ in this plane.

# %%
start = init(0)
epsilon = diagnostics.sharpness(loss, start, 1.0).perturbation
plane = diagnostics.gradient_plane(loss, start, epsilon)
surface = diagnostics.loss_surface(loss, plane.origin, plane.directions, np.linspace(-2, 2, 31))
place, g_0, g_1 = plane.coordinates
places, gradients = {"w": (0, 0), "w + ε": place}, {"g₀": g_0, "g₁": g_1}
plotting.plot_loss_surface(surface, points=places, arrows=gradients, circle=1.0)

# %% [markdown]
# ## How good is an ascent?
#
# The rise of the loss at each method's ε, compared with the highest rise found at that length:

# %%
for name, params in compared.items():
    epsilon = diagnostics.sharpness(loss, params, RHO).perturbation
    gain = diagnostics.perturbation_gain(loss, params, epsilon)
    pair = curvature.top_eigenpairs(loss, params)
    top = jax.tree.map(lambda v: v[0], pair.eigenvectors)
    print(
        f"{name:10s} rise {float(gain.gain):.3f} of {float(gain.best_gain):.3f}; "
        f"alignment with the top eigenvector {float(diagnostics.alignment(epsilon, top)):.2f}"
    )
