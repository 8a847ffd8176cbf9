"""The training step of a file of published settings, from shapes alone, for a described chip."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.cost.tpu_programs import Program
from benchmarks.data.arrays import Dataset, Split
from benchmarks.training.config import parse
from benchmarks.training.parallel import AXIS
from benchmarks.training.program import make_program

NUM_TRAIN = 50_000  # images of CIFAR-100, which the settings are for


def published_program(file: Path, device: Any, refresh: bool) -> Program:
    """The step that `python -m benchmarks.train --config FILE` runs on one chip, with its augmentation."""
    config = parse(["--config", str(file)])
    place = NamedSharding(Mesh(np.array([device]), (AXIS,)), PartitionSpec())
    shape = lambda dims, dtype: jax.ShapeDtypeStruct(dims, dtype, sharding=place)
    split = Split(shape((NUM_TRAIN, 32, 32, 3), jnp.float32), shape((NUM_TRAIN,), jnp.int32))
    dataset = Dataset(split, split, split, num_classes=100, mean=np.zeros(3, np.float32))
    program = make_program(config, dataset)
    placed = lambda tree: jax.tree.map(lambda x: shape(x.shape, x.dtype), tree)
    key = shape((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    arguments = placed(program.like), split, shape((NUM_TRAIN,), jnp.int32), shape((), jnp.int32), key
    return Program(
        lambda *given: program.step(*given, refresh=refresh, record=False),
        arguments,
        donated=(0,),
        results=None,
        batch_size=config.batch_size,
        parameter_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.like.params)),
    )
