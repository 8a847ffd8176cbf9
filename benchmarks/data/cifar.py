"""TFDS's own CIFAR-100 builder, but without TensorFlow, and a part of CIFAR-10.

TFDS uses TensorFlow there only to unpack the archive and to encode the images. This subclass uses tarfile,
NumPy and PIL instead; name, version, features, URLs, checksums and the result are the same as in TFDS.
"""

import hashlib
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.image_classification import cifar

IMAGE_SHAPE = (32, 32, 3)
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class ReadsArchiveWithNumpy:
    """Replaces how TFDS's builders read the downloaded archive."""

    def _split_generators(self, dl_manager):
        content = self._cifar_info  # from TFDS: the contents of each file
        with tarfile.open(dl_manager.download(content.url)) as archive:

            def read(file):
                return archive.extractfile(content.prefix + file).read()

            for key, file in zip(content.label_keys, content.label_files, strict=True):
                self.info.features[key].names = read(file).decode().split()
            train = b"".join(map(read, content.train_files))
            test = b"".join(map(read, content.test_files))
        return {
            "train": self._generate_examples("train_", train),
            "test": self._generate_examples("test_", test),
        }

    def _generate_examples(self, split_prefix, records):
        keys = self._cifar_info.label_keys
        # A record: one byte for each label, then the red, green and blue pixels.
        records = np.frombuffer(records, np.uint8).reshape(-1, len(keys) + np.prod(IMAGE_SHAPE))
        labels, pixels = np.split(records, [len(keys)], axis=1)
        images = pixels.reshape(-1, 3, *IMAGE_SHAPE[:2]).transpose(0, 2, 3, 1)
        for index, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
            # TFDS encodes arrays with TensorFlow, PIL images without it.
            example = {"id": f"{split_prefix}{index:05d}", "image": Image.fromarray(image)}
            yield index, example | dict(zip(keys, label, strict=True))


# The registry of TFDS already holds a builder of this name.
with tfds.core.registered.skip_registration():

    class CIFAR100(ReadsArchiveWithNumpy, cifar.Cifar100):
        """CIFAR-100, as in TFDS."""

        name = "cifar100"
        url_infos = cifar.Cifar100.url_infos  # TFDS's checksums, which it looks for beside the class


class CIFAR10Subset(tfds.core.GeneratorBasedBuilder):
    """A part of CIFAR-10 in one .npz file: a data set of its own."""

    name = "cifar10_subset"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "7,728 training and 932 test images."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "cifar10_subset.npz with the arrays x_train, y_train, x_test, y_test"
    FILE = "cifar10_subset.npz"
    SHA256 = "848b322901e9c09c838b77e87be584884986d2f67b4ba4d5073fdfc0c8dc32ed"

    def _info(self):
        return self.dataset_info_from_configs(
            description="7,728 training and 932 test images of CIFAR-10, classes about equal.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=IMAGE_SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=CIFAR10_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.manual_dir / self.FILE
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.SHA256:
            raise NonMatchingChecksumError(f"{path} has wrong checksum {digest}; expected {self.SHA256}")
        with np.load(path) as arrays:
            return {
                split: self._generate_examples(arrays[f"x_{split}"], arrays[f"y_{split}"])
                for split in ("train", "test")
            }

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield index, {"image": Image.fromarray(image), "label": label}
