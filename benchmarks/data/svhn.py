"""TFDS's own builder of the cropped Street View House Numbers, but without TensorFlow.

TFDS uses TensorFlow there only to open the .mat files and to encode the images. This subclass uses SciPy and
PIL instead; name, version, features, URLs and checksums are those of TFDS. The extra split is left out:
531,131 further images, 1.3 GB, on which the papers on sharpness do not train.
"""

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder as original

FILES = ("train_32x32.mat", "test_32x32.mat")

# The registry of TFDS already holds a builder of this name.
with tfds.core.registered.skip_registration():

    class SVHNCropped(original.Builder):
        """SVHN, cropped to single digits, as in TFDS but without its extra split."""

        name = "svhn_cropped"
        url_infos = original.Builder.url_infos  # TFDS's checksums, which it looks for beside the class

        def _split_generators(self, dl_manager):
            train, test = dl_manager.download([original.URL + file for file in FILES])
            return {
                "train": self._generate_examples("train_", train),
                "test": self._generate_examples("test_", test),
            }

        def _generate_examples(self, split_prefix, filepath):
            content = scipy.io.loadmat(filepath)
            images = np.moveaxis(content["X"], -1, 0)
            labels = content["y"].ravel() % 10  # the digit 0 is stored as 10
            for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                # TFDS encodes arrays with TensorFlow, PIL images without it.
                example = {"image": Image.fromarray(np.ascontiguousarray(image)), "label": label}
                yield index, example | {"id": f"{split_prefix}{index:06d}"}
