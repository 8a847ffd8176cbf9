"""The published methods, one a file, each a choice of stages for `optax_sam.sharpness_aware`.

Every one goes first in a chain and takes `value_fn` at `update`:

    tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))
    updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

`rho` is a number or a schedule of the number of updates made; `num_steps` is the number of ascents that make
up ε. The further arguments of `update`, for several devices among them, are those of `sharpness_aware`.
"""
