"""Short texts as arrays of tokens, and the few labelled examples that a seed draws.

WordPiece by `tokenizers`, with the vocabulary that belongs to the weights (`models/encoder.py`). All texts
are cut or padded to one length. The network knows padding as token 0, at which its attention does not look.
"""

from pathlib import Path

import numpy as np

from benchmarks.data.arrays import Dataset, Split
from benchmarks.data.sources import DEFAULT_DATA_DIR, TEXTS, prepare
from benchmarks.errors import UsageError

PADDING = 0
LENGTHS = {"trec": 24, "sst2": 48}  # tokens; three of a hundred texts are longer


def load(name: str, vocabulary: Path, data_dir: Path = DEFAULT_DATA_DIR) -> Dataset:
    """Loads a prepared data set.

    Args:
        name: one of `TEXTS`.
        vocabulary: file of a tokenizer, `tokenizer.json`.
        data_dir: folder of prepared data sets.

    Returns:
        Tokens `[n, length]` in the place of images. What is held out for validation, where the data set has
        no such split, is taken of the training split with a fixed seed, the same for every run.
    """
    builder = prepare(name, data_dir)
    splits = {split: read(builder, split, vocabulary, LENGTHS[name]) for split in builder.info.splits}
    train, validation = splits["train"], splits.get("validation")
    if validation is None:
        order = np.random.default_rng(0).permutation(len(train.labels))
        held_out, kept = np.split(order, [TEXTS[name].num_validation])
        train, validation = take(train, kept), take(train, held_out)
    return Dataset(train, validation, splits["test"], builder.info.features["label"].num_classes)


def read(builder, split: str, vocabulary: Path, length: int) -> Split:
    """Reads a whole split."""
    source = builder.as_data_source(split)
    examples = source.__getitems__(range(len(source)))
    texts = [example["text"].decode() for example in examples]
    return Split(tokens(texts, vocabulary, length), np.array([e["label"] for e in examples], np.int32))


def tokens(texts: list[str], vocabulary: Path, length: int) -> np.ndarray:
    """Tokens of each text, between [CLS] and [SEP], cut or padded to a length.

    Raises:
        UsageError: if `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "texts are cut into tokens by the package tokenizers, which is not installed; "
            "write: pip install 'optax_sam[text]'"
        ) from error
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PADDING)
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], np.int32)


def take(split: Split, which: np.ndarray) -> Split:
    """Some examples of a split."""
    return Split(split.images[which], split.labels[which])


def few(train: Split, num_labels: int, seed: int) -> Split:
    """The labelled examples of a seed: a random choice, not balanced, as one would get by labelling them.

    Those of fewer labels are among those of more.
    """
    order = np.random.default_rng([1, seed]).permutation(len(train.labels))
    if num_labels > len(order):
        raise UsageError(f"{num_labels} labels are wanted, but there are {len(order)} training examples")
    return take(train, order[:num_labels])
