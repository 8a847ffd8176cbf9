"""Worker of `test_parallel.py`: trains on simulated devices.

python -m tests.benchmarks.parallel_worker DATA_DIR EMPTY_DIR
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import train
from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.models import table
from benchmarks.training.checkpoints import restore
from benchmarks.training.config import Config
from benchmarks.training.parallel import LAYOUTS
from tests.benchmarks.networks import Regularised, Tiny
from tests.devices.layouts import max_difference
from tests.devices.processes import reported

NUM_DEVICES, NUM_STEPS, BATCH_SIZE = 4, 5, 40
METHODS = {"sam": {}, "eigen_sam": {"num_iters": 1}}  # with options
ELSEWHERE = {"data": (2, "fsdp"), "fsdp": (2, "fsdp"), "pmap": (1, "data")}

make_program = train.make_program
programs = {}


def shared_program(config, dataset):
    """Instead of `make_program`: compiles what several runs share once."""
    key = config.method, config.model, config.devices, config.parallel
    if key not in programs:
        programs[key] = make_program(config, dataset)
    return programs[key]


def on_devices(config, layout, devices="all"):
    return dataclasses.replace(config, devices=devices, parallel=layout)


def few_steps(config, dataset):
    """Returns the program, the last state, and states and losses of all steps on the host."""
    program = train.make_program(config, dataset)
    noisy = train.add_label_noise(dataset.train, config, dataset.num_classes)
    steps = train.train_steps(program, noisy, program.init(config.seed), config.seed)
    states, losses = [], []
    for _ in range(NUM_STEPS):
        _, state, loss = next(steps)
        states.append(as_numpy(state))
        losses.append(float(loss))
    return program, state, states, losses


def as_numpy(state):
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    # A copy: the next step gives the buffer away.
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), state)


def check_numbers(config, dataset):
    for method, options in METHODS.items():
        config = dataclasses.replace(config, method=method, options=options)
        _, _, expected, expected_losses = few_steps(config, dataset)
        for layout in LAYOUTS:
            with reported("numbers", method, layout) as report:
                program, last, states, losses = few_steps(on_devices(config, layout), dataset)
                sharded = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(last)]
                places = zip(jax.tree.leaves(last), jax.tree.leaves(program.like), strict=True)
                report(
                    moved=max_difference(expected[-1].params, expected[0].params),
                    difference=max(map(max_difference, states, expected)),
                    loss_difference=max_difference(losses, expected_losses),
                    sharded=sum(sharded),
                    stayed=all(x.sharding.is_equivalent_to(like.sharding, x.ndim) for x, like in places),
                )


def check_program(config, dataset):
    """Looks for the activations of the hidden layers in the compiled step."""
    order = np.arange(len(dataset.train.labels))
    for layout in ("data", "fsdp"):
        with reported("program", layout) as report:
            program = train.make_program(on_devices(config, layout), dataset)
            step = program.step.__wrapped__
            everywhere = program.layout.everywhere((dataset.train, order))
            key = train.augment_key(0, 0)
            text = step.lower(program.like, *everywhere, 0, key, refresh=False).compile().as_text()
            report(batch_sizes=sorted(map(int, set(re.findall(r"f32\[(\d+),256\]\{\S+ maximum\(", text)))))


def check_resume(config, folder):
    for layout, (devices, parallel) in ELSEWHERE.items():
        whole = on_devices(config, layout)
        whole = dataclasses.replace(whole, epochs=4, checkpoint_every=1, output=folder / layout / "whole")
        train.run(whole)
        for name, place in (("same", whole), ("other", on_devices(whole, parallel, devices))):
            with reported("resume", layout, name) as report:
                stopped = dataclasses.replace(whole, output=folder / layout / name)
                stop_in_third_epoch(stopped)
                train.run(dataclasses.replace(place, output=stopped.output, resume=True))
                lines = (stopped.output / "metrics.jsonl").read_text().splitlines()
                resume = next(filter(lambda x: x["event"] == "resume", map(json.loads, lines)))
                report(
                    step=resume["step"],
                    devices=resume["devices"],
                    difference=max_difference(last_checkpoint(stopped), last_checkpoint(whole)),
                )


def stop_in_third_epoch(config):
    evaluate, calls = train.evaluate, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*args)

    train.evaluate = interrupted
    try:
        train.run(config)
    except KeyboardInterrupt:
        pass
    finally:
        train.evaluate = evaluate


def last_checkpoint(config):
    like = train.make_program(config, None).like  # the program is there already
    with ocp.CheckpointManager(config.output / "checkpoints") as checkpoints:
        return as_numpy(restore(checkpoints, like)[1])


def check_regularised(config, dataset):
    _, _, expected, _ = few_steps(config, dataset)
    for layout in LAYOUTS:
        with reported("regularised", layout) as report:
            _, _, states, losses = few_steps(on_devices(config, layout), dataset)
            report(
                finite=bool(np.isfinite(losses).all()), difference=max(map(max_difference, states, expected))
            )


def check_errors(config, dataset):
    wrong = {
        "batch": {"batch_size": 102},
        "small batch": {"batch_size": 2},
        "too many": {"devices": 5},
        "none": {"devices": 0},
    }
    for name, settings in wrong.items():
        with reported("error", name) as report:
            try:
                make_program(dataclasses.replace(on_devices(config, "data"), **settings), dataset)
            except UsageError as error:
                report(message=str(error))


def main():
    data_dir, folder = map(Path, sys.argv[1:])
    jax.config.update("jax_enable_x64", False)  # as users train
    train.make_program = shared_program
    table.MODELS |= {"tiny": Tiny, "regularised": Regularised}
    config = Config(
        batch_size=BATCH_SIZE,
        train_size=200,
        interval=3,
        label_noise=0.2,
        augment="crop_flip_cutout",
        data_dir=data_dir,
    )
    dataset = arrays.load(config.dataset, data_dir, train_size=config.train_size)
    check_numbers(config, dataset)
    check_program(config, dataset)
    eigen_sam = dataclasses.replace(config, method="eigen_sam", options=METHODS["eigen_sam"])
    check_resume(dataclasses.replace(eigen_sam, model="tiny"), folder)
    check_regularised(dataclasses.replace(config, model="regularised"), dataset)
    check_errors(config, dataset)


if __name__ == "__main__":
    main()
