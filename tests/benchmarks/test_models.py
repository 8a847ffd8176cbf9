"""The networks: sizes as published, precision, and what a second pass could spoil."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import train
from benchmarks.errors import UsageError
from benchmarks.models import table
from benchmarks.models.resnets import ResNet, WideResNet
from benchmarks.models.table import MODELS
from benchmarks.models.vision_transformer import VisionTransformer
from benchmarks.training.config import Config
from tests.benchmarks.training import assert_same, first_steps

# Small enough to compile in a second or two.
SMALL = {
    "mlp": MODELS["mlp"],
    "strided_cnn": MODELS["strided_cnn"],
    "resnet": functools.partial(ResNet, num_blocks=(1, 1), width=4),
    "wide_resnet": functools.partial(WideResNet, depth=10, width=1, dropout=0.3),
    "vit": functools.partial(
        VisionTransformer, patch_size=4, hidden_size=16, num_layers=1, num_heads=2, dropout=0.3
    ),
}


def num_params(name, image_shape, num_classes, **options):
    """Counts without computing anything."""
    make = lambda: table.build(name, image_shape, num_classes, options, rngs=nnx.Rngs(0))
    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "expected"),
    [
        ("resnet18", 10, {}, 11_173_962),  # kuangliu/pytorch-cifar, which the authors' codes use
        ("wide_resnet28_10", 10, {}, 36_479_194),
        ("vit_b16", 1000, {"image_size": 224}, 86_567_656),
        # Layer by layer; there is no published one.
        ("resnet6", 10, {}, 432 + 32 + (4_608 + 9_216 + 512 + 192) + (18_432 + 36_864 + 2_048 + 384) + 650),
    ],
)
def test_as_many_parameters_as_published(name, num_classes, options, expected):
    assert num_params(name, (32, 32, 3), num_classes, **options) == expected


def test_a_stem_with_a_stride_makes_all_later_images_smaller():
    def features(stride, images):
        make = functools.partial(ResNet, num_blocks=(0, 1), width=4, stem_stride=stride)
        network = make((8, 8, 3), 10, rngs=nnx.Rngs(0))
        return network.blocks[0](network.convolution(images))

    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    sizes = [jax.eval_shape(functools.partial(features, stride), images).shape for stride in (1, 2)]
    assert sizes == [(1, 4, 4, 8), (1, 2, 2, 8)]


def test_patches_must_fit():
    with pytest.raises(UsageError, match=r"8x8 pixels cannot be cut into patches of 16x16.*image_size 224"):
        num_params("vit_b16", (8, 8, 3), 10)


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="'resnet18' has no option depth; its options are: num_blocks"):
        num_params("resnet18", (8, 8, 3), 10, depth=3)
    with pytest.raises(UsageError, match="depth=27 is not 6n"):
        num_params("wide_resnet28_10", (8, 8, 3), 10, depth=27)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_products_but_those_of_the_head_are_computed_in_the_dtype(name, dtype):
    make = lambda: SMALL[name]((8, 8, 3), 10, dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(nnx.eval_shape(make))
    forward = lambda state, images: nnx.merge(graphdef, state, copy=True)(images)
    jaxpr = jax.make_jaxpr(forward)(state, jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32))
    *others, head = map(str, products(jaxpr.jaxpr))
    assert len(others) > 0
    assert set(others) == {dtype}
    assert head == str(jaxpr.out_avals[0].dtype) == "float32"
    variables = nnx.merge(graphdef, state)
    for leaf in jax.tree.leaves(nnx.state(variables, (nnx.Param, nnx.BatchStat))):
        assert leaf.dtype == jnp.float32


def products(jaxpr):
    """Types of the operands of all matrix products and convolutions, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.invars[0].aval.dtype
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from products(value.jaxpr)


@pytest.fixture(scope="module")
def run(dataset):
    """Trains a few steps: states, losses at w, losses at w+ε."""

    @functools.cache
    def train_steps(name, steps, **settings):
        return first_steps(Config(model=name, batch_size=50, **settings), dataset, steps)[:3]

    with pytest.MonkeyPatch.context() as patch:
        for name, model in SMALL.items():
            patch.setitem(MODELS, name, model)
        yield train_steps


def test_statistics_are_those_of_the_clean_pass(run, dataset):
    """A second pass at w+ε that changed them would show: ε is large."""
    sgd, _, _ = run("resnet", method="sgd", steps=1)
    sam, losses, ascent = run("resnet", method="sam", rho=0.5, steps=2)
    assert ascent[0] > losses[0] * 1.1
    assert len(jax.tree.leaves(sgd[0].rest)) == 2 * 6  # a mean and a variance of each norm
    assert_same(sgd[0].rest, sam[0].rest)
    changed = jax.tree.map(lambda one, other: not np.array_equal(one, other), sam[0].rest, sam[1].rest)
    assert all(jax.tree.leaves(changed))  # and the next step goes on from there
    # 0.9 of the old ones, which are 0 and 1, and 0.1 of those of the first features.
    batch = train.epoch_order(0, 0, 200)[:50]
    model = SMALL["resnet"]((8, 8, 1), 10, rngs=nnx.Rngs(jax.random.key(0)))
    features = model.convolution(dataset.train.images[batch])
    statistics = sam[0].rest["norm"]
    np.testing.assert_allclose(statistics["mean"][...], 0.1 * features.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(statistics["var"][...], 0.9 + 0.1 * features.var((0, 1, 2)), rtol=1e-5)


def test_both_passes_drop_the_same_units_and_the_next_step_others(run):
    states, losses, ascent = run("wide_resnet", method="sam", rho=0.0, steps=5)
    np.testing.assert_allclose(ascent, losses, rtol=1e-5)
    drawn = [np.concatenate([x.ravel() for x in counts(state)]) for state in states]
    assert np.array_equal(drawn[0], np.ones(3))  # by each block
    assert np.array_equal(drawn[4], 5 * np.ones(3))


def counts(state):
    """How often each random stream was drawn from."""
    found = nnx.to_flat_state(state.rest)
    return [np.asarray(value[...]) for path, value in found if path[-1] == "count"]


def test_bfloat16_trains_nearly_as_float32(run):
    _, full, _ = run("resnet", method="sgd", steps=1)
    states, half, ascent = run("resnet", method="sam", steps=1, dtype="bfloat16")
    np.testing.assert_allclose(half, full, rtol=0.02)
    assert half != full
    assert ascent > half
    floats = [x for x in jax.tree.leaves(states[0]) if np.issubdtype(x.dtype, np.floating)]
    assert {x.dtype for x in floats} == {np.dtype("float32")}  # momentum too
