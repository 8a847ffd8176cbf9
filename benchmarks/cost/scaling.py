"""Counts what a training step sends between devices, and models how long it would take on a thousand.

Measured, on simulated devices: bytes and rounds of the collectives in the compiled program, flops and
temporary bytes that the compiler reports, bytes of the optimizer's state on one device. Modelled: every
time, from these counts and a machine; see docs/evidence/cost.md.

layout      parameters and state   gradients passed to `update`
data        replicated (jit)       of the whole batch
fsdp        sharded (jit)          of the whole batch
shard_map   replicated             averaged over the devices: m_sharpness=False
local       replicated (shard_map) of the device's own part: m_sharpness=True
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.cost.collectives import count
from benchmarks.cost.steps import make_loss
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.methods import METHODS
from benchmarks.records import Record
from benchmarks.tables import table
from benchmarks.training.parallel import AXIS, fsdp_sharding

# Losses in a search of XSAM, products in a refresh of Eigen-SAM.
IN_A_LOOP = {"xsam": 21, "eigen_sam": 5}
LAYOUTS = ("data", "fsdp", "shard_map", "local")
ROWS = ("sgd", "sam", "info_sam", "eigen_sam", "xsam")
# Arguments of `update` for several devices.
UPDATE_ARGUMENTS = {
    "shard_map": {"axis_name": AXIS, "m_sharpness": False},
    "local": {"axis_name": AXIS, "m_sharpness": True},
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """The training whose step time is modelled."""

    num_devices: int = 1000  # devices N
    num_parameters: float = 1e9  # parameters P of a dense transformer: a gradient takes 6 P flops per token
    tokens_per_device: int = 4096  # tokens of a batch on each device
    bytes_per_parameter: float = 2  # bytes sent for a parameter or its gradient; 2 is bfloat16
    flops_per_second: float = 1e15  # peak performance of a device
    efficiency: float = 0.4  # share of the peak that training reaches
    # Bytes per second that a device sends and simultaneously receives; 50e9 is 400 Gbit/s.
    bandwidth: float = 50e9
    latency: float = 5e-6  # seconds of one hop
    interval: int = 100  # steps from one refresh to the next


MACHINE = Machine()


@dataclasses.dataclass(frozen=True)
class Scaling(Experiment):
    """The measurement."""

    name: str = "scaling"
    is_alone: bool = True
    model: str = "mlp"  # the network whose steps are compiled
    devices: tuple[int, ...] = (1, 2, 4, 8)  # numbers of simulated devices
    methods: tuple[str, ...] = ROWS  # names in `methods.METHODS`; SGD is the unit
    batch_size: int = 256  # images per step on each device: the more devices, the larger the batch

    def jobs(self, records: list[Record]) -> list[Job]:
        """One program each; XSAM's search, which needs the counts of the step before, with that step."""
        return [
            {
                "model": self.model,
                "batch_size_per_device": self.batch_size,
                "devices": num_devices,
                "layout": layout,
                "method": method,
            }
            for num_devices in self.devices
            for layout in LAYOUTS
            for method in self.methods
            if (method, layout) != ("sgd", "local")  # No perturbation, so nothing would be averaged.
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Compiles the training step, for a method with refreshes without and with one."""
        simulate(max(self.devices))
        is_occasional = METHODS[job["method"]].occasional
        records = [self.program(job, refresh) for refresh in ((False, True) if is_occasional else (None,))]
        if times := IN_A_LOOP.get(job["method"]):  # XLA counts one pass.
            without, once = (record["flops_per_device"] for record in records)
            records[1]["flops_per_device"] = without + times * (once - without)
        return records

    def program(self, job: Job, refresh: bool | None) -> Record:
        """What one compiled program sends and needs."""
        layout, num_devices = job["layout"], job["devices"]
        mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        loss, params, batch = make_loss(self.model, self.batch_size * num_devices)
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
        is_sharded = layout == "fsdp"
        places = jax.tree.map(lambda x: fsdp_sharding(x.shape, mesh) if is_sharded else everywhere, params)
        params = jax.device_put(params, places)
        method = METHODS[job["method"]]
        tx = optax.chain(method.make(**method.options), optax.sgd(0.1, momentum=0.9))
        # `init` gives each statistic the sharding of its parameter, but leaves scalars on the default device.
        state = jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, everywhere), tx.init(params))
        carry = (params, state)
        step = jax.jit(
            make_step(tx, loss, refresh, layout, mesh),
            donate_argnums=(0, 1),
            out_shardings=jax.tree.map(lambda x: x.sharding, carry),
        )
        compiled = step.lower(*carry, batch).compile()
        return {
            "refresh": refresh,
            **count(compiled.as_text(), num_devices),
            "flops_per_device": compiled.cost_analysis()["flops"],
            "temporary_bytes_per_device": compiled.memory_analysis().temp_size_in_bytes,
            "state_bytes_per_device": bytes_on_a_device(state),
            "parameter_bytes_per_device": bytes_on_a_device(params),
            "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        }

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """The counts, and a model of the time."""
        own = largest(frame.to_dict("records"))
        made = {"counts": counts_table(own), "model": model_table(own, MACHINE)}
        return {"docs/evidence/cost.md": made}


@functools.cache
def simulate(num_devices: int) -> None:
    """Simulates so many devices: before anything else is computed in this process."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def make_step(
    tx: optax.GradientTransformation, loss: Any, refresh: bool | None, layout: str, mesh: Mesh
) -> Callable[..., Any]:
    """Returns the training step (params, state, batch) -> (params, state)."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any, state: Any, batch: Any) -> Any:
        value_fn = lambda params: loss(params, batch)
        if layout == "shard_map":
            grads = jax.grad(lambda params: jax.lax.pmean(value_fn(params), AXIS))(params)
        elif layout == "local":
            grads = jax.grad(value_fn)(jax.lax.pcast(params, AXIS, to="varying"))
        else:
            grads = jax.grad(value_fn)(params)
        updates, state = tx.update(
            grads, state, params, value_fn=value_fn, refresh=refresh, **UPDATE_ARGUMENTS.get(layout, {})
        )
        return optax.apply_updates(params, updates), state

    if layout in ("data", "fsdp"):
        return step
    specs = {
        "in_specs": (PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
        "out_specs": PartitionSpec(),
    }
    return jax.shard_map(step, mesh=mesh, **specs)


def bytes_on_a_device(tree: Any) -> int:
    """Returns the bytes of the arrays on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def communication_seconds(collective_bytes: dict[str, float], rounds: float, machine: Machine) -> float:
    """Returns the time of collectives that split every array evenly among the devices: the formula."""
    n = machine.num_devices
    halves = sum((2 if kind == "all-reduce" else 1) * size for kind, size in collective_bytes.items())
    hops = rounds * 2 * math.ceil(math.log2(n))
    return halves * (n - 1) / n / machine.bandwidth + hops * machine.latency


