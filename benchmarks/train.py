"""Trains one network with one method. The whole loop is here, to be read from top to bottom.

    python -m benchmarks.train --method sam --rho 0.2 --label-noise 0.4
    python -m benchmarks.train --devices all --parallel fsdp
    python -m benchmarks.train --config benchmarks/configs/xsam_cifar100_resnet18.toml --seed 1
    python -m benchmarks.train --help

A run is a function of its configuration and seed: the batches and their augmentation depend only on the seed
and the step. So a run that is stopped at any moment and resumed ends bit for bit like one that was not
stopped. (If it is resumed on another number of devices, the numbers agree up to rounding.) On Ctrl-C and
SIGTERM the current step is finished and a checkpoint is saved.

The network, the optimizer and the compiled step are built in `training/program.py`.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.data import arrays
from benchmarks.data.label_noise import add_noise
from benchmarks.errors import DivergenceError, UsageError
from benchmarks.training.checkpoints import open_checkpoints, restore, save
from benchmarks.training.config import Config, parse
from benchmarks.training.interrupt import ask_for_interrupt
from benchmarks.training.log import Log
from benchmarks.training.program import Program, TrainState, make_program, recorded

# Independent streams of random numbers, each derived from the run's seed.
NOISE_STREAM, ORDER_STREAM, AUGMENT_STREAM = 1, 2, 3


def run(config: Config) -> dict[str, Any]:
    """Trains, with progress bar, metrics and checkpoints.

    Args:
        config: the run.

    Returns:
        The last record of `metrics.jsonl`: accuracies and losses at the end of the last epoch.

    Raises:
        UsageError: if the run cannot start, or diverges.
    """
    rho = () if config.rho is None else (config.rho,)
    name = (config.dataset, config.model, config.method, *rho, config.label_noise, config.seed)
    folder = (config.output or Path("runs") / "-".join(map(str, name))).absolute()
    log = Log(folder, config)
    log.check_same_run(config.resume)

    dataset = load_dataset(config)
    program = make_program(config, dataset)
    train = add_label_noise(dataset.train, config, dataset.num_classes)

    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoints(folder) as checkpoints, log:
        first_step, state, losses = restore(checkpoints, program.like)
        if first_step == 0:
            state = program.init(config.seed)
        log.start |= {"devices": program.layout.num_devices, "parallel": config.parallel}
        log.begin(first_step)

        began = time.perf_counter()
        bar = tqdm(total=program.num_steps, initial=first_step, unit="step", desc=config.method)
        with bar, ask_for_interrupt() as interrupted:
            steps = train_steps(program, train, state, config.seed, first_step)
            for step, state, loss in steps:
                losses.append(loss)
                bar.update()
                if config.monitor is not None and (step - 1) % config.monitor == 0:
                    values = recorded(state)
                    log.write({"event": "monitor", "step": step} | values)
                    bar.set_postfix(values, refresh=False)
                epoch, inside = divmod(step, program.steps_per_epoch)
                if not inside:
                    check_finite(losses, step, config)
                    record = {
                        "event": "epoch",
                        "epoch": epoch,
                        "step": step,
                        "train_loss": float(np.mean(np.asarray(losses, np.float32))),
                        "validation": evaluate(program, state, dataset.validation),
                        "seconds": round(time.perf_counter() - began, 3),
                    }
                    log.write(record)
                    bar.set_postfix(
                        loss=record["train_loss"], validation=record["validation"]["accuracy"], refresh=False
                    )
                    losses = []
                    if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
                        save(checkpoints, step, state, losses)
                if interrupted():
                    bar.write(f"saving step {step}; Ctrl-C again does not wait")
                    check_finite(losses, step, config)
                    if checkpoints.latest_step() != step:
                        save(checkpoints, step, state, losses)
                    raise KeyboardInterrupt

        end = {
            "event": "end",
            "step": program.num_steps,
            "seed": config.seed,
            "validation": evaluate(program, state, dataset.validation),
            "test": evaluate(program, state, dataset.test),
            "seconds": round(time.perf_counter() - began, 3),
        }
        log.write(end)
    return end


def train_steps(
    program: Program, train: arrays.Split, state: TrainState, seed: int, first_step: int = 0
) -> Iterator[tuple[int, TrainState, jax.Array]]:
    """Trains to the end of the run.

    Args:
        program: from `make_program`.
        train: training data, on the device.
        state: state after `first_step` steps. Its buffers are donated.
        seed: of the run.
        first_step: steps already made.

    Yields:
        After every step: number of steps made, state, loss of the batch. The state is valid only
        until the next step. Nothing waits for the device, unless several devices are simulated.
    """
    order, train = None, program.layout.everywhere(train)
    for step in range(first_step, program.num_steps):
        epoch, index = divmod(step, program.steps_per_epoch)
        if order is None or index == 0:
            order = program.layout.everywhere(epoch_order(seed, epoch, len(train.labels)))
            key = program.layout.everywhere(augment_key(seed, epoch))
        refresh = program.interval is not None and step % program.interval == 0
        record = program.record_every is not None and step % program.record_every == 0
        state, loss = program.step(state, train, order, index, key, refresh=refresh, record=record)
        yield step + 1, state, loss


@partial(jax.jit, static_argnums=2)
def epoch_order(seed: int, epoch: int, num_train: int) -> jax.Array:
    """Order of the training images in an epoch."""
    key = jax.random.fold_in(jax.random.key(seed), ORDER_STREAM)
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_train)


@jax.jit
def augment_key(seed: int, epoch: int) -> jax.Array:
    """Random key of an epoch's augmentation."""
    key = jax.random.fold_in(jax.random.key(seed), AUGMENT_STREAM)
    return jax.random.fold_in(key, epoch)


