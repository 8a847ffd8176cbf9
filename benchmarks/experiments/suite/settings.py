"""What all rows of an accuracy suite share: data, network and recipe. One entry for each suite.

`suite` is the first suite, with noisy labels: `rows.py`. The others ask whether anything
gains on clean labels where networks are as in the papers: a residual network with BatchNorm on crops and
flips of CIFAR-10, and a transformer with AdamW. Their protocol, written before any of their test numbers
was seen:

- There are 8,660 images of CIFAR-10. The 7,728 of the training split are cut once, with a fixed seed, into
  2,500 for training, 1,500 for validation and 3,728 that join the 932 of the test split: 4,660 test images,
  on which the standard error of an accuracy is 0.7 points. So rows are compared seed by seed. Training
  images are few, because a CPU has to pass over them often enough to fit them. The transformer has 5,000
  training, 10,000 validation and 10,000 test images of Fashion-MNIST, without augmentation.
- "SGD" and "AdamW" have the usual recipe: nothing is chosen. "Tuned" tries three weight decays and then
  another learning rate with the best of these; "tuned, twice the epochs" trains longer with the settings
  chosen there, and takes as many gradients as SAM.
- A method tries three radii, with the usual recipe. "SAM on tuned SGD" tries three radii with the recipe
  that was chosen for tuned SGD, so that the two differ by SAM alone.
- Trials are compared by accuracy on the validation images after the last epoch, with one seed that the
  reported networks do not use. Three seeds are reported; only these networks see the test images, once,
  after the last epoch.
- Rows come in the order of their importance, and are trained in this order.

Sizes are those that one CPU core trains in half a minute, found with validation images and SGD alone.

These trainings turned out too short to fit their data: 76 and 88 % of the training images are right in the
end. So the same questions are asked again where SGD fits: `cifar_resnet_fitted` passes 100 times over 1,000
images (98 % right; 6,160 test images, which cuts their standard error to 0.6 points) and
`fashion_vit_fitted` 40 times over 2,000 (99.8 %), both in batches of 64. There the best radius had been the
smallest and the best weight decay the largest that was tried, so the three radii are further apart, the
decays are four and reach further, and the other learning rate of the residual network is half the usual one.
When three seeds were known, the rows of the optimizer, SAM and SAM on the tuned optimizer were given five.

When all these were known, rows were added for other methods on the tuned optimizer, with the radii of the
method: only there does a method differ from the tuned optimizer by its own step alone. They, too, were given
five seeds when three were known. Last of all came Momentum-SAM, whose step is one gradient, for twice the
epochs with the settings chosen before: at SAM's cost, like the optimizer for twice the epochs. And the
tuned optimizer was tried with larger learning rates than before, to see how far from the best it was: 0.2
and 0.4 for SGD, 0.004 for AdamW, the best of these with five seeds.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.experiments.suite.rows import BATCH_SIZE, ROWS, Row, part
from benchmarks.experiments.suite.suite import CleanLabels, NoisyLabels, SuiteTimes
from benchmarks.methods import METHODS, radii

FIVE = (0, 1, 2, 3, 4)
FIRST_ROWS = ("sgd", "sgd_tuned", "sam", "sgd_long", "sam_tuned")
ON_TUNED = ("asam", "info_sam", "eigen_sam", "xsam", "momentum_sam")


def rows_on_clean_labels(
    optimizer: str,
    epochs: int,
    steps_per_epoch: int,
    decays: tuple[float, ...],
    learning_rate: float,
    *,
    factors: tuple[float, ...] = (0.5, 1, 2),
    batch_size: int = BATCH_SIZE,
    larger_learning_rates: tuple[float, ...] = (),
) -> dict[str, Row]:
    """The rows of the suites with clean labels.

    Args:
        optimizer: name of the base optimizer.
        epochs: of all rows but those that are trained twice as long.
        steps_per_epoch: the steps from one search of XSAM to the next.
        decays: weight decays that the tuned optimizer tries.
        learning_rate: another one than usual that it tries with the best of these.
        factors: the radii that are tried, in multiples of the radius in the table of methods.
        batch_size: images of a step.
        larger_learning_rates: those that a row of its own tries for the tuned optimizer.
    """
    eighth = f"part_{batch_size // 8}"
    decay_trials = [{"weight_decay": decay} for decay in decays]
    others = {
        name: Row(name, METHODS[name].label, radii(METHODS[name].options, *factors))
        for name in ("sam", "xsam", "momentum_sam", "asam", "look_sam", "info_sam", "eigen_sam", "xsam3")
    }
    for name, interval in (("xsam", steps_per_epoch), ("xsam3", steps_per_epoch), ("look_sam", 5)):
        others[name] = others[name]._replace(interval=interval)
    sam = others.pop("sam")
    # A small part of the batch wants a larger radius.
    small = {
        "first": radii(METHODS["sam"].options, *(2 * factor for factor in factors)),
        "label": f"SAM, ascent on {batch_size // 8} of {batch_size}",
        "fixed": part(batch_size // 8),
    }
    rows = {
        "sgd": Row("sgd", optimizer),
        "sgd_tuned": Row("sgd", f"{optimizer}, tuned", decay_trials, {"learning_rate": learning_rate}),
        "sam": sam,
        "sgd_long": Row("sgd", f"{optimizer}, tuned, twice the epochs", starts_from="sgd_tuned"),
        "sam_tuned": sam._replace(label=f"SAM, on tuned {optimizer}", starts_from="sgd_tuned"),
        eighth: sam._replace(**small),
        **others,
    }
    for name in rows:
        if name not in FIRST_ROWS:
            rows[name] = rows[name]._replace(num_seeds=3)
    for name in (*ON_TUNED, eighth):
        label = f"{rows[name].label}, on tuned {optimizer}"
        rows[f"{name}_tuned"] = rows[name]._replace(label=label, starts_from="sgd_tuned", num_seeds=5)
    rows["momentum_sam_long"] = Row(
        *("momentum_sam", f"Momentum-SAM, on tuned {optimizer}, twice the epochs"),
        starts_from="momentum_sam_tuned",
    )
    if larger_learning_rates:
        rows["sgd_faster"] = Row(
            *("sgd", f"{optimizer}, tuned, larger learning rate"),
            [{"learning_rate": rate} for rate in larger_learning_rates],
            starts_from="sgd_tuned",
        )
    return {
        name: row._replace(epochs=2 * epochs if name.endswith("_long") else epochs)
        for name, row in rows.items()
    }


CIFAR: Mapping[str, Any] = {
    "dataset": "cifar10_subset",
    "train_size": 2500,
    "validation_size": 5228,
    "augment": "crop_flip",
    "model": "resnet6",
    "batch_size": BATCH_SIZE,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
}
VIT: Mapping[str, Any] = {
    "dataset": "fashion_mnist",
    "model": "tiny_vit",
    "batch_size": BATCH_SIZE,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
}
# Strided CNN, noisy labels.
FASHION = NoisyLabels(
    "suite",
    FIVE,
    ("fashion_mnist",),
    config={
        "dataset": "fashion_mnist",
        "train_size": 10_000,
        "model": "strided_cnn",
        "batch_size": BATCH_SIZE,
        "learning_rate": 0.05,
    },
    rows=ROWS,
    noise=(0.0, 0.2, 0.4, 0.6),
    sharpness=True,
)
SUITES = (
    FASHION,
    SuiteTimes("suite_time", datasets=FASHION.datasets, is_alone=True, suite=FASHION),
    CleanLabels(
        "suite_cifar_resnet",
        (0, 1, 2),
        ("cifar10_subset",),
        config=CIFAR,
        rows=rows_on_clean_labels("SGD", 50, 2500 // BATCH_SIZE, (5e-4, 2e-3, 5e-3), 0.2),
        more_test=3728,
    ),
    CleanLabels(
        "suite_fashion_vit",
        (0, 1, 2),
        ("fashion_mnist",),
        config={**VIT, "train_size": 5000},
        rows=rows_on_clean_labels("AdamW", 15, 5000 // BATCH_SIZE, (0.1, 1.0, 3.0), 2e-3),
    ),
    # Until they fit their images.
    CleanLabels(
        "suite_cifar_resnet_fitted",
        FIVE,
        ("cifar10_subset",),
        config={**CIFAR, "train_size": 1000, "validation_size": 6728, "batch_size": 64},
        rows=rows_on_clean_labels(
            *("SGD", 100, 1000 // 64, (5e-4, 2e-3, 5e-3, 1e-2), 0.05),
            factors=(0.3, 1, 3),
            batch_size=64,
            larger_learning_rates=(0.2, 0.4),
        ),
        more_test=5228,
    ),
    CleanLabels(
        "suite_fashion_vit_fitted",
        FIVE,
        ("fashion_mnist",),
        config={**VIT, "train_size": 2000, "batch_size": 64},
        rows=rows_on_clean_labels(
            *("AdamW", 40, 2000 // 64, (0.1, 1.0, 3.0, 10.0), 2e-3),
            factors=(0.3, 1, 3),
            batch_size=64,
            larger_learning_rates=(4e-3,),
        ),
    ),
    # The bundled digits need no files and a few seconds: to try the programs.
    CleanLabels(
        "suite_digits",
        (0, 1),
        ("digits",),
        config={"dataset": "digits", "train_size": 300, "model": "mlp", "batch_size": 50},
        rows={
            name: row
            for name, row in rows_on_clean_labels("SGD", 1, 6, (5e-4, 2e-3, 5e-3), 0.2).items()
            if name in FIRST_ROWS
        },
    ),
)
