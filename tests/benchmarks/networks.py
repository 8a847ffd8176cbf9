"""Networks smaller than those of `benchmarks/models/`, which compile faster."""

from flax import nnx


class Tiny(nnx.Module):
    """One linear layer, for what does not depend on the network."""

    def __init__(self, image_shape, num_classes, *, rngs):
        self.only = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.only(images.reshape(len(images), -1))


class Regularised(nnx.Module):
    """A model with everything that a second pass could spoil."""

    def __init__(self, image_shape, num_classes, *, rngs):
        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.first(images.reshape(len(images), -1))))
        return self.second(self.dropout(x))


USUAL = {"dataset": "digits", "train_size": 100, "model": "tiny", "batch_size": 25, "learning_rate": 0.05}
# Four steps an epoch.
RECIPES = {"digits": USUAL, "fashion_mnist": USUAL}
