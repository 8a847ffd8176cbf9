"""Worker: one of two processes that train together, on four simulated devices each, with checkpoints.

    python -m tests.devices.cluster PORT PROCESS DIRECTORY NUM_STEPS

Prints {"step": 1, "digest": "<of all bits of parameters and state>"} after every step, and continues from the
last checkpoint in DIRECTORY if there is one.
"""

import hashlib
import json
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding

import optax_sam
from tests.devices import layouts
from tests.devices.layouts import P

NUM_PROCESSES, NUM_DEVICES, SAVE_INTERVAL = 2, 4, 2


def transformation():
    return optax.chain(optax_sam.eigen_sam(0.1, interval=3, num_iters=2), optax.sgd(0.1, momentum=0.9))


def batch_of(step, mesh):
    """Returns the batch of a step, of which each process makes its own half only."""
    x, y = layouts.batches()[step % layouts.NUM_STEPS]
    sharding = NamedSharding(mesh, P("data"))
    return tuple(jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__) for leaf in (x, y))


def main():
    port, process, directory, num_steps = sys.argv[1:]
    jax.distributed.initialize(
        f"localhost:{port}",
        NUM_PROCESSES,
        int(process),
        initialization_timeout=300,
        heartbeat_timeout_seconds=10,
    )
    assert jax.device_count() == NUM_PROCESSES * NUM_DEVICES
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tx = transformation()

    def init():
        return layouts.parameters(), tx.init(jax.tree.map(jax.numpy.asarray, layouts.parameters()))

    # The parameters are sharded over both processes, so that each one writes its own part.
    rows = lambda x: NamedSharding(mesh, P("data") if x.ndim > 0 and x.shape[0] % 8 == 0 else P())
    carry = jax.jit(init, out_shardings=jax.tree.map(rows, jax.eval_shape(init)))()

    @jax.jit
    def step(params, state, batch):
        value_fn = lambda params: layouts.loss(params, batch)
        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        new = optax.apply_updates(params, updates), state
        return jax.lax.with_sharding_constraint(new, jax.tree.map(rows, new))

    options = ocp.CheckpointManagerOptions(
        save_interval_steps=SAVE_INTERVAL, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(directory, options=options) as manager:
        first = manager.latest_step() or 0
        if first:
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), carry
            )
            carry = manager.restore(first, args=ocp.args.StandardRestore(target))
        for i in range(first, int(num_steps)):
            carry = jax.block_until_ready(step(*carry, batch_of(i, mesh)))
            leaves = jax.tree.leaves(multihost_utils.process_allgather(carry, tiled=True))
            digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
            print(json.dumps({"step": i + 1, "digest": digest}), flush=True)
            manager.save(i + 1, args=ocp.args.StandardSave(carry))
            manager.wait_until_finished()


if __name__ == "__main__":
    main()