def at_scale(record: Record, sgd: Record, machine: Machine) -> dict[str, float]:
    """Returns the model's prediction for a step, from its record and SGD's on as many devices."""
    is_sharded = record["layout"] == "fsdp"
    flops = (
        record["flops_per_device"]
        / sgd["flops_per_device"]
        * 6
        * machine.num_parameters
        * machine.tokens_per_device
    )
    scale = machine.num_parameters * machine.bytes_per_parameter / record["parameter_bytes"]
    sent = {kind: size * scale for kind, size in record["collective_bytes"].items()}
    if is_sharded:  # Each device keeps only its part of the sum.
        sent["reduce-scatter"] = sent.pop("all-reduce", 0)
    state = (
        record["state_bytes_per_device"] / record["parameter_bytes_per_device"] * 4 * machine.num_parameters
    )
    compute = flops / (machine.flops_per_second * machine.efficiency)
    communication = communication_seconds(sent, record["rounds"], machine)
    return {
        "compute": compute,
        "communication": communication,
        "step": compute + communication,
        "overlapped": max(compute, communication),
        "state_bytes": state / machine.num_devices if is_sharded else state,
    }


def mean_at_scale(own: list[Record], sgd: Record, machine: Machine) -> dict[str, float]:
    """Returns the mean over steps, for a method's records without and, if there is one, with a refresh."""
    first, last = at_scale(own[0], sgd, machine), at_scale(own[-1], sgd, machine)
    return {key: first[key] + (last[key] - first[key]) / machine.interval for key in first}


def largest(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """(layout, method) -> its records on the largest number of devices."""
    most = max(record["devices"] for record in records)
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["devices"] == most:
            found.setdefault((record["layout"], record["method"]), []).append(record)
    return found


def counts_table(own: dict[tuple[str, str], list[Record]]) -> str:
    """The measurement, in copies of the parameters."""
    lines = []
    for record in (record for group in own.values() for record in group):
        size, sent = record["parameter_bytes"], Counter(record["collective_bytes"])
        name = f"{record['method']}, refresh" if record["refresh"] else record["method"]
        if record["layout"] == "shard_map":  # The same as "data".
            continue
        lines.append(
            [
                *(record["layout"], name, f"{sent['all-reduce'] / size:.2f}"),
                f"{sent['all-gather'] / size:.2f}",
                str(record["rounds"]),
                f"{record['state_bytes_per_device'] / size:.2f}",
            ]
        )
    return table(["layout", "method", "summed", "gathered", "rounds", "state"], lines)


def model_table(own: dict[tuple[str, str], list[Record]], machine: Machine) -> str:
    """A model, not a measurement: what a step of SGD and of SAM would take at scale."""
    unit = own["data", "sgd"][0]
    usual = mean_at_scale([unit], unit, machine)["step"]
    lines = []
    for (layout, method), group in own.items():
        if layout == "shard_map" or method not in ("sgd", "sam"):
            continue
        mean = mean_at_scale(group, unit, machine)
        lines.append(
            [
                *(layout, method, f"{1e3 * mean['compute']:.0f} ms", f"{1e3 * mean['communication']:.0f} ms"),
                *(f"{mean['step'] / usual:.2f}", f"{1e3 * mean['overlapped']:.0f} ms"),
                f"{mean['state_bytes'] / 1e9:.3f} GB",
            ]
        )
    head = ["layout", "method", "compute", "communication", "step (SGD = 1)", "overlapped", "state"]
    return table(head, lines)
