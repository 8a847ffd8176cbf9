"""The published methods, one per file, each a choice of stages for `optax_sam.sharpness_aware`.

Each of them goes first in a chain, and its `update` takes `value_fn`:

    tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))
    updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

`rho` is a number or a schedule of the number of updates made; `num_steps` is the number of ascents that make
up ε. The other arguments of `update`, such as those for several devices, are described in `sharpness_aware`.
"""
