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
# rises less than it could ("adversarial model degradation"). InfoSAM divides by the noise variance, estimated while training. The verdict is
# computed as on the page "What the papers claim": the claim is that infoSAM's ε raises the true loss more than
# SAM's; compared, in two cases, is the rise in percent of the highest, gradient by gradient.

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


noise = np.random.default_rng(0).normal(size=(600, 2)) * deviation
cases = {
    "signal where little noise is": np.array([1.0, 0.3]),
    "signal where the noise is": np.array([0.3, 1.0]),
}
found = {
    (case, info): np.asarray(adversaries(jnp.asarray(clean + noise), info))[200:]
    for case, clean in cases.items()
    for info in (False, True)
}


def verdict(comparisons):
    """Each comparison is several differences that are positive if the claim is right; shown if their mean is > 2 s.e."""
    shown = []
    for name, differences in comparisons.items():
        mean, error = np.mean(differences), np.std(differences, ddof=1) / len(differences) ** 0.5
        shown.append(mean > 2 * error)
        print(f"{name:50s} {mean:+8.2f} ± {error:.2f}")
    print("the claim", "holds" if all(shown) else "holds in part" if any(shown) else "does not hold")


shares = {
    (case, info): 100 * rise(cases[case], epsilon) / rise(cases[case], around).max()
    for (case, info), epsilon in found.items()
}
for (case, info), share in shares.items():
    print(f"{case:30s} {'infoSAM' if info else 'SAM':8s} {share.mean():.0f} % of the highest rise")
verdict({case: shares[case, True] - shares[case, False] for case in cases})

# %%
figure, panels = plt.subplots(2, 2, figsize=(5.5, 5.5), layout="constrained", sharex=True, sharey=True)
grid = np.linspace(-0.75, 0.75, 61)
for axes, ((case, info), epsilon) in zip(panels.flat, found.items(), strict=True):
    axes.contourf(
        grid, grid, rise(cases[case], np.stack(np.meshgrid(grid, grid), -1)), 14, cmap="Greys", alpha=0.7
    )
    colour = "#009E73" if info else "#0072B2"
    axes.scatter(*epsilon.T, s=12, alpha=0.3, color=colour, lw=0)
    worst = around[np.argmax(rise(cases[case], around))]
    axes.plot(*worst, "*", ms=14, color="#E69F00", mec="k")
    axes.set(aspect="equal", title=f"{'infoSAM' if info else 'SAM'},\n{case}")
figure.supxlabel("little noise")
figure.supylabel("ten times the noise")

# %% [markdown]
# Dots: adversaries from 400 noisy gradients; star: the worst point of the circle. Below, the assumption fails: the noisy
# coordinate is also the one with the signal, and the weighting gains nothing. In networks trained with noisy labels, that
# is the usual case: see the page "What the papers claim".
#
# ## An asymmetric valley
#
# Figure 3 of the paper: SGD, SAM whose ascent has no noise, and SAM with noise, near a valley that is steep on one side and flat on the
# other. Three claims, at four levels σ of noise, run by run, from the mean of x in units of ρ: noise-free SAM stays further on the flat side
# than SGD; with the noise it stays less far; infoSAM with the true variance stays further than noisy SAM. The function is our choice.

# %%
STEEP, FLAT, ALONG = 10.0, 1.0, 0.1
SIGMAS = (0.5, 1.5, 5.0, 15.0)


def valley(w):
    x, y = w
    return jnp.where(x < 0, STEEP, FLAT) * x**2 / 2 + ALONG * y**2 / 2


def perturbation(row, clean, noise, deviation):
    if row == "SGD":
        return jnp.zeros_like(clean)
    variance = optax.stateless(lambda gradient, params: deviation**-2) if row == "infoSAM" else None
    stage = optax_sam.steepest_ascent(RHO, objective=variance)
    gradient = clean if row == "SAM, noise-free" else clean + noise
    return stage.update(gradient, stage.init(clean), clean)[0]


@functools.partial(jax.jit, static_argnums=0)
def paths(row, sigma, keys):
    deviation = sigma * jnp.array([0.1, 1.0])

    def step(w, key):
        noise = deviation * jax.random.normal(key, w.shape)
        epsilon = perturbation(row, jax.grad(valley)(w), noise, deviation)
        w = w - 0.05 * (jax.grad(valley)(w + epsilon) + noise)
        return w, w

    run = lambda key: jax.lax.scan(step, jnp.array([-0.8, 6.0]), jax.random.split(key, 4000))[1]
    return jax.vmap(run)(keys)


