"""TensorFlow Datasets builder for the digits that scikit-learn ships: real data, no download.

1,797 images of 8x8 pixels, values 0 to 16. scikit-learn has no official split, so a fixed
stratified one is made here, once for everybody: 1,297 training and 500 test images.
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NUM_TEST = 500


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's `load_digits`, prepared like every other TFDS data set."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Stratified split, 1,297 training and 500 test images."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="8x8 grey-level images of handwritten digits, pixel values 0 to 16.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        labels = load_digits().target
        train, test = train_test_split(
            np.arange(len(labels)), test_size=NUM_TEST, stratify=labels, random_state=0
        )
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices):
        digits = load_digits()
        for index in indices:
            # TFDS encodes arrays with TensorFlow, PIL images without it.
            image = Image.fromarray(digits.images[index].astype(np.uint8))
            yield int(index), {"image": image, "label": int(digits.target[index])}
