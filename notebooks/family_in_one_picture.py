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
# # The family in one picture
#
# Every method here computes a perturbation ε from the gradient g of a batch, takes the gradient g' at w + ε, and makes of
# it a direction d. In two dimensions all of that can be drawn: this notebook gives every method the same batches at the
# same point, and draws what it makes of them.

# %%
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import optax_sam

matplotlib.rcParams["figure.dpi"] = 150

# %% [markdown]
# ## A loss with two parameters
#
# A narrow curved valley. A batch has the gradient of that loss plus noise, which is three times as large in the first
# coordinate as in the second, as gradients of real networks are noisier in some parameters than in others.

# %%
START = jnp.array([1.4, 0.45])
NOISE = jnp.array([1.2, 0.4])


def loss(w):
    return 0.3 * w[0] ** 2 + 2 * (w[1] - 0.25 * w[0] ** 2 + 0.3) ** 2


def batch_loss(w, noise):
    return loss(w) + NOISE * noise @ w


NUM_BATCHES, WARM_UP = 16, 40
batches = jax.random.normal(jax.random.key(0), (WARM_UP + NUM_BATCHES, 2))

# %% [markdown]
# Some methods remember past gradients, so all of them see 40 batches first, at the same point; what they make of the next
# 16 is drawn. `observe`, an argument of `update`, hands out the perturbation.

# %%
RHO = 0.5
methods = {
    "SAM": optax_sam.sam(RHO),
    "ASAM": optax_sam.asam(RHO),
    "Fisher SAM": optax_sam.fisher_sam(RHO),
    "infoSAM": optax_sam.info_sam(RHO),
    "VaSSO, θ = 0.2": optax_sam.vasso(RHO, theta=0.2),
    "Friendly SAM": optax_sam.friendly_sam(RHO),
    "Sparse SAM": optax_sam.sparse_sam(RHO),
    "Eigen-SAM, α = 1": optax_sam.eigen_sam(RHO, alpha=1.0, interval=1),
    "XSAM": optax_sam.xsam(RHO, rho_max=2 * RHO, interval=1),
    "GSAM": optax_sam.gsam(RHO),
    "WSAM, γ = 0.75": optax_sam.wsam(RHO, gamma=0.75),
    "StableSAM": optax_sam.stable_sam(RHO),
}


def steps(tx):
    def step(state, noise):
        value_fn = lambda w: batch_loss(w, noise)
        seen = {}
        direction, state = tx.update(
            jax.grad(value_fn)(START),
            state,
            START,
            value_fn=value_fn,
            observe=lambda **values: seen.update(values),
        )
        return state, (seen["perturbation"], direction)

    return jax.lax.scan(step, tx.init(START), batches)[1]


found = {name: jax.jit(lambda tx=tx: steps(tx))() for name, tx in methods.items()}
found = {name: [np.asarray(values[WARM_UP:]) for values in both] for name, both in found.items()}

# %% [markdown]
# ## The picture
#
# In each panel w is the black point, the circle is SAM's ball of radius ρ, a blue line leads to w + ε for one of the
# batches, and an orange one shows the step that SGD would make along −d (all drawn at one scale). The star is the worst point on
# the circle for the loss without noise: where ε should lead, if the ball is SAM's.

# %%
angles = np.linspace(0, 2 * np.pi, 361)
circle = np.asarray(START) + RHO * np.stack([np.cos(angles), np.sin(angles)], -1)
worst = circle[int(jnp.argmax(jax.vmap(loss)(jnp.asarray(circle))))]
xs, ys = np.linspace(0.0, 2.4, 81), np.linspace(-0.75, 1.45, 81)
heights = jax.vmap(lambda y: jax.vmap(lambda x: loss(jnp.stack([x, y])))(xs))(ys)
columns = 3
rows = -(-len(methods) // columns)
figure, panels = plt.subplots(
    rows, columns, figsize=(7, 2.3 * rows), layout="constrained", sharex=True, sharey=True, squeeze=False
)
for axes, (name, (perturbations, directions)) in zip(panels.flat, found.items(), strict=False):
    axes.contour(xs, ys, heights, levels=np.geomspace(0.05, 8, 14), colors="#999999", linewidths=0.5)
    axes.plot(*circle.T, color="#000000", linewidth=0.8, linestyle="--")
    for epsilon, direction in zip(perturbations, directions, strict=True):
        axes.plot(*np.stack([START, START + epsilon]).T, color="#0072B2", linewidth=0.8, alpha=0.7)
        axes.plot(*(START + epsilon), color="#0072B2", marker="o", markersize=2)
        axes.plot(*np.stack([START, START - 0.15 * direction]).T, color="#D55E00", linewidth=0.8, alpha=0.7)
    axes.plot(*START, color="#000000", marker="o", markersize=4)
    axes.plot(*worst, color="#000000", marker="*", markersize=8)
    axes.set(title=name, aspect="equal", xlim=(xs[0], xs[-1]), ylim=(ys[0], ys[-1]))
for axes in panels.flat[len(methods) :]:
    axes.remove()
figure.supxlabel("first parameter", fontsize=10)
figure.supylabel("second parameter", fontsize=10)

# %% [markdown]
# - **SAM** follows the gradient of the batch: its ε point where the noise takes them.
# - **ASAM**'s ball reaches as far as the parameters are large: far along the first, little along the second.
# - **Fisher SAM** moves parameters with a large gradient less, so its ε are shorter, and shorter for some batches than for
#   others.
# - **infoSAM** trusts the noisy first parameter less: its ε are closer to each other, and to the star.
# - **Eigen-SAM** turns SAM's ε towards the direction of largest curvature, on the side that the batch's gradient points to, and beyond the circle.
# - **VaSSO** follows a running mean of the gradients, in which the noise averages out.
# - **Friendly SAM** does the opposite: it leaves the mean out of ε, and keeps the noise.
# - **Sparse SAM** perturbs one of the two parameters.
# - **XSAM**, **GSAM**, **WSAM** and **StableSAM** have SAM's ε; what differs is d.
#
# The same in numbers: how much the loss without noise rises from w to w + ε, on average over the batches; the spread
# of the directions of ε; and the mean angle between d and the gradient without noise.

# %%
clean = jax.grad(loss)(START)


def cosine(a, b):
    return (a @ b) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b)


for name, (perturbations, directions) in found.items():
    rise = np.mean([loss(START + epsilon) - loss(START) for epsilon in perturbations])
    unit = perturbations / np.linalg.norm(perturbations, axis=-1, keepdims=True)
    spread = np.degrees(np.arccos(np.linalg.norm(unit.mean(0))))
    turn = np.degrees(np.arccos(cosine(directions, clean))).mean()
    print(
        f"{name:16s} rise {rise:5.2f}   spread of ε {spread:3.0f}°   d from the clean gradient {turn:3.0f}°"
    )
