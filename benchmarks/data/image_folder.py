"""A folder of images as a TensorFlow Datasets data set: `<folder>/train/<class>/*.jpg` or `.png`.

TFDS has an `ImageFolder` of its own, but it lists the files with TensorFlow and decodes them on every read.
Here they are decoded once, made square and written as array_record, like every other data set.

How the folders beside `train` are used:

- `val` and `test`, both with class folders: they are the validation and the test split.
- Only one of the two: it is the test split. (Validation images are then taken out of the training split.)
- Neither: every tenth image of each class in `train` is set aside as the test split.

A class folder may contain folders. `val` may have the layout of Tiny-ImageNet: the images in one folder, and
their classes in `val_annotations.txt`. A `test` folder without labels, as in Tiny-ImageNet, is not used.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from benchmarks.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The contents of a folder.

    Attributes:
        folder: the folder itself.
        classes: names in alphabetical order; the integer labels are their positions.
        splits: for each split, the files with their labels.
    """

    folder: Path
    classes: list[str]
    splits: dict[str, list[tuple[Path, int]]]

    def digest(self) -> str:
        """Changes when a file is added, removed, moved or replaced by one of another length."""
        content = [
            (split, str(path.relative_to(self.folder)), path.stat().st_size, label)
            for split, images in self.splits.items()
            for path, label in images
        ]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:8]


def list_images(folder: Path) -> Listing:
    """Finds the images and their labels.

    Args:
        folder: a folder that contains `train/<class>/`.

    Returns:
        Splits `train` and `test`, and `validation` if the folder has both `val` and `test`.

    Raises:
        UsageError: if there are no training images, or `val` or `test` have classes that `train` lacks.
    """
    train_folder = folder / "train"
    classes = (
        sorted(path.name for path in train_folder.iterdir() if path.is_dir()) if train_folder.is_dir() else []
    )
    train = labelled_images(train_folder, classes)
    if not train:
        raise UsageError(
            f"no images in {train_folder}/<class>/ (looked for {', '.join(SUFFIXES)}); "
            "name the folder that contains train/ with --image-folder"
        )
    others = [images for name in ("val", "test") if (images := labelled_images(folder / name, classes))]
    match others:
        case [validation, test]:
            return Listing(folder, classes, {"train": train, "validation": validation, "test": test})
        case [test]:
            return Listing(folder, classes, {"train": train, "test": test})
    test = [images[i] for images in by_class(train, len(classes)) for i in range(9, len(images), 10)]
    if not test:
        raise UsageError(
            f"{folder} has neither val/ nor test/ with class folders, and no class in train/ has ten "
            "images to set one aside for testing; add a folder test/<class>/"
        )
    return Listing(folder, classes, {"train": sorted(set(train) - set(test)), "test": test})


def labelled_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images of one split; an empty list if it has no labels."""
    annotations = folder / "val_annotations.txt"
    if annotations.is_file():
        named = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
        images = [(folder / "images" / file, name) for file, name in named]
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        images = [(path, path.relative_to(folder).parts[0]) for path in files if path.parent != folder]
    unknown = sorted({name for _, name in images} - set(classes))
    if unknown == ["images"]:  # no labels: all the images in one folder
        return []
    if unknown:
        raise UsageError(
            f"{folder} has classes that train/ lacks: {', '.join(unknown[:5])}; a network trained "
            "without them cannot be tested on them"
        )
    return [(path, classes.index(name)) for path, name in images]


def by_class(images: list[tuple[Path, int]], num_classes: int) -> list[list[tuple[Path, int]]]:
    """The images of each class."""
    groups = [[] for _ in range(num_classes)]
    for image in images:
        groups[image[1]].append(image)
    return groups


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageFolderConfig(tfds.core.BuilderConfig):
    """The folder, and the size to which its images are scaled."""

    listing: Listing
    image_size: int


# TFDS's own builder has this name.
with tfds.core.registered.skip_registration():

    class ImageFolder(tfds.core.GeneratorBasedBuilder):
        """RGB images of one size: the shorter side is scaled to it, the longer one cropped at the centre."""

        name = "image_folder"
        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, folder: Path, image_size: int, **kwargs):
            listing = list_images(folder)
            name = f"{folder.name}-{image_size}-{listing.digest()}"
            config = ImageFolderConfig(name=name, listing=listing, image_size=image_size)
            super().__init__(config=config, **kwargs)

        def _info(self):
            size = self.builder_config.image_size
            return self.dataset_info_from_configs(
                description="Images in class folders.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(size, size, 3), dtype=np.uint8),
                        "label": tfds.features.ClassLabel(names=self.builder_config.listing.classes),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing to download
            splits = self.builder_config.listing.splits
            return {split: self._generate_examples(images) for split, images in splits.items()}

        def _generate_examples(self, images):
            size = self.builder_config.image_size
            for index, (path, label) in enumerate(images):
                with Image.open(path) as image:
                    square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
                yield index, {"image": square, "label": label}
