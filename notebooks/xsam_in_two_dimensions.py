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
# # XSAM in two dimensions
#
# SAM computes the gradient at w + ε and applies it at w. Why should that be a good direction there? Chen and Zhou (2026)
# answer: it points towards the highest loss around w better than the gradient at w does, but not perfectly. XSAM
# looks for a better direction on the arc through both. With two parameters all of this can be seen.
#
# The function of the paper's figures is not known to us. This one is our choice: a deep, sharp minimum on the left and a flat
# one on the right, which is a little higher.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_sam
from optax_sam import diagnostics
from optax_sam.diagnostics import plotting


def value_fn(w):
    x, y = w
    sharp = jnp.exp(-((x + 1) ** 2 + y**2) / 0.18)
    flat = jnp.exp(-((x - 1) ** 2 + y**2) / 1.6)
    return 1 + (x**2 + y**2) / 20 - sharp - 0.9 * flat


for place in ([-0.98, 0.0], [0.91, 0.0]):
    largest = np.linalg.eigvalsh(jax.hessian(value_fn)(jnp.array(place)))[-1]
    print(f"near {place}: loss {value_fn(jnp.array(place)):.3f}, largest curvature {largest:.1f}")

# %% [markdown]
# ## Two gradients at one point
#
# g₀ = ∇L(w), and g₁ = ∇L(w + ε) with ε = ρ ĝ₀. The circle has the radius ρ_m = 2ρ; the star is the highest loss on it.

# %%
RHO, RHO_MAX = 0.3, 0.6
w = jnp.array([-0.8, -0.5])


def unit(v):
    return v / jnp.linalg.norm(v)


gradient = jax.grad(value_fn)
g_0 = gradient(w)
g_1 = gradient(w + RHO * unit(g_0))

# %% [markdown]
# The arc v(α) goes through v(0) = ĝ₀ and v(1) = ĝ₁, and beyond. XSAM takes the α with the highest loss at distance ρ_m.

# %%
psi = jnp.arccos(jnp.clip(unit(g_0) @ unit(g_1), -1, 1))


def v(alpha):
    return (jnp.sin((1 - alpha) * psi) * unit(g_0) + jnp.sin(alpha * psi) * unit(g_1)) / jnp.sin(psi)


tx = optax_sam.xsam(RHO, RHO_MAX)
direction, state = tx.update(g_0, tx.init(w), w, value_fn=value_fn, refresh=True)
alpha = float(optax.tree.get(state, "alpha"))
print(
    f"α* = {alpha:.1f}; XSAM's direction is ‖g₁‖ v(α*):",
    np.allclose(direction, jnp.linalg.norm(g_1) * v(alpha), atol=1e-4),
)

# %%
alphas = np.linspace(0, 2, 101)
figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
axes.plot(alphas, [value_fn(w + RHO_MAX * v(a)) for a in alphas], color="#0072B2")
axes.plot(alpha, value_fn(w + RHO_MAX * v(alpha)), "*", ms=14, color="#D55E00", label="α*")
for a, name in ((0, "v(0): g₀"), (1, "v(1): g₁, SAM")):
    axes.axvline(a, color="k", lw=0.7, ls=":")
    axes.text(a + 0.03, axes.get_ylim()[0], name, fontsize=8, va="bottom")
axes.set(xlabel="α", ylabel="L(w + ρ_m v(α))")
axes.legend(frameon=False)

# %% [markdown]
# The same in the plane of the parameters, around w:

# %%
window = np.linspace(-0.9, 0.9, 61)
surface = diagnostics.loss_surface(value_fn, w, list(jnp.eye(2)), window)
arrows = {"g₀": 0.45 * unit(g_0), "g₁": 0.45 * unit(g_1), "v(α*)": 0.45 * v(alpha)}
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
plotting.plot_loss_surface(surface, ax=axes, points={"w": (0, 0)}, arrows=arrows, circle=RHO_MAX)
axes.set(xlabel="x − x(w)", ylabel="y − y(w)")

# %% [markdown]
# ## Another ascent may point worse
#
# After two ascents, g₂ is a good direction *there*. Applied at w, is it better than g₁? The paper shows a case in which it is
# worse. Over a grid of points, here are the angles from the worst point of the circle around each, for two ascents of ρ each and of ρ/2 each,
# as in XSAM's code. The verdict is computed as on the page "What the papers claim": the claim is that g₂ is
# further from the worst point than g₁; compared, for each ρ, are the angles in degrees, point by point.


