"""Where the arrays of a training run live: on one device, or on several in one of three ways.

    data    jit: every device has all parameters, and JAX divides the work on a sharded batch
    fsdp    jit: parameters and optimizer state are sharded as well
    pmap    jax.pmap: every device runs the step on its part of the batch and averages the gradients

All give the same numbers as one device, up to rounding. (But under pmap, BatchNorm normalises each device's
part separately, and dropout drops the same units on all devices; in groups it is the same.) Between steps the
state is a pytree with the same shapes in all of them, so a checkpoint of one can be used by the others.

In groups, on one device, each part of the batch has its own perturbation (m-sharpness).
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.errors import UsageError

AXIS = "batch"


class OneDevice:
    """One device: nothing to place and nothing to average."""

    num_devices = 1
    num_programs = 1  # that share a batch
    axis_name: str | None = None  # for `update`
    m_sharpness = False  # for `update`: whether each program's own gradient is passed

    def part(self, batch: Any) -> Any:
        """In the step: this program's part of the batch."""
        return batch

    def average(self, tree: Any) -> Any:
        """In the step: the mean over the devices' programs."""
        return tree

    def everywhere(self, tree: Any) -> Any:
        """Puts arrays where every device can read them."""
        return tree

    def compile(self, init: Callable, step: Callable, tx: optax.GradientTransformation) -> tuple:
        """Compiles the functions of `program.make_program`.

        Args:
            init: seed -> state, a `program.TrainState`.
            step: state, training data, order, index, key, refresh, record -> state, loss.
            tx: what made the state's `opt_state`.

        Returns:
            Compiled `init`; compiled `step`, which takes `refresh` and `record` by keyword and donates the
            state's buffers; the abstract state, for restoring a checkpoint.
        """
        return jax.jit(init), jit_step(step), jax.eval_shape(init, 0)


class Data(OneDevice):
    """A replicated state and a sharded batch; JAX adds the collectives."""

    def __init__(self, devices: list[jax.Device]):
        self.num_devices = len(devices)
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.sharded = NamedSharding(mesh, PartitionSpec(AXIS))

    def part(self, batch: Any) -> Any:
        """The whole batch, sharded."""
        return jax.lax.with_sharding_constraint(batch, self.sharded)

    def everywhere(self, tree: Any) -> Any:
        """Puts arrays on every device."""
        return jax.device_put(tree, self.replicated)

    def param_sharding(self, param: jax.ShapeDtypeStruct) -> NamedSharding:
        """The sharding of a parameter."""
        del param
        return self.replicated

    def compile(self, init: Callable, step: Callable, tx: optax.GradientTransformation) -> tuple:
        """Compiles `init` and `step` so that the state is created, and stays, with its shardings."""
        like = jax.eval_shape(init, 0)
        params = jax.tree.map(self.param_sharding, like.params)
        shardings = like._replace(
            params=params,
            rest=jax.tree.map(lambda _: self.replicated, like.rest),
            # State that mirrors the parameters has their shardings.
            opt_state=optax.tree.map_params(
                tx,
                lambda _, sharding: sharding,
                like.opt_state,
                params,
                transform_non_params=lambda _: self.replicated,
            ),
        )
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like, shardings
        )
        step = jit_step(step, out_shardings=(shardings, self.replicated))
        return jax.jit(init, out_shardings=shardings), waiting(step), like


class FSDP(Data):
    """The state is sharded too: each parameter along its longest axis that divides evenly, if any."""

    def param_sharding(self, param: jax.ShapeDtypeStruct) -> NamedSharding:
        """The sharding of a parameter: sharded if possible."""
        return fsdp_sharding(param.shape, self.replicated.mesh)


def fsdp_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """FSDP's sharding of a parameter: split along its longest axis that divides evenly, if any."""
    even = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    longest = max(even, key=lambda axis: shape[axis], default=None)
    spec = [AXIS if axis == longest else None for axis in range(len(shape))]
    return NamedSharding(mesh, PartitionSpec(*spec))


