"""What flatness buys beyond accuracy: networks after rounding, noise and pruning, and their calibration.

    python -m benchmarks robustness

The results stand on the page of the equal budgets. The protocol, written before the numbers:

Networks. Those that `equal_budgets` reports, each row with the settings and epochs chosen there, with clean
labels and with 40 % noisy: SGD, tuned SGD, SAM, ASAM, and others as far as time allows; five seeds. They are
trained again, and their accuracy must be the one reported there to the last digit.

Changes, all on the 10,000 test images; nothing is chosen on them. Rounding of the weights of each layer, not
the biases, to 8, 4 and 3 bits: 2^b - 1 equidistant values around zero, up to the largest absolute value of
the array, or of the weights of each output. Each parameter times one plus 0.3 or 0.5 times a normal number,
or plus 0.3 times the root mean square of its array: the mean of three draws. Pruning of half, or four
fifths, of the weights, the smallest. Normal noise on images of deviation 0.1 and 0.2 where a white pixel is
1: three draws. Calibration error in 15 bins, as it is and at the temperature with the lowest validation loss.

Words. `DECIDING` was marked before the numbers were known. There each row is compared with SGD and with tuned
SGD, seed by seed, by the rule of the equal budgets, corrected over the table. The others have no verdict.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from benchmarks.data.arrays import Split
from benchmarks.experiment import Job, Tables
from benchmarks.experiments.budgets.differences import Difference, differences
from benchmarks.experiments.budgets.equal_budgets import EqualBudgets
from benchmarks.experiments.budgets.search import Settings
from benchmarks.experiments.budgets.tables import title
from benchmarks.experiments.networks import Network
from benchmarks.records import Record
from benchmarks.tables import spread, table, where
from benchmarks.training.program import TrainState

DRAWS = 3  # of random numbers, over which an accuracy is averaged
BINS = 15
TEMPERATURES = np.geomspace(0.25, 8, 121)
DECIDING: Mapping[str, tuple[str, bool]] = {  # field -> name, whether a higher value is better
    "bits_3_array": ("3 bits, one scale per array", True),
    "bits_3_channel": ("3 bits, one scale per output", True),
    "weight_noise_0.5": ("weights ± 50 %", True),
    "pruned_0.8": ("80 % of the weights pruned", True),
    "input_noise_0.2": ("noise of 0.2 on the images", True),
    "ece": ("calibration error", False),
    "ece_at_temperature": ("calibration error at the best temperature", False),
}
# Shown without a verdict; the records have more: 8 bits, and the smaller noise and pruning.
OTHERS = {"test_accuracy": "as trained", "bits_4_array": "4 bits, one scale per array"}
REFERENCES = ("sgd", "sgd_tuned")  # with which all rows are compared


@dataclasses.dataclass(frozen=True)
class Robustness(EqualBudgets):
    """The networks of some rows, changed after training."""

    name: str = "robustness"
    examined: tuple[str, ...] = (
        *("sgd", "sgd_tuned", "sam", "asam", "rwp", "random", "momentum_sam"),
        *("groups_16", "eigen_sam", "xsam", "info_sam"),
    )
    levels: tuple[float, ...] = (0.0, 0.4)  # of noisy labels

    def networks(self, at: Job, chosen: Settings) -> list[Job]:
        """The networks that are examined."""
        wanted = at["row"] in self.examined and at["label_noise"] in self.levels
        return super().networks(at, chosen) if wanted else []

    def tested(self, network: Network, state: TrainState) -> Record:
        """Accuracies of the network as it is and changed, and its calibration."""
        return super().tested(network, state) | changed(network, state) | calibration(network, state)

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """A table for each noise level."""
        made, found = where(frame, part="network"), {}
        for noise in self.levels:
            own = where(made, label_noise=noise)
            names = [name for name in self.rows if (own["row"] == name).any()]
            if names:
                found[f"robust_{title(noise)}"] = self.compared(own, names)
        return {"docs/evidence/equal_budgets.md": found} if found else {}

    def compared(self, own: pd.DataFrame, names: list[str]) -> str:
        """Mean ± standard error; in what decides with the differences from SGD and from tuned SGD that hold.

        They are corrected together over the table.
        """
        pairs = [
            (field, name, other)
            for field in DECIDING
            for other in REFERENCES
            for name in names
            if name != other and other in names and (name, other) != ("sgd", "sgd_tuned")
        ]
        found, lines = differences(own, pairs), []
        for field, label in {**OTHERS, **{field: label for field, (label, _) in DECIDING.items()}}.items():
            cells = []
            for name in names:
                held = (
                    f"{self.word(field, difference)} than {self.rows[other].label}"
                    for other in REFERENCES
                    if (difference := found.get((field, name, other))) and difference.word != "no difference"
                )
                cells.append(", ".join([spread(100 * where(own, row=name)[field]), *held]))
            lines.append([label, *cells])
        return table(["", *(self.rows[name].label for name in names)], lines)

    def word(self, field: str, difference: Difference) -> str:
        """Better or worse."""
        return "better" if DECIDING[field][1] == (difference.word == "more") else "worse"

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """No picture."""


def changed(network: Network, state: TrainState) -> Record:
    """Test accuracy after each change of the weights or of the images."""
    test = network.dataset.test
    found = {}
    for name, params in changes(state.params, network.config.seed):
        right = accuracy(network, state._replace(params=params), test)
        found.setdefault(name, []).append(right)
    for size in (0.1, 0.2):
        for draw in range(DRAWS):
            noise = jax.random.normal(jax.random.key(1000 + draw), test.images.shape)
            # Pixels from 0 to 1 are of this many standard deviations.
            images = test.images + size * 255 / network.dataset.deviation * np.asarray(noise)
            right = accuracy(network, state, test._replace(images=images))
            found.setdefault(f"input_noise_{size}", []).append(right)
    return {name: float(np.mean(values)) for name, values in found.items()}


def changes(params: optax.Params, seed: int) -> Iterator[tuple[str, optax.Params]]:
    """The name of each change and the changed parameters; some have several draws."""
    for bits in (8, 4, 3):
        for scales in ("array", "channel"):
            yield f"bits_{bits}_{scales}", kernels(params, lambda w: rounded(w, bits, scales == "channel"))  # noqa: B023
    for draw in range(DRAWS):
        key = jax.random.fold_in(jax.random.key(seed), 2000 + draw)
        vector = optax.tree.random_like(key, params, sampler=jax.random.normal)
        for size in (0.3, 0.5):
            yield (
                f"weight_noise_{size}",
                jax.tree.map(lambda w, n: w * (1 + size * n), params, vector),  # noqa: B023
            )
        rms = lambda w, n: w + 0.3 * jnp.sqrt(jnp.mean(w**2)) * n
        yield "array_noise_0.3", jax.tree.map(rms, params, vector)
    for share in (0.5, 0.8):
        yield f"pruned_{share}", pruned(params, share)


def kernels(params: optax.Params, change: Callable[[jax.Array], jax.Array]) -> optax.Params:
    """Changes the arrays with several axes; biases stay."""
    return jax.tree.map(lambda w: change(w) if w.ndim > 1 else w, params)


def rounded(w: jax.Array, bits: int, per_channel: bool) -> jax.Array:
    """Rounds to 2^bits − 1 equidistant values around zero, up to the largest |w| of array or output."""
    axes = tuple(range(w.ndim - 1)) if per_channel else None
    step = jnp.abs(w).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return jnp.round(w / jnp.where(step > 0, step, 1)) * step


def pruned(params: optax.Params, share: float) -> optax.Params:
    """Sets the share of smallest weights of all kernels together to zero."""
    sizes = jnp.concatenate([jnp.abs(w).ravel() for w in jax.tree.leaves(params) if w.ndim > 1])
    limit = jnp.quantile(sizes, share)
    return kernels(params, lambda w: jnp.where(jnp.abs(w) < limit, 0, w))


def logits(network: Network, state: TrainState, split: Split) -> np.ndarray:
    """Of a whole split."""
    parts = range(0, len(split.labels), 1000)
    predict = network.program.predict
    return np.concatenate([np.asarray(predict(state, split.images[i : i + 1000])) for i in parts])


def accuracy(network: Network, state: TrainState, split: Split) -> float:
    """Share of right predictions."""
    return float(np.mean(logits(network, state, split).argmax(-1) == split.labels))


def calibration(network: Network, state: TrainState) -> Record:
    """Expected calibration error on the test images, also at the temperature best for the validation loss."""
    validation, test = network.dataset.validation, network.dataset.test
    known, own = logits(network, state, validation), logits(network, state, test)
    temperature = min(TEMPERATURES, key=lambda t: negative_log_likelihood(known / t, validation.labels))
    return {
        "ece": calibration_error(own, test.labels),
        "ece_at_temperature": calibration_error(own / temperature, test.labels),
        "temperature": float(temperature),
        "negative_log_likelihood_at_temperature": negative_log_likelihood(own / temperature, test.labels),
    }


def log_probabilities(values: np.ndarray) -> np.ndarray:
    """Of logits."""
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def negative_log_likelihood(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over a split."""
    return float(-np.take_along_axis(log_probabilities(values), labels[:, None], -1).mean())


def calibration_error(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean difference of confidence and accuracy over bins of equal width, weighted by their sizes."""
    confidence = np.exp(log_probabilities(values).max(-1))
    right = values.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((right - confidence)[bins == i].sum()) for i in range(BINS)]
    return float(sum(gaps) / len(labels))
