"""Both frameworks train the same network in the same way. Needs PyTorch, which the tests do not install."""

import jax
import pytest

from benchmarks.cost import steps as training_steps

pytest.importorskip("torch")
pytest.importorskip("pytorch_optimizer")

from benchmarks.cost import torch_rows as step_cost_torch

SETTINGS = step_cost_torch.Settings(
    training_steps.RHO, training_steps.LEARNING_RATE, training_steps.MOMENTUM, "cpu"
)


@pytest.mark.parametrize("model", training_steps.NETWORKS)
@pytest.mark.parametrize(("row", "in_torch"), [("sgd", "torch.optim.SGD"), ("sam", "pytorch_optimizer.SAM")])
def test_five_steps_lead_to_the_same_loss(model, row, in_torch):
    loss, params, batch = training_steps.make_loss(model, 4)
    step, carry = training_steps.make_steps(loss, params)[row]
    step = jax.jit(step)
    network = step_cost_torch.make_network(model, jax.device_get(params), "cpu")
    inputs, labels = step_cost_torch.make_batch(model, jax.device_get(batch), "cpu")
    torch_step = step_cost_torch.step_makers(network, inputs, labels, SETTINGS)[in_torch]()
    for _ in range(5):
        carry = step(carry, batch)
        torch_step()
    own = step_cost_torch.cross_entropy(network(inputs), labels).item()
    assert own == pytest.approx(float(loss(carry[0], batch)), rel=1e-3)
    assert own < 0.95 * float(loss(params, batch))


def test_refuses_networks_that_are_not_the_same():
    loss, params, batch = training_steps.make_loss("mlp", 4)
    arguments = ("mlp", jax.device_get(params), jax.device_get(batch))
    with pytest.raises(RuntimeError, match="in PyTorch"):
        step_cost_torch.make_rows(*arguments, 1.01 * float(loss(params, batch)), SETTINGS)


def test_every_variant_of_sam_takes_two_gradients():
    loss, params, batch = training_steps.make_loss("strided_cnn", 4)
    rows = step_cost_torch.make_rows(
        "strided_cnn", jax.device_get(params), jax.device_get(batch), float(loss(params, batch)), SETTINGS
    )
    flops = {name: counts["flops"] for name, (_, counts) in rows.items()}
    sgd = flops.pop("torch.optim.SGD")
    assert len(flops) == 6
    assert set(flops.values()) == {2 * sgd}
