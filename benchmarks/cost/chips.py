"""Chips that are described to a compiler: TPUs to `libtpu`, GPUs to JAX's plug-in for CUDA. None is there."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks.errors import UsageError

# (chip, number) -> name of a topology; one chip is the first of eight.
TOPOLOGIES = {
    ("v5e", 1): "v5e:2x4",
    ("v5e", 8): "v5e:2x4",
    ("v5e", 256): "v5e:16x16",
    ("v6e", 8): "v6e:2x4",
    ("v5p", 8): "v5p:2x2x2",
    ("h100", 8): "1x1x8",
}
# Read by libtpu, which would otherwise ask the machine what it is.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# What XLA has to know of a GPU (GpuTargetConfigProto): public figures of an H100, not read from one.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 1 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
}
"""


def compiler(chip: str) -> str:
    """The package that compiles for a chip."""
    return "jax-cuda12-plugin" if chip == "h100" else "libtpu"


def chips(chip: str, number: int) -> list[Any]:
    """Describes chips to compile for.

    Raises:
        UsageError: if the compiler is not installed, or another process uses it.
    """
    topology = TOPOLOGIES[chip, number]
    if chip == "h100":
        need("jax_cuda12_plugin", "JAX's plug-in for CUDA", "jax[cuda12]")
        described = {"platform": "cuda", "topology_name": chip, "topology": topology, "target_config": H100}
    else:
        need("libtpu", "the TPU's compiler", "jax[tpu]")
        described = {"platform": "tpu", "topology_name": topology}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # nothing is started of what is described
    try:
        found = topologies.get_topology_desc(**described)
    except Exception as error:
        if "libtpu_lockfile" not in str(error):
            raise
        raise UsageError(
            "another process uses the TPU's compiler: wait for its end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 "
            f"for both ({error})"
        ) from error
    return list(found.devices[:number])


def need(module: str, name: str, package: str) -> None:
    """Raises unless a compiler is installed."""
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"{name} is not installed, without which nothing can be compiled for such a chip. It needs "
            f"Linux, but no chip: pip install '{package}'"
        )