class Programs(OneDevice):
    """Several programs share the batch; they communicate in `average` and in the method."""

    axis_name = AXIS

    def part(self, batch: Any) -> Any:
        """This program's part of the batch."""
        size = len(batch) // self.num_programs
        return jax.lax.dynamic_slice_in_dim(batch, jax.lax.axis_index(AXIS) * size, size)

    def average(self, tree: Any) -> Any:
        """The mean over the programs."""
        # Counts and keys are the same in all of them.
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS) if is_float(x) else x, tree)


class Groups(Programs):
    """One device with a program for each group of the batch, which has its own perturbation."""

    m_sharpness = True

    def __init__(self, groups: int):
        self.num_programs = groups

    def compile(self, init: Callable, step: Callable, tx: optax.GradientTransformation) -> tuple:
        """Compiles `step` as the program of each group."""

        def mapped(state: Any, *args: Any, refresh: bool, record: bool = False) -> Any:
            one = lambda _: step(state, *args, refresh=refresh, record=record)
            return jax.vmap(one, axis_name=AXIS, out_axes=None)(jnp.arange(self.num_programs))

        return super().compile(init, mapped, tx)


class PMap(Programs, Data):
    """Each device runs its own program."""

    @property
    def num_programs(self) -> int:
        """One for each device."""
        return self.num_devices

    def compile(self, init: Callable, step: Callable, tx: optax.GradientTransformation) -> tuple:
        """Compiles `step` as the program of each device."""
        init, _, like = super().compile(init, step, tx)
        # Only the device's number is mapped over the devices. `part` divides the batch.
        mapped = {
            (refresh, record): jax.pmap(
                lambda _, *args, refresh=refresh, record=record: step(*args, refresh=refresh, record=record),
                AXIS,
                in_axes=(0, None, None, None, None, None),
                out_axes=None,
                devices=list(self.replicated.mesh.devices.flat),
                donate_argnums=1,
            )
            for refresh in (False, True)
            for record in (False, True)
        }
        numbers = jax.device_put(jnp.arange(self.num_devices), self.sharded)
        compiled_step = lambda *args, refresh, record=False: mapped[refresh, record](numbers, *args)
        return init, waiting(compiled_step), like


LAYOUTS = {"data": Data, "fsdp": FSDP, "pmap": PMap}


def make_layout(
    devices: int | Literal["all"], kind: str, batch_size: int, groups: int | None = None
) -> OneDevice:
    """Returns the layout of a run.

    Args:
        devices: how many to use.
        kind: one of `LAYOUTS`; ignored on one device.
        batch_size: of all devices together.
        groups: with a perturbation of their own, on one device; None: one perturbation.

    Raises:
        UsageError: if there are fewer devices, or if the batch cannot be divided evenly.
    """
    here = jax.devices()
    number = len(here) if devices == "all" else devices
    if not 1 <= number <= len(here):
        more = f". To simulate {number} on a CPU: XLA_FLAGS=--xla_force_host_platform_device_count={number}"
        raise UsageError(
            f"--devices {number} is not between 1 and {len(here)}, the number of devices here "
            f"({here[0].platform}); 'all' uses all{more if number > 1 else ''}"
        )
    if groups is not None and (number > 1 or groups < 1 or batch_size % groups):
        raise UsageError(
            f"--groups divides the batch of {batch_size} images evenly, on one device; got {groups} on "
            f"{number} device{'s' if number > 1 else ''}"
        )
    if number == 1:
        return OneDevice() if groups is None else Groups(groups)
    if batch_size % number:
        down = batch_size // number * number
        near = f"{down} or {down + number}" if down else str(number)
        raise UsageError(
            f"a batch of {batch_size} images cannot be divided among {number} devices; "
            f"use --batch-size {near}"
        )
    return LAYOUTS[kind](here[:number])


jit_step = partial(jax.jit, static_argnames=("refresh", "record"), donate_argnums=0)


def waiting(step: Callable) -> Callable:
    """Makes a step wait for its result on CPUs, where simulated devices with many queued steps deadlock."""
    if jax.default_backend() != "cpu":
        return step
    return wraps(step)(lambda *args, **kwargs: jax.block_until_ready(step(*args, **kwargs)))
