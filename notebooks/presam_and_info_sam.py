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
# # preSAM and infoSAM
#
# Many variants of SAM are one problem with two preconditioners (Zhang, Li and Giannakis, 2025):
#
# $$\max_\varepsilon\ \langle C g, \varepsilon\rangle \quad\text{subject to}\quad \|D \varepsilon\| \le \rho$$
#
# C weights the objective, D the constraint. This notebook shows what the two do to ε, why infoSAM chooses the inverse noise
# variance for C, where that fails, and the step sizes of the paper's convergence theorem.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_sam

plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = False

# %% [markdown]
# ## Two preconditioners, two effects
#
# The gradient g is the same everywhere. The constraint changes the set on which ε may be: D = T⁻¹ makes it an ellipse. The
# objective changes the direction in which the loss is believed to rise, on the same circle.

# %%
g = jnp.array([1.0, 0.6])
diagonal = optax.stateless(lambda gradient, params: jnp.array([2.0, 0.5]))
stages = {
    "SAM: C = D = 1": optax_sam.steepest_ascent(1.0),
    "objective: C = diag(2, ½)": optax_sam.steepest_ascent(1.0, objective=diagonal),
    "constraint: D⁻¹ = diag(2, ½)": optax_sam.steepest_ascent(1.0, constraint=diagonal),
}
epsilons = {name: np.asarray(stage.update(g, stage.init(g), g)[0]) for name, stage in stages.items()}

