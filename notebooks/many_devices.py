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
# # Many devices
#
# The same training step on eight devices, in the three ways that JAX offers, and m-sharpness. The devices are simulated on
# the CPU, so nothing here is faster; what the programs compute and send is the same as on real ones. The documentation
# has a page on this with programs to copy.

# %%
import os
import re

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# XLA's threads: simulated devices wait for one another, each in a thread of its own.
os.environ["NPROC"] = "64"

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import optax_sam

matplotlib.rcParams["figure.dpi"] = 150
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
print(jax.devices())

# %% [markdown]
# A network, and a batch of 64 images: eight for each device.

# %%
images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images[:64] / 16, jnp.float32), jnp.asarray(labels[:64])
keys = jax.random.split(jax.random.key(0), 2)
params = {
    "inner": jax.random.normal(keys[0], (64, 128)) / 8,
    "outer": jax.random.normal(keys[1], (128, 10)) / 11,
}


def loss_fn(params, x, y):
    logits = jax.nn.relu(x @ params["inner"]) @ params["outer"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train_step(tx, params, state, batch):
    value_fn = lambda params: loss_fn(params, *batch)
    updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state


tx = optax.chain(optax_sam.sam(rho=0.1), optax.sgd(0.1))
on_one, _ = jax.jit(train_step, static_argnums=0)(tx, params, tx.init(params), batch)


def difference(trained):
    return max(float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (trained, on_one)), strict=True))


# %% [markdown]
# ## Data-parallel under `jit`
#
# Only the placement of the arrays changes: parameters everywhere, the batch split. JAX inserts the communication, and the
# result is the same as on one device, up to rounding.

# %%
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
placed = jax.device_put(params, whole)
trained, _ = jax.jit(train_step, static_argnums=0)(tx, placed, tx.init(placed), jax.device_put(batch, split))
print(f"largest difference from one device: {difference(trained):.1e}")

# %% [markdown]
# ## Sharded parameters
#
# Every device keeps an eighth of the parameters and of the state. Norms run over all parameters, and what mirrors a
# parameter in the state lies where the parameter lies: here the gradient's mean and variance of infoSAM.

# %%
tx_info = optax.chain(optax_sam.info_sam(rho=0.1), optax.adam(1e-3))
sharded = jax.device_put(params, {"inner": split, "outer": split})
state = tx_info.init(sharded)
_, state = jax.jit(train_step, static_argnums=0)(tx_info, sharded, state, jax.device_put(batch, split))
variance = optax.tree.get(state, "noise_variance")["inner"]
print(f"shape of the variance {variance.shape}, on each device {variance.addressable_shards[0].data.shape}")

# %% [markdown]
# ## A program for each device: `shard_map`
#
# The step says over which axis it is mapped, and whether the gradient passed in is the average (one perturbation for all,
# as above) or the device's own (m-sharpness: each device has its own perturbation).


# %%
def mapped(tx, m_sharpness):
    def step(params, state, batch):
        value_fn = lambda params: loss_fn(params, *batch)
        if m_sharpness:  # Without `pcast`, JAX would sum over the devices.
            grads = jax.grad(value_fn)(jax.lax.pcast(params, "batch", to="varying"))
        else:
            grads = jax.grad(lambda params: jax.lax.pmean(value_fn(params), "batch"))(params)
        updates, state = tx.update(
            grads, state, params, value_fn=value_fn, axis_name="batch", m_sharpness=m_sharpness
        )
        return optax.apply_updates(params, updates), state

    specs = P(), P(), (P("batch"), P("batch"))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))


for m_sharpness in (False, True):
    trained, _ = mapped(tx, m_sharpness)(params, tx.init(params), batch)
    print(f"m_sharpness={m_sharpness!s:5} largest difference from one device: {difference(trained):.1e}")

# %% [markdown]
# m-sharpness is another method: its difference is not rounding.
#
# ## What is sent
#
# Counted in the compiled programs: how often the gradient of the first layer is summed over the devices. SAM sums two
# gradients, SGD one; with m-sharpness SAM sums one too, because the first gradient stays where it is.


# %%
def all_reduces(step, tx):
    program = step.lower(params, tx.init(params), batch).compile().as_text()
    sums = re.findall(r"= (.*) all-reduce(?:-start)?\(", program)  # the shapes of what each returns
    return sum(shapes.count("[64,128]") for shapes in sums)


sgd = optax.chain(optax.with_extra_args_support(optax.identity()), optax.sgd(0.1))
print(f"SGD                    {all_reduces(mapped(sgd, False), sgd)}")
print(f"SAM                    {all_reduces(mapped(tx, False), tx)}")
print(f"SAM with m-sharpness   {all_reduces(mapped(tx, True), tx)}")

# %% [markdown]
# ## What m-sharpness changes
#
# A device's gradient comes from its eight images, and so does its perturbation. On the left, the cosines between the eight
# perturbations; on the right, how much each device's loss rises at its own ε and at the one that all share.

# %%
groups = jax.tree.map(lambda leaf: leaf.reshape(8, 8, *leaf.shape[1:]), batch)
ascent = optax_sam.steepest_ascent(rho=0.1)
perturb = lambda x, y: ascent.update(jax.grad(loss_fn)(params, x, y), ascent.init(params), params)[0]
own = jax.vmap(perturb)(*groups)
shared = perturb(*batch)


def rise(epsilon, x, y):
    return loss_fn(optax.apply_updates(params, epsilon), x, y) - loss_fn(params, x, y)


rows = np.concatenate([np.asarray(leaf).reshape(8, -1) for leaf in jax.tree.leaves(own)], axis=1)
cosines = rows @ rows.T / 0.1**2
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained")
image = left.imshow(cosines, cmap="cividis")
figure.colorbar(image, ax=left, label="cosine of two perturbations")
left.set(xlabel="device", ylabel="device", xticks=range(8), yticks=range(8))
devices = np.arange(8)
right.bar(devices - 0.2, jax.vmap(rise)(own, *groups), 0.4, color="#0072B2", label="own ε")
right.bar(
    devices + 0.2, jax.vmap(rise, (None, 0, 0))(shared, *groups), 0.4, color="#E69F00", label="shared ε"
)
right.set(xlabel="device", ylabel="rise of the device's loss", xticks=devices)
right.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside lower right", ncols=2, frameon=False)

# %% [markdown]
# Perturbations of eight images each have little in common, and a device's own raises its loss more than the shared one. So
# at the same `rho` m-sharpness with many devices is the stronger method; tune `rho` for the number of devices that you use.
