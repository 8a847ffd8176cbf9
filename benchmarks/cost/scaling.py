"""Counts what a training step sends between devices, and models how long it would take on a thousand.

    python -m benchmarks.cost.scaling
    python -m benchmarks.cost.scaling --reuse --bandwidth 4e11 --num-parameters 7e9

Measured, on simulated devices: bytes and rounds of the collectives in the compiled program, flops and
temporary bytes that the compiler reports, bytes of the optimizer's state on one device. Modelled: every
time, from these counts and the machine given on the command line; see docs/scaling.md.

layout      parameters and state   gradients passed to `update`
data        replicated (jit)       of the whole batch
fsdp        sharded (jit)          of the whole batch
shard_map   replicated             averaged over the devices: m_sharpness=False
local       replicated (shard_map) of the device's own part: m_sharpness=True
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import optax_sam
from benchmarks.cost.collectives import count
from benchmarks.cost.steps import NETWORKS, make_loss
from benchmarks.records import RESULTS, Record, read_records, versions, write_records
from benchmarks.training.parallel import AXIS, fsdp_sharding

RESULT_FILE = RESULTS / "scaling.jsonl"
NUM_ITERS, NUM_ALPHAS = 5, 21
LAYOUTS = ("data", "fsdp", "shard_map", "local")
METHODS = {  # name -> (what goes in front of SGD, values of `refresh`)
    "sgd": (optax.identity, (None,)),
    "sam": (optax_sam.sam, (None,)),
    "info_sam": (optax_sam.info_sam, (None,)),
    "eigen_sam": (partial(optax_sam.eigen_sam, num_iters=NUM_ITERS), (False, True)),
    "xsam": (partial(optax_sam.xsam, num_alphas=NUM_ALPHAS), (False, True)),
}
# Arguments of `update` for several devices.
TOLD = {
    "shard_map": {"axis_name": AXIS, "m_sharpness": False},
    "local": {"axis_name": AXIS, "m_sharpness": True},
}


@dataclasses.dataclass(frozen=True)
class Job:
    """The job whose step time is modelled."""

    num_devices: int = 1000
    """Devices N."""
    num_parameters: float = 1e9
    """Parameters P of a dense transformer: a gradient takes 6 P flops per token."""
    tokens_per_device: int = 4096
    """Tokens of a batch on each device."""
    bytes_per_parameter: float = 2
    """Bytes sent for a parameter or its gradient; 2 is bfloat16."""
    flops_per_second: float = 1e15
    """Peak performance of a device."""
    efficiency: float = 0.4
    """Share of the peak that training reaches."""
    bandwidth: float = 50e9
    """Bytes per second that a device sends and simultaneously receives; 50e9 is 400 Gbit/s."""
    latency: float = 5e-6
    """Seconds of one hop."""
    interval: int = 100
    """Steps from one refresh to the next."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The measurement."""

    model: Literal[*NETWORKS] = "mlp"
    """The network whose steps are compiled."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices."""
    methods: tuple[Literal[*METHODS], ...] = tuple(METHODS)
    """Methods; SGD is the unit and always included."""
    batch_size: int = 256
    """Images per step on each device: the more devices, the larger the batch."""
    output: Path = RESULT_FILE
    """Result file, one line of JSON per program; it is overwritten."""
    reuse: bool = False
    """Take the counts from the result file and compile nothing."""
    job: Job = dataclasses.field(default_factory=Job)


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
            grads, state, params, value_fn=value_fn, refresh=refresh, **TOLD.get(layout, {})
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


def measure(
    config: Config, method: str, refresh: bool | None, layout: str, num_devices: int
) -> dict[str, Any]:
    """Compiles one training step and returns its record."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    loss, params, batch = make_loss(config.model, config.batch_size * num_devices)
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
    places = jax.tree.map(lambda x: fsdp_sharding(x.shape, mesh) if layout == "fsdp" else everywhere, params)
    params = jax.device_put(params, places)
    tx = optax.chain(METHODS[method][0](), optax.sgd(0.1, momentum=0.9))
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
        "model": config.model,
        "batch_size_per_device": config.batch_size,
        "devices": num_devices,
        "layout": layout,
        "method": method,
        "refresh": refresh,
        **count(compiled.as_text(), num_devices),
        "flops_per_device": compiled.cost_analysis()["flops"],
        "temporary_bytes_per_device": compiled.memory_analysis().temp_size_in_bytes,
        "state_bytes_per_device": bytes_on_a_device(state),
        "parameter_bytes_per_device": bytes_on_a_device(params),
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "versions": versions("jax", "jaxlib", "optax", "optax_sam"),
    }


def measure_all(config: Config) -> list[Record]:
    """One record per program."""
    programs = [
        (method, refresh, layout, num_devices)
        for num_devices in config.devices
        for layout in LAYOUTS
        for method in dict.fromkeys(("sgd", *config.methods))
        for refresh in METHODS[method][1]
        if (method, layout) != ("sgd", "local")  # No perturbation, so nothing would be averaged.
    ]
    records: list[Record] = []
    for program in tqdm(programs, desc="compiling"):
        record = measure(config, *program)
        if program[:2] == ("xsam", True):  # XLA counts one pass of its loop over the losses.
            without = records[-1]["flops_per_device"]  # the step before, `refresh=False`
            record["flops_per_device"] = without + NUM_ALPHAS * (record["flops_per_device"] - without)
        records.append(record)
    return records


def communication_seconds(collective_bytes: dict[str, float], rounds: float, job: Job) -> float:
    """Returns the time of collectives that split every array evenly among the devices: the formula."""
    n = job.num_devices
    halves = sum((2 if kind == "all-reduce" else 1) * size for kind, size in collective_bytes.items())
    hops = rounds * 2 * math.ceil(math.log2(n))
    return halves * (n - 1) / n / job.bandwidth + hops * job.latency


def at_scale(record: Record, sgd: Record, job: Job) -> dict[str, float]:
    """Returns the model's prediction for a step, from its record and that of SGD on as many devices."""
    is_sharded = record["layout"] == "fsdp"
    flops = (
        record["flops_per_device"] / sgd["flops_per_device"] * 6 * job.num_parameters * job.tokens_per_device
    )
    scale = job.num_parameters * job.bytes_per_parameter / record["parameter_bytes"]
    sent = {kind: size * scale for kind, size in record["collective_bytes"].items()}
    if is_sharded:  # Each device keeps only its part of the sum.
        sent["reduce-scatter"] = sent.pop("all-reduce", 0)
    state = record["state_bytes_per_device"] / record["parameter_bytes_per_device"] * 4 * job.num_parameters
    compute = flops / (job.flops_per_second * job.efficiency)
    communication = communication_seconds(sent, record["rounds"], job)
    return {
        "compute": compute,
        "communication": communication,
        "step": compute + communication,
        "overlapped": max(compute, communication),
        "state_bytes": state / job.num_devices if is_sharded else state,
    }