def evaluate(program: Program, state: TrainState, split: arrays.Split) -> dict[str, float | None]:
    """Mean loss and accuracy on a whole split; both None if it is empty."""
    if not len(split.labels):
        return {"loss": None, "accuracy": None}
    total_loss, total_right = 0.0, 0
    for start in range(0, len(split.labels), 1000):
        chunk = slice(start, start + 1000)
        loss, right = program.evaluate(state, split.images[chunk], split.labels[chunk])
        total_loss += float(loss)
        total_right += int(right)
    return {"loss": total_loss / len(split.labels), "accuracy": total_right / len(split.labels)}


def check_finite(losses: Sequence[jax.Array | float], last_step: int, config: Config) -> None:
    """Stops a run that has diverged.

    Args:
        losses: of the latest steps.
        last_step: number of the last of them.
        config: of the run.

    Raises:
        DivergenceError: if one of the losses is not finite.
    """
    finite = np.isfinite(np.asarray(losses, np.float32))
    if not finite.all():
        step = last_step - len(losses) + 1 + int(np.argmin(finite))
        raise DivergenceError(
            f"diverged: the training loss is not finite at step {step} "
            f"(method {config.method}, seed {config.seed}). "
            "Try a smaller --learning-rate (or --rho), in a new --output folder."
        )


def load_dataset(config: Config) -> arrays.Dataset:
    """Loads the data of a run, after preparing it if needed."""
    return arrays.load(
        config.dataset,
        config.data_dir,
        download_dir=config.download_dir,
        download=config.download,
        train_size=config.train_size,
        validation_size=config.validation_size,
    )


def add_label_noise(train: arrays.Split, config: Config, num_classes: int) -> arrays.Split:
    """Puts the training data on the device, with the noisy labels of this run's seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), NOISE_STREAM)
    labels = add_noise(train.labels, key, config.label_noise, num_classes)
    return arrays.Split(jnp.asarray(train.images), labels)


def main() -> None:
    """The command line."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS would recommend OpenCV
    try:
        end = run(parse(description=__doc__))
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume continues from the last checkpoint")
        sys.exit(130)
    if end["validation"]["accuracy"] is not None:
        print(f"validation accuracy {end['validation']['accuracy']:.4f}")
    print(f"test accuracy       {end['test']['accuracy']:.4f}")


if __name__ == "__main__":
    main()
