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

from benchmarks import train
from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.models import table
from benchmarks.training.config import Config
from benchmarks.training.parallel import LAYOUTS
from tests.benchmarks.networks import Regularised, Tiny
from tests.benchmarks.training import (
    first_steps,
    last_checkpoint,
    make_program,
    shared_program,
    stopped_in_epoch,
)
from tests.devices.layouts import max_difference
from tests.devices.processes import reported

NUM_DEVICES, NUM_STEPS, BATCH_SIZE = 4, 5, 40
METHODS = {"sam": {}, "eigen_sam": {"num_iters": 1}}  # with options
ELSEWHERE = {"data": (2, "fsdp"), "fsdp": (2, "fsdp"), "pmap": (1, "data")}


def on_devices(config, layout, devices="all"):
    return dataclasses.replace(config, devices=devices, parallel=layout)


def check_numbers(config, dataset):
    for method, options in METHODS.items():
        config = dataclasses.replace(config, method=method, options=options)
        expected = first_steps(config, dataset, NUM_STEPS)
        for layout in LAYOUTS:
            with reported("numbers", method, layout) as report:
                program = train.make_program(on_devices(config, layout), dataset)
                found = first_steps(on_devices(config, layout), dataset, NUM_STEPS)
                places = zip(found.shardings, jax.tree.leaves(program.like), strict=True)
                report(
                    moved=max_difference(expected.states[-1].params, expected.states[0].params),
                    difference=max(map(max_difference, found.states, expected.states)),
                    loss_difference=max_difference(found.losses, expected.losses),
                    sharded=sum(not place.is_fully_replicated for place in found.shardings),
                    stayed=all(place.is_equivalent_to(like.sharding, like.ndim) for place, like in places),
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
                with stopped_in_epoch(3):
                    train.run(stopped)
                train.run(dataclasses.replace(place, output=stopped.output, resume=True))
                lines = (stopped.output / "metrics.jsonl").read_text().splitlines()
                resume = next(filter(lambda x: x["event"] == "resume", map(json.loads, lines)))
                report(
                    step=resume["step"],
                    devices=resume["devices"],
                    difference=max_difference(last_checkpoint(stopped)[1], last_checkpoint(whole)[1]),
                )


def check_regularised(config, dataset):
    expected = first_steps(config, dataset, NUM_STEPS)
    for layout in LAYOUTS:
        with reported("regularised", layout) as report:
            found = first_steps(on_devices(config, layout), dataset, NUM_STEPS)
            report(
                finite=bool(np.isfinite(found.losses).all()),
                difference=max(map(max_difference, found.states, expected.states)),
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
