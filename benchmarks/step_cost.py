"""What a step costs, for every method, beside SAM written by hand and `optax.contrib.sam`.

    python -m benchmarks.step_cost
    python -m benchmarks.step_cost --models mlp --batch-size 512 --rounds 50

All rows are measured in one run, taking turns. Flops and temporary memory are counts of the compiled
program, the same on every run; time is the median over the rounds, and only its ratios mean anything.

- "by hand" is SAM in one jitted function, the least that SAM can cost: two gradients, one norm.
- Rows without a remark are steps with `refresh=False`, that is nearly all steps. "refresh" are those with
  `refresh=True`, "automatic" the program that decides by itself (`refresh=None`), timed between refreshes.
- "automatic refresh" is a refresh within that program, in a `cond`.
- One forward pass and one gradient are shown as units for the refreshes.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from tqdm import tqdm

import optax_sam
from benchmarks.models import MODELS

RESULTS = Path(__file__).parent / "results" / "step_cost.jsonl"
RHO = 0.1
# The refresh inside a `cond`. Convolutions are slow there on CPU, so this row runs in the first rounds only.
SLOW = "eigen_sam, automatic refresh"
TRACED = "a refresh that is true, which the compiler cannot know"


@dataclasses.dataclass(frozen=True)
class Config:
    """The measurement."""

    models: tuple[Literal[*MODELS], ...] = ("strided_cnn", "mlp")
    """Networks, on images of 28 x 28 pixels in 10 classes."""
    batch_size: int = 128
    """Images a step."""
    rounds: int = 30
    """Times that every row is measured."""
    steps: int = 5
    """Steps a row makes in a round."""
    num_iters: int = 5
    """Hessian-vector products in a refresh of Eigen-SAM."""
    num_alphas: int = 21
    """Losses in a refresh of XSAM."""
    output: Path = RESULTS
    """Result file, one line of JSON a row; lines of other devices and models in it are kept."""


def methods(config: Config) -> dict[str, tuple[optax.GradientTransformation, dict[str, Any]]]:
    """Name -> (what goes in front of SGD, further arguments of `update`)."""
    eigen_sam = optax_sam.eigen_sam(RHO, num_iters=config.num_iters)
    lanczos = optax_sam.eigen_sam(RHO, num_iters=config.num_iters, solver="lanczos")
    xsam = optax_sam.xsam(RHO, 2 * RHO, num_alphas=config.num_alphas)
    return {
        "sgd": (optax.identity(), {}),
        "sam": (optax_sam.sam(RHO), {}),
        "sam, 3 steps": (optax_sam.sam(RHO, num_steps=3), {}),
        "asam": (optax_sam.asam(1.0), {}),
        "fisher_sam": (optax_sam.fisher_sam(RHO), {}),
        "info_sam": (optax_sam.info_sam(RHO), {}),
        "eigen_sam": (eigen_sam, {"refresh": False}),
        "eigen_sam, refresh": (eigen_sam, {"refresh": True}),
        "eigen_sam, refresh by lanczos": (lanczos, {"refresh": True}),
        "eigen_sam, automatic": (eigen_sam, {"refresh": None}),
        SLOW: (eigen_sam, {"refresh": TRACED}),
        "xsam": (xsam, {"refresh": False}),
        "xsam, refresh": (xsam, {"refresh": True}),
        "xsam, automatic": (xsam, {"refresh": None}),
    }


def make_loss(model: str, batch_size: int) -> tuple[Callable[..., jax.Array], nnx.State, tuple[Any, Any]]:
    """Returns (loss(params, batch), parameters, a batch of random images)."""
    graphdef, params, rest = nnx.split(MODELS[model]((28, 28, 1), 10, rngs=nnx.Rngs(0)), nnx.Param, ...)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch_size, 28, 28, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=batch_size))

    def loss(params: nnx.State, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = nnx.merge(graphdef, params, rest, copy=True)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return loss, params, (images, labels)


def make_steps(
    config: Config, loss: Callable[..., jax.Array], params: nnx.State
) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Name -> (step, its first carry): every step maps (carry, batch) to a carry."""
    base = optax.sgd(0.01, momentum=0.9)

    def by_hand(carry: Any, batch: Any) -> Any:
        params, state = carry
        grads = jax.grad(loss)(params, batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        perturbed = jax.tree.map(lambda w, g: w + RHO / norm * g, params, grads)
        updates, state = base.update(jax.grad(loss)(perturbed, batch), state, params)
        return optax.apply_updates(params, updates), state

    def with_method(tx: optax.GradientTransformation, kwargs: Any, carry: Any, batch: Any) -> Any:
        params, state = carry
        value_fn = functools.partial(loss, batch=batch)
        if kwargs.get("refresh") == TRACED:
            kwargs = {"refresh": jnp.isfinite(jax.tree.leaves(params)[0]).all()}
        updates, state = optax.with_extra_args_support(tx).update(
            jax.grad(value_fn)(params), state, params, value_fn=value_fn, **kwargs
        )
        return optax.apply_updates(params, updates), state

    def with_contrib(tx: optax.GradientTransformation, carry: Any, batch: Any) -> Any:
        params, state = carry
        grad_fn = lambda params, _: jax.grad(loss)(params, batch)
        updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    contrib = optax.contrib.sam(
        base, optax.chain(optax.contrib.normalize(), optax.sgd(RHO)), sync_period=2, opaque_mode=True
    )
    steps: dict[str, tuple[Callable[..., Any], Any]] = {
        "forward pass": (lambda carry, batch: (carry[0], loss(carry[0], batch)), (params, jnp.zeros(()))),
        "gradient": (lambda carry, batch: (carry[0], jax.grad(loss)(carry[0], batch)), (params, params)),
        "sam by hand": (by_hand, (params, base.init(params))),
        "optax.contrib.sam": (functools.partial(with_contrib, contrib), (params, contrib.init(params))),
    }
    for name, (method, kwargs) in methods(config).items():
        tx = optax.chain(method, base)
        steps[name] = functools.partial(with_method, tx, kwargs), (params, tx.init(params))
    return steps


def compile_step(step: Callable[..., Any], carry: Any, batch: Any) -> jax.stages.Compiled:
    """Compiles a step that gives its carry away."""
    return jax.jit(step, donate_argnums=0).lower(carry, batch).compile()


def measure(config: Config, model: str) -> list[dict[str, Any]]:
    """One record a row."""
    loss, params, batch = make_loss(model, config.batch_size)
    rows, carries = {}, {}
    for name, (step, carry) in tqdm(make_steps(config, loss, params).items(), desc=f"{model}, compiling"):
        rows[name] = compile_step(step, carry, batch)
        carries[name] = jax.tree.map(jnp.copy, carry)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    bar = tqdm(total=(config.rounds + 1) * len(rows), desc=model, unit="row")
    for i in range(config.rounds + 1):  # The first round warms up.
        for name, compiled in rows.items():
            bar.update()
            if name == SLOW and i > 2:
                continue
            began = time.perf_counter()
            for _ in range(1 if "refresh" in name else config.steps):
                carries[name] = compiled(carries[name], batch)
            jax.block_until_ready(carries[name])
            elapsed = time.perf_counter() - began
            seconds[name].append(elapsed / (1 if "refresh" in name else config.steps))
    bar.close()

    records = []
    for name, compiled in rows.items():
        records.append(
            {
                "model": model,
                "batch_size": config.batch_size,
                "row": name,
                **counts(compiled),
                "median_seconds": statistics.median(seconds[name][1:]),
                "seconds_relative_to_sgd": relative(seconds[name], seconds["sgd"]),
                "seconds_relative_to_sam_by_hand": relative(seconds[name], seconds["sam by hand"]),
                "rounds": config.rounds,
                "device": jax.devices()[0].device_kind,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": {p: importlib.metadata.version(p) for p in ("jax", "optax", "optax_sam")},
            }
        )
    return records


def counts(compiled: jax.stages.Compiled) -> dict[str, float]:
    """What the compiled program says of itself."""
    text = compiled.as_text()
    return {
        "flops": compiled.cost_analysis()["flops"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "control_flow": sum(text.count(f" {op}(") for op in ("while", "conditional")),
    }


def relative(own: list[float], other: list[float]) -> float:
    """Median over the rounds of the ratio within a round: the machine's drift cancels."""
    return statistics.median(a / b for a, b in zip(own[1:], other[1:], strict=False))


def print_table(records: list[dict[str, Any]]) -> None:
    """One table a model."""
    for model in dict.fromkeys(record["model"] for record in records):
        own = {record["row"]: record for record in records if record["model"] == model}
        first = own["sgd"]
        hand = own["sam by hand"]
        print(f"\n{model}, batch of {first['batch_size']}, {first['device']} ({first['machine']})")
        print(f"{'':30s} {'flops':>17s} {'temporary memory':>17s} {'time':>14s}  control")
        print(f"{'relative to':30s} {'sgd  by hand':>17s} {'sgd  by hand':>17s} {'sgd  by hand':>14s}  flow")
        for name, record in own.items():
            columns = [
                f"{record[key] / first[key]:9.3f} {record[key] / hand[key]:7.3f}"
                for key in ("flops", "temporary_bytes")
            ]
            times = (
                f"{record['seconds_relative_to_sgd']:7.2f} {record['seconds_relative_to_sam_by_hand']:6.2f}"
            )
            print(f"{name:30s} {' '.join(columns)} {times}  {record['control_flow']:4d}")


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Replaces the lines of these devices and models, keeps all others."""
    identity = lambda record: (record["device"], record["machine"], record["model"], record["batch_size"])
    new = {identity(record) for record in records}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [record for record in old if identity(record) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".partial")
    partial_file.write_text("".join(json.dumps(record) + "\n" for record in kept + records))
    os.replace(partial_file, path)


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, prog="python -m benchmarks.step_cost", description=__doc__)
    records = [record for model in config.models for record in measure(config, model)]
    print_table(records)
    write(records, config.output)
    print(f"\nEvery number: {config.output}")


if __name__ == "__main__":
    main()