rows = ("SGD", "SAM, noise-free", "SAM, noisy", "infoSAM")
keys = jax.random.split(jax.random.key(0), 20)
walks = {(row, sigma): np.asarray(paths(row, sigma, keys)) for row in rows for sigma in SIGMAS}
# Without the first quarter of each run.
means = {at: walk[:, 1000:, 0].mean(1) / RHO for at, walk in walks.items()}
for one, other in (("SAM, noise-free", "SGD"), ("SAM, noise-free", "SAM, noisy"), ("infoSAM", "SAM, noisy")):
    verdict(
        {f"{one} minus {other}, σ = {sigma}": means[one, sigma] - means[other, sigma] for sigma in SIGMAS}
    )

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
for row, colour in zip(rows, ("#000000", "#0072B2", "#D55E00", "#009E73"), strict=True):
    panels[0].plot(*walks[row, 5.0][0, :150].T, color=colour, lw=0.8, label=row)
    panels[1].plot(SIGMAS, [means[row, sigma].mean() for sigma in SIGMAS], "o-", color=colour)
panels[0].axvline(0, color="k", lw=0.6, ls=":")
panels[0].set(title="150 steps, σ = 5", xlabel="x (steep: x < 0)", ylabel="y", xlim=(-1, 1.2))
panels[1].set(title="mean of x / ρ", xlabel="deviation σ of the noise in y", xscale="log", yscale="log")
panels[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# Noise does *not* simply take SAM back to SGD here. Where it is weak, noisy SAM is drawn to the flat side less than noise-free SAM. Where it is
# strong, more: a random ε averages the loss over a neighbourhood, and the average of an asymmetric valley has its minimum on the flat side.
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
# Here on a loss that is not convex, f(w) = Σ L_i (0.2 w_i² + 0.6 cos w_i), whose L is max L_i = 1, with noisy gradients. The claim is that
# the mean squared gradient norm falls like 1/√T. Compared, for each preconditioner, seed by seed: 0.1 minus the distance from ½ of the
# exponent p that is fitted to T^(−p).

# %%
SIZE = 20
smoothness = np.geomspace(0.1, 1.0, SIZE)
spread = np.geomspace(0.05, 1.0, SIZE)[np.random.default_rng(0).permutation(SIZE)]
fixed = optax.stateless(lambda gradient, params: jnp.asarray(np.geomspace(0.25, 4.0, SIZE), jnp.float32))
preconditioners = {
    "none (SAM)": dict,
    "objective: infoSAM": lambda: {"objective": optax_sam.gradient_noise()},
    "constraint: ASAM": lambda: {"constraint": optax_sam.weight_magnitude()},
    "constraint: Fisher": lambda: {"constraint": optax_sam.fisher_information()},
    "constraint: fixed, ¼ to 4": lambda: {"constraint": fixed},
}


def loss(w):
    return jnp.sum(jnp.asarray(smoothness, w.dtype) * (0.2 * w**2 + 0.6 * jnp.cos(w)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def mean_squared_gradient(name, num_steps, keys):
    tx = theorem_1(num_steps, 1.0, rho_0=3.0, **preconditioners[name]())

    def run(key):
        def step(carry, key):
            w, state = carry
            noise = jnp.asarray(spread, w.dtype) * jax.random.normal(key, w.shape, w.dtype)
            value_fn = lambda w: loss(w) + noise @ w
            updates, state = tx.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
            return (w + updates, state), jnp.sum(jax.grad(loss)(w) ** 2)

        w = jnp.full(SIZE, 3.0)
        return jnp.mean(jax.lax.scan(step, (w, tx.init(w)), jax.random.split(key, num_steps))[1])

    return jax.vmap(run)(keys)


lengths = (100, 400, 1600, 6400)
keys = {length: jax.random.split(jax.random.key(length), 10) for length in lengths}
measured = {
    name: np.array([mean_squared_gradient(name, length, keys[length]) for length in lengths])
    for name in preconditioners
}
verdict(
    {
        name: [0.1 - abs(-np.polyfit(np.log(lengths), np.log(seed), 1)[0] - 0.5) for seed in values.T]
        for name, values in measured.items()
    }
)

# %%
figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
for (name, values), style in zip(measured.items(), ("ko-", "g^--", "C1D:", "C0s-.", "C4v-"), strict=True):
    axes.loglog(lengths, values.mean(1), style, label=name)
axes.loglog(
    lengths,
    0.5 * measured["none (SAM)"][0].mean() * np.sqrt(lengths[0] / np.array(lengths)),
    "k:",
    lw=0.8,
    label="slope of 1/√T",
)
axes.set(xlabel="T", ylabel="mean of ‖∇f‖² over the run")
axes.legend(frameon=False)
