"""Published weights: the network computes what a NumPy transformer with the same arrays computes."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.models import pretrained, table
from benchmarks.training.config import Config
from benchmarks.training.program import make_program
from tests.benchmarks.training import first_steps

SIZE, HEADS, LAYERS, PATCH, IMAGE = 8, 2, 2, 4, 8
OPTIONS = {"patch_size": PATCH, "hidden_size": SIZE, "num_layers": LAYERS, "num_heads": HEADS}


def timm():
    """Random arrays with the names and shapes of a small network of timm."""
    shapes = {
        "cls_token": (1, 1, SIZE),
        "pos_embed": (1, 5, SIZE),
        "head.weight": (7, SIZE),
        "head.bias": (7,),
    }
    shapes |= {"patch_embed.proj.weight": (SIZE, 3, PATCH, PATCH), "patch_embed.proj.bias": (SIZE,)}
    layers = {"norm1": (SIZE,), "norm2": (SIZE,), "attn.qkv": (3 * SIZE, SIZE), "attn.proj": (SIZE, SIZE)}
    layers |= {"mlp.fc1": (4 * SIZE, SIZE), "mlp.fc2": (SIZE, 4 * SIZE)}
    for prefix, kinds in [("norm", {"": (SIZE,)}), *((f"blocks.{i}.", layers) for i in range(LAYERS))]:
        for name, shape in kinds.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def normalise(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def encode(x, attention, block):
    """One encoder block: `attention` maps tokens to query, key, value of each head, and heads to tokens."""
    qkv, merge = attention
    q, k, v = qkv(normalise(x, *block["norm1"]))  # [batch, heads, tokens, size]
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
    x = x + merge(scores / scores.sum(-1, keepdims=True) @ v)
    y = gelu(normalise(x, *block["norm2"]) @ block["fc1"][0] + block["fc1"][1])
    return x + y @ block["fc2"][0] + block["fc2"][1]


def features_from_timm(a, images):
    """As in timm's forward pass, for images `[batch, height, width, channels]`."""
    n, grid = len(images), IMAGE // PATCH
    patches = images.reshape(n, grid, PATCH, grid, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    x = patches.reshape(n, grid**2, -1) @ a["patch_embed.proj.weight"].reshape(SIZE, -1).T
    x = (
        np.concatenate([np.tile(a["cls_token"], (n, 1, 1)), x + a["patch_embed.proj.bias"]], 1)
        + a["pos_embed"]
    )
    for i in range(LAYERS):
        part = lambda name, i=i: (a[f"blocks.{i}.{name}.weight"], a[f"blocks.{i}.{name}.bias"])

        def qkv(x, part=part):
            weight, bias = part("attn.qkv")
            out = (x @ weight.T + bias).reshape(*x.shape[:2], 3, HEADS, SIZE // HEADS)
            return out.transpose(2, 0, 3, 1, 4)

        def merge(x, part=part):
            weight, bias = part("attn.proj")
            return x.swapaxes(1, 2).reshape(n, -1, SIZE) @ weight.T + bias

        block = {"norm1": part("norm1"), "norm2": part("norm2")}
        block |= {name: (part(f"mlp.{name}")[0].T, part(f"mlp.{name}")[1]) for name in ("fc1", "fc2")}
        x = encode(x, (qkv, merge), block)
    return normalise(x, a["norm.weight"], a["norm.bias"])[:, 0]


def save(path, arrays):
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    return path


@pytest.fixture(scope="module")
def dataset():
    """Random colour images, standardised as `data.load` does."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, [100, 200, 256], (40, IMAGE, IMAGE, 3)).astype(np.float32)
    mean, deviation = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    split = arrays.Split((pixels - mean) / deviation, rng.integers(0, 3, 40).astype(np.int32))
    return arrays.Dataset(split, split, split, 3, mean, deviation)


def vit(**options):
    return table.build("vit_b16", (IMAGE, IMAGE, 3), 3, OPTIONS | options, rngs=nnx.Rngs(0))


def test_network_computes_what_was_published(dataset, tmp_path):
    path = save(tmp_path / "weights.safetensors", timm())
    model = vit()
    nnx.update(model, pretrained.load(path, nnx.state(model, nnx.Param), dataset))
    assert not model.head.kernel[...].any()  # for other classes
    model.eval()
    model.head = lambda x: x
    images = dataset.test.images[:5]
    pixels = (images * dataset.deviation + dataset.mean) / 255
    expected = features_from_timm(timm(), (pixels - 0.5) / 0.5)
    np.testing.assert_allclose(model(images), expected, atol=2e-4)


def test_training_starts_from_the_file(dataset, tmp_path):
    path = save(tmp_path / "weights.safetensors", timm())
    config = Config(
        method="sam", model="vit_b16", model_options=OPTIONS, pretrained=path, batch_size=20, epochs=1
    )
    program = make_program(config, dataset)
    start = program.init(0)
    assert np.array_equal(start.params["class_token"][...], timm()["cls_token"])
    losses = first_steps(config, dataset, 2, program).losses
    assert losses[0] == pytest.approx(math.log(3), rel=1e-5)  # a head of zeros
    assert losses[1] != losses[0]
    random = make_program(dataclasses.replace(config, pretrained=None), dataset).init(0)
    assert not random.params["class_token"][...].any()


def test_position_embeddings_are_interpolated(dataset, tmp_path):
    arrays = timm()
    grid = np.linspace(0, 1, 2)  # grows from left to right alike in all rows
    arrays["pos_embed"][0, 1:] = np.tile(grid, 2)[:, None]
    path = save(tmp_path / "weights.safetensors", arrays)
    model = nnx.eval_shape(lambda: vit(image_size=24))
    weights = pretrained.load(path, nnx.state(model, nnx.Param), dataset)
    positions = weights["positions"][...]
    assert positions.shape == (1, 1 + 36, SIZE)
    assert np.array_equal(positions[:, 0], arrays["pos_embed"][:, 0])  # the class token's is not a place
    rows = positions[0, 1:].reshape(6, 6, SIZE)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:1, :, :1], rows.shape), atol=1e-6)
    assert (np.diff(rows[0, :, 0])[1:-1] > 0).all()
    np.testing.assert_allclose(rows[0, :, 0] + rows[0, ::-1, 0], 1, atol=1e-6)

    constant = np.ones((1, 5, SIZE), np.float32)
    np.testing.assert_allclose(pretrained.resize_positions(constant, 10), 1, atol=1e-6)
    assert pretrained.resize_positions(constant, 5) is constant
    with pytest.raises(UsageError, match="both images must be square"):
        pretrained.resize_positions(constant, 7)


def test_what_does_not_fit_is_refused(dataset, tmp_path):
    path = save(tmp_path / "weights.safetensors", timm())
    params = lambda **options: nnx.state(nnx.eval_shape(lambda: vit(**options)), nnx.Param)
    with pytest.raises(UsageError, match="holds 2 encoder blocks, the model has 1"):
        pretrained.load(path, params(num_layers=1), dataset)
    with pytest.raises(
        UsageError, match=r"other sizes: blocks\.0\.attention\.key\.bias is \(2, 4\), the model's \(2, 8\)"
    ):
        pretrained.load(path, params(hidden_size=16), dataset)
    with pytest.raises(UsageError, match="no file"):
        pretrained.load(tmp_path / "nothing.safetensors", params(), dataset)
    other = save(tmp_path / "other.safetensors", {"weight": np.zeros(3)})
    with pytest.raises(UsageError, match="with the array patch_embed"):
        pretrained.load(other, params(), dataset)
    incomplete = timm()
    del incomplete["blocks.1.mlp.fc2.bias"]
    with pytest.raises(UsageError, match=r"has no array 'blocks.1.mlp.fc2.bias'"):
        pretrained.load(save(tmp_path / "incomplete.safetensors", incomplete), params(), dataset)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is not \.safetensors"):
        pretrained.load(tmp_path / "weights.pth", params(), dataset)
    make = lambda: table.MODELS["mlp"]((8, 8, 3), 3, rngs=nnx.Rngs(0))
    mlp = nnx.state(nnx.eval_shape(make), nnx.Param)
    with pytest.raises(UsageError, match="does not fit this model"):
        pretrained.load(path, mlp, dataset)
    assert jax.tree.leaves(mlp)
