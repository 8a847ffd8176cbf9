"""Checkpoints of a training run: its state, and the losses of the epoch so far. Only the last one is kept."""

from collections.abc import Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from benchmarks.training.program import TrainState


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """The checkpoints in the output folder of a run."""
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder / "checkpoints", options=options)


def save(
    checkpoints: ocp.CheckpointManager, step: int, state: TrainState, losses: Sequence[jax.Array | float]
) -> None:
    """Writes a checkpoint, atomically."""
    so_far = ocp.args.JsonSave([float(loss) for loss in losses])
    checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), losses=so_far))


def restore(
    checkpoints: ocp.CheckpointManager, like: TrainState
) -> tuple[int, TrainState | None, list[float]]:
    """Reads the last checkpoint: its step, state and losses; step 0 where there is none."""
    step = checkpoints.latest_step()
    if step is None:
        return 0, None, []
    of = ocp.args.Composite(state=ocp.args.StandardRestore(like), losses=ocp.args.JsonRestore())
    saved = checkpoints.restore(step, args=of)
    return step, saved.state, saved.losses