def mean_at_scale(own: list[Record], sgd: Record, job: Job) -> dict[str, float]:
    """Returns the mean over steps, for a method's records without and, if there is one, with a refresh."""
    first, last = at_scale(own[0], sgd, job), at_scale(own[-1], sgd, job)
    return {key: first[key] + (last[key] - first[key]) / job.interval for key in first}


def largest(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """(layout, method) -> its records on the largest number of devices."""
    most = max(record["devices"] for record in records)
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["devices"] == most:
            found.setdefault((record["layout"], record["method"]), []).append(record)
    return found


def print_counts(records: list[Record]) -> None:
    """Prints the measurement: on the most devices and, of the state, on every number of devices."""
    counts = sorted({record["devices"] for record in records})
    own = largest(records)
    unit = own["data", "sgd"][0]
    print(
        f"\nMeasured: {unit['model']}, {unit['batch_size_per_device']} images a device, {counts[-1]} devices"
    )
    print("(summed, gathered, temporary memory and optimizer state in copies of the parameters)\n")
    print(f"{'layout':10s} {'method':18s}   flops  summed  gathered  scalars  rounds  temporary", end="")
    print(f"  state on {', '.join(map(str, counts))} devices")
    for record in (record for group in own.values() for record in group):
        size, sent = record["parameter_bytes"], Counter(record["collective_bytes"])
        name = f"{record['method']}, refresh" if record["refresh"] else record["method"]
        same = [r for r in records if all(r[k] == record[k] for k in ("layout", "method", "refresh"))]
        state = "  ".join(f"{r['state_bytes_per_device'] / size:.2f}" for r in same)
        others = sum(sent.values()) - sent["all-reduce"] - sent["all-gather"]
        print(
            f"{record['layout']:10s} {name:18s} {record['flops_per_device'] / unit['flops_per_device']:7.2f}"
            f" {sent['all-reduce'] / size:7.2f} {sent['all-gather'] / size:9.2f}"
            f" {record['collective_scalars']:8d} {record['rounds']:7d}"
            f" {record['temporary_bytes_per_device'] / size:10.2f}  {state}"
            + (f" (and {others / size:.2f} by other collectives)" if others else "")
        )


def print_model(records: list[Record], job: Job) -> None:
    """Prints the model: what a step would take at scale."""
    own = largest(records)
    unit = own["data", "sgd"][0]
    usual = mean_at_scale([unit], unit, job)["step"]
    print("\nA model, not a measurement:")
    print(", ".join(f"{key} {value:g}" for key, value in dataclasses.asdict(job).items()))
    print("(= step: nothing overlaps; / sgd: of its replicated step; state: the optimizer's, float32)\n")
    print(f"{'layout':10s} {'method':10s} {'compute':>9s} {'+ communication':>16s} {'= step':>10s}", end="")
    print(f" {'/ sgd':>6s} {'all overlaps':>13s} {'state a device':>15s}")
    for (layout, method), group in own.items():
        if layout == "shard_map":  # The same computation as "data".
            continue
        mean = mean_at_scale(group, unit, job)
        print(
            f"{layout:10s} {method:10s} {1e3 * mean['compute']:6.1f} ms"
            f" {1e3 * mean['communication']:13.1f} ms {1e3 * mean['step']:7.1f} ms"
            f" {mean['step'] / usual:6.2f} {1e3 * mean['overlapped']:10.1f} ms"
            f" {mean['state_bytes'] / 1e9:12.3f} GB"
        )


def main() -> None:
    """The command line."""
    config = tyro.cli(
        Config,
        prog="python -m benchmarks.cost.scaling",
        description=__doc__.split("\nlayout")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if config.reuse:
        records = read_records(config.output)
    else:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(config.devices))
        records = measure_all(config)
        write_records(config.output, records)
    print_counts(records)
    print_model(records, config.job)
    print(f"\nEvery count: {config.output}")


if __name__ == "__main__":
    main()
