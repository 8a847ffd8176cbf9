"""The XLA flag in which the tests compile in half the time, where this jaxlib has it.

`python -m tests.xla` prints the flag for `XLA_FLAGS`. Where jaxlib does not know it, it prints nothing, and
says so on standard error. It starts JAX, so a flag in the environment that jaxlib does not know ends it here,
with jaxlib's message, and not the workers of pytest-xdist, which would not show one.
"""

import functools
import sys

import jax

# False: XLA's older emitter of loops for CPU, which jaxlib 0.12 no longer has.
FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


@functools.cache
def knows(option: str) -> bool:
    """Whether this jaxlib has a compiler option. As one of `XLA_FLAGS`, an unknown one ends the process."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={option: False})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def quick_flags() -> str:
    """Returns what to add to `XLA_FLAGS` for quick compilation."""
    return f"--{FUSION_EMITTERS}=false" if knows(FUSION_EMITTERS) else ""


if __name__ == "__main__":
    if not quick_flags():
        print(f"jaxlib {jax.lib.__version__} has no --{FUSION_EMITTERS}: not passed", file=sys.stderr)
    print(quick_flags())
