"""Both frameworks train the same network in the same way. Needs PyTorch, which the tests do not install."""

import jax
import pytest

from benchmarks.cost import steps

pytest.importorskip("torch")
pytest.importorskip("pytorch_optimizer")

from benchmarks.cost import torch_rows

SETTINGS = torch_rows.Settings(steps.RHO, steps.LEARNING_RATE, steps.MOMENTUM, "cpu")


@pytest.mark.parametrize("model", steps.NETWORKS)
@pytest.mark.parametrize(("row", "in_torch"), [("sgd", "torch.optim.SGD"), ("sam", "pytorch_optimizer.SAM")])
def test_five_steps_lead_to_the_same_loss(model, row, in_torch):
    loss, params, batch = steps.make_loss(model, 4)
    step, carry = steps.make_steps(loss, params)[row]
    step = jax.jit(step)
    network = torch_rows.make_network(model, jax.device_get(params), "cpu")
    inputs, labels = torch_rows.make_batch(model, jax.device_get(batch), "cpu")
    torch_step = torch_rows.step_makers(network, inputs, labels, SETTINGS)[in_torch]()
    for _ in range(5):
        carry = step(carry, batch)
        torch_step()
    own = torch_rows.cross_entropy(network(inputs), labels).item()
    assert own == pytest.approx(float(loss(carry[0], batch)), rel=1e-3)
    assert own < 0.95 * float(loss(params, batch))


def test_refuses_networks_that_are_not_the_same():
    loss, params, batch = steps.make_loss("mlp", 4)
    arguments = ("mlp", jax.device_get(params), jax.device_get(batch))
    with pytest.raises(RuntimeError, match="in PyTorch"):
        torch_rows.make_rows(*arguments, 1.01 * float(loss(params, batch)), SETTINGS)


def test_every_variant_of_sam_takes_two_gradients():
    loss, params, batch = steps.make_loss("strided_cnn", 4)
    rows = torch_rows.make_rows(
        "strided_cnn", jax.device_get(params), jax.device_get(batch), float(loss(params, batch)), SETTINGS
    )
    flops = {name: counts["flops"] for name, (_, counts) in rows.items()}
    sgd = flops.pop("torch.optim.SGD")
    assert len(flops) == 6
    assert set(flops.values()) == {2 * sgd}
