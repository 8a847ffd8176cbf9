"""TFDS's own MNIST and Fashion-MNIST builders, but without TensorFlow.

TFDS uses TensorFlow there only to unpack and open the idx files. These subclasses use gzip and NumPy
instead; names, versions, features, URLs, checksums and the result are the same as in TFDS.
"""

import gzip

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import mnist

IDX_IMAGES_HEADER = 16  # bytes: magic number, number of images, rows, columns
IDX_LABELS_HEADER = 8  # bytes: magic number, number of labels


class ReadsIdxWithNumpy:
    """Replaces how TFDS's builders read the downloaded files."""

    def _split_generators(self, dl_manager):
        # TFDS extracts .gz files with TensorFlow: leave them compressed.
        dl_manager.download_and_extract = dl_manager.download
        return super()._split_generators(dl_manager)

    def _generate_examples(self, num_examples, data_path, label_path):
        with gzip.open(data_path) as data, gzip.open(label_path) as label:
            pixels = np.frombuffer(data.read(), np.uint8, offset=IDX_IMAGES_HEADER)
            labels = np.frombuffer(label.read(), np.uint8, offset=IDX_LABELS_HEADER)
        images = pixels.reshape(num_examples, *mnist.MNIST_IMAGE_SHAPE[:2])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            # TFDS encodes arrays with TensorFlow, PIL images without it.
            yield index, {"image": Image.fromarray(image), "label": int(label)}


# The registry of TFDS already holds builders of these names.
with tfds.core.registered.skip_registration():

    class MNIST(ReadsIdxWithNumpy, mnist.MNIST):
        """MNIST, as in TFDS."""

        name = "mnist"

    class FashionMNIST(ReadsIdxWithNumpy, mnist.FashionMNIST):
        """Fashion-MNIST, as in TFDS."""

        name = "fashion_mnist"