# %%
@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def angles(rho, w):
    first = w + rho * unit(gradient(w))
    half = w + rho / 2 * unit(gradient(w))
    directions = {
        "g₀": gradient(w),
        "g₁": gradient(first),
        "g₂, ρ/2 each": gradient(half + rho / 2 * unit(gradient(half))),
        "g₂, ρ each": gradient(first + rho * unit(gradient(first))),
    }
    turns = jnp.linspace(0, 2 * jnp.pi, 720, endpoint=False)
    circle = jnp.stack([jnp.cos(turns), jnp.sin(turns)], axis=-1)
    worst = circle[jnp.argmax(jax.vmap(value_fn)(w + 2 * rho * circle))]
    return {name: jnp.degrees(jnp.arccos(jnp.clip(unit(d) @ worst, -1, 1))) for name, d in directions.items()}


def verdict(comparisons):
    """Each comparison is several differences that are positive if the claim is right; shown if their mean is > 2 s.e."""
    shown = []
    for name, differences in comparisons.items():
        mean, error = np.mean(differences), np.std(differences, ddof=1) / len(differences) ** 0.5
        shown.append(mean > 2 * error)
        print(f"{name:50s} {mean:+8.2f} ± {error:.2f}")
    print("the claim", "holds" if all(shown) else "holds in part" if any(shown) else "does not hold")


RADII = (0.1, 0.2, 0.3, 0.4)
grid = jnp.asarray(
    np.stack(np.meshgrid(np.linspace(-2, 2, 20), np.linspace(-1.5, 1.5, 16)), -1).reshape(-1, 2)
)
found = {rho: angles(rho, grid) for rho in RADII}
for rho, values in found.items():
    print(f"ρ = {rho}:", ", ".join(f"{name} {float(np.mean(x)):.1f}°" for name, x in values.items()))
verdict(
    {
        f"{name}, minus g₁, ρ = {rho}": np.asarray(values[name] - values["g₁"])
        for name in ("g₂, ρ/2 each", "g₂, ρ each")
        for rho, values in found.items()
    }
)

# %% [markdown]
# The paper's case exists, but it is an exception: averaged over the points g₂ is *nearer* to the worst point than g₁.
#
# ## Trajectories
#
# Gradient descent with each method, from the same start, without noise:


# %%
def methods(rho):
    return {
        "SGD": optax.identity(),
        "SAM": optax_sam.sam(rho),
        "SAM, k = 3": optax_sam.sam(rho, num_steps=3),
        "XSAM": optax_sam.xsam(rho, 2 * rho),
    }


def path(method, start, num_steps=600):
    tx = optax.chain(optax.with_extra_args_support(method), optax.sgd(0.05))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(gradient(w), state, w, value_fn=value_fn, refresh=True)
        return (w + updates, state), w

    return jax.lax.scan(step, (start, tx.init(start)), length=num_steps)[1]


start = jnp.array([-1.37, -1.5])
paths = {name: np.asarray(jax.jit(lambda s, m=m: path(m, s))(start)) for name, m in methods(RHO).items()}

# %%
figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
x, y = np.linspace(-2, 2, 81), np.linspace(-1.7, 1.2, 61)
heights = jax.vmap(jax.vmap(value_fn))(jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1)))
axes.contourf(x, y, heights, 18, cmap="Greys_r", alpha=0.7)
styles = {
    "SGD": ("#000000", "-"),
    "SAM": ("#0072B2", "-"),
    "SAM, k = 3": ("#009E73", "--"),
    "XSAM": ("#D55E00", "-"),
}
for name, places in paths.items():
    colour, line = styles[name]
    axes.plot(*places.T, line, color=colour, lw=1.5, label=name)
    axes.plot(*places[-1], "o", color=colour, mec="w", ms=7)
axes.plot(*start, "*", color="w", mec="k", ms=13)
axes.set(aspect="equal", xlabel="x", ylabel="y")
axes.legend(loc="upper right", fontsize=8)

# %% [markdown]
# SGD falls into the sharp minimum. SAM and SAM with three ascents leave it but stay on its rim, where ε turns over from
# step to step; XSAM goes on to the flat minimum. One start proves nothing. The claim is that XSAM ends in the flat minimum from more
# starts of the grid than the others. Compared, for each ρ, start by start: 100 if XSAM ends within 0.5 of it, minus the same of the other.

# %%
flat = {}
for rho in RADII:
    for name, method in methods(rho).items():
        ends = jax.jit(jax.vmap(lambda s, m=method: path(m, s)[-1]))(grid)
        flat[rho, name] = 100 * np.asarray(jnp.linalg.norm(ends - jnp.array([1.0, 0.0]), axis=1) < 0.5)
    print(f"ρ = {rho}:", ", ".join(f"{name} {flat[rho, name].mean():.1f} %" for name in methods(rho)))
verdict(
    {
        f"XSAM minus {name}, ρ = {rho}": flat[rho, "XSAM"] - flat[rho, name]
        for rho in RADII
        for name in ("SGD", "SAM", "SAM, k = 3")
    }
)

# %% [markdown]
# The differences are a few percent, and at the largest ρ SGD does best. The plane of g₀ and g₁ for a network on MNIST is on the page
# "Theory, made executable".