# %%
figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
angles = np.linspace(0, 2 * np.pi, 200)
axes.plot(np.cos(angles), np.sin(angles), color="#7F7F7F", lw=0.8)
axes.plot(2 * np.cos(angles), 0.5 * np.sin(angles), color="#7F7F7F", lw=0.8, ls="--")
for (name, epsilon), colour in zip(epsilons.items(), ("#000000", "#009E73", "#D55E00"), strict=True):
    axes.annotate("", epsilon, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
    axes.plot([], [], color=colour, lw=2, label=name)
axes.set(aspect="equal", xlabel="w₁", ylabel="w₂", ylim=(-1.1, 1.9))
axes.legend(frameon=False, loc="upper left", fontsize=8)

# %% [markdown]
# In each case ⟨Cg, ε⟩ is the largest of all feasible ε, which is easily checked:

# %%
feasible = np.stack([2 * np.cos(angles), 0.5 * np.sin(angles)])  # ‖Dε‖ = 1
best = feasible[:, np.argmax(np.asarray(g) @ feasible)]
print(
    "best on the ellipse",
    best.round(2),
    "  steepest_ascent",
    epsilons["constraint: D⁻¹ = diag(2, ½)"].round(2),
)

# %% [markdown]
# ## Noise turns the adversary away
#
# SAM sees the gradient of a mini-batch, g + ξ. If ξ is large in coordinates where g is small, ε follows the noise: the true loss
# rises less than it could ("adversarial model degradation"). InfoSAM divides by the noise variance, estimated while training.

# %%
RHO = 0.5
curvatures = np.array([1.0, 2.0])
deviation = np.array([0.3, 3.0])
around = RHO * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def rise(clean, epsilon):
    return epsilon @ clean + 0.5 * epsilon**2 @ curvatures


@functools.partial(jax.jit, static_argnames="info")
def adversaries(gradients, info):
    stage = optax_sam.steepest_ascent(RHO, objective=optax_sam.gradient_noise() if info else None)

    def step(state, gradient):
        epsilon, state = stage.update(gradient, state, gradient)
        return state, epsilon

    return jax.lax.scan(step, stage.init(gradients[0]), gradients)[1]


noise = np.random.default_rng(0).normal(size=(500, 2)) * deviation
cases = {
    "signal where little noise is": np.array([1.0, 0.3]),
    "signal where the noise is": np.array([0.3, 1.0]),
}
found = {
    (case, info): np.asarray(adversaries(jnp.asarray(clean + noise), info))[200:]
    for case, clean in cases.items()
    for info in (False, True)
}
for (case, info), epsilon in found.items():
    share = rise(cases[case], epsilon).mean() / rise(cases[case], around).max()
    print(f"{case:30s} {'infoSAM' if info else 'SAM':8s} {share:.0%} of the highest rise")

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained", sharey=True)
grid = np.linspace(-0.75, 0.75, 61)
for axes, ((case, info), epsilon) in zip(panels, found.items(), strict=True):
    axes.contourf(
        grid, grid, rise(cases[case], np.stack(np.meshgrid(grid, grid), -1)), 14, cmap="Greys", alpha=0.7
    )
    colour = "#009E73" if info else "#0072B2"
    axes.scatter(*epsilon.T, s=12, alpha=0.3, color=colour, lw=0)
    worst = around[np.argmax(rise(cases[case], around))]
    axes.plot(*worst, "*", ms=14, color="#E69F00", mec="k")
    axes.set(aspect="equal", xlabel="little noise", title=f"{'infoSAM' if info else 'SAM'},\n{case}")
panels[0].set_ylabel("ten times the noise")

# %% [markdown]
# Dots: adversaries from 300 noisy gradients; star: the worst point of the circle. On the right the assumption fails: the noisy
# coordinate is also the one with the signal, and the weighting gains nothing. In networks trained with wrong labels, that
# is the usual case: see the page "What the papers claim, and what was found here".
#
# ## The regime of Theorem 1
#
# For a loss with L-Lipschitz gradient, ρ = ρ₀/√T and η = η₀/√T ≤ 2/(3L) over T steps make the mean squared gradient norm O(1/√T),
# for any preconditioners with bounded D⁻¹. As a recipe:


# %%
def theorem_1(num_steps, smoothness, rho_0=1.0, eta_0=5.0, **preconditioners):
    rho = rho_0 / num_steps**0.5
    learning_rate = min(eta_0 / num_steps**0.5, 2 / (3 * smoothness))
    return optax.chain(optax_sam.presam(rho, **preconditioners), optax.sgd(learning_rate))


# %% [markdown]
# If T is not known, schedules that fall with the square root of the step keep the rate up to a logarithm: `rho = lambda count: rho_0 / jnp.sqrt(count + 1.0)`.
#
# Here on a loss that is not convex, f(w) = Σ L_i (0.2 w_i² + 0.6 cos w_i), whose L is max L_i = 1, with noisy gradients:

# %%
smoothness = np.geomspace(0.1, 1.0, 10)
preconditioners = {
    "SAM": {},
    "objective: infoSAM": {"objective": optax_sam.gradient_noise()},
    "constraint: ASAM": {"constraint": optax_sam.weight_magnitude()},
}


def loss(w):
    return jnp.sum(smoothness * (0.2 * w**2 + 0.6 * jnp.cos(w)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def mean_squared_gradient(name, num_steps, key):
    tx = theorem_1(num_steps, 1.0, **preconditioners[name])

    def step(carry, key):
        w, state = carry
        noise = 0.3 * jax.random.normal(key, w.shape)
        value_fn = lambda w: loss(w) + noise @ w
        updates, state = tx.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
        return (w + updates, state), jnp.sum(jax.grad(loss)(w) ** 2)

    w = jnp.full(10, 3.0)
    return jnp.mean(jax.lax.scan(step, (w, tx.init(w)), jax.random.split(key, num_steps))[1])


lengths = (100, 400, 1600, 6400)
measured = {
    name: [np.mean([mean_squared_gradient(name, t, jax.random.key(s)) for s in range(5)]) for t in lengths]
    for name in preconditioners
}

# %%
figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
for (name, values), style in zip(measured.items(), ("ko-", "g^--", "C1D:"), strict=True):
    axes.loglog(lengths, values, style, label=name)
axes.loglog(
    lengths,
    0.5 * measured["SAM"][0] * np.sqrt(lengths[0] / np.array(lengths)),
    "k:",
    lw=0.8,
    label="slope of 1/√T",
)
axes.set(xlabel="T", ylabel="mean of ‖∇f‖² over the run")
axes.legend(frameon=False)
