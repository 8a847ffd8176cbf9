"""Fine-tuning: texts as tokens, the labelled examples of a seed, Functional SAM, the search, the tables."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from benchmarks import train
from benchmarks.data import sources, text
from benchmarks.data.arrays import Dataset, Split
from benchmarks.errors import UsageError
from benchmarks.experiments.budgets.search import neighbours
from benchmarks.experiments.fine_tuning import GRIDS, ROWS, TUNED, FineTuning
from benchmarks.training.config import Config
from benchmarks.training.program import make_program

needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None,
    reason="tokenizers is not installed: pip install 'optax_sam[text]'",
)


@pytest.fixture
def vocabulary(tmp_path):
    """File of a tokenizer like MiniLM's, with few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "was", "gali", "##leo", "?"]
    special = [{"id": i, "content": words[i], "special": True} for i in range(4)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    ends = {word: {"id": word, "ids": [words.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}
    bert = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    around = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    path = tmp_path / "tokenizer.json"
    stored = {
        "version": "1.0",
        "added_tokens": [own | flags for own in special],
        "normalizer": {"type": "BertNormalizer"} | bert,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": around,
            "pair": [],
            "special_tokens": ends,
        },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(words)},
        },
    }
    stored["post_processor"]["pair"] = [*around, {"Sequence": {"id": "B", "type_id": 1}}]
    path.write_text(json.dumps(stored))
    return path


@needs_tokenizers
def test_texts_are_cut_and_padded_to_one_length(vocabulary):
    found = text.tokens(["Who was Galileo ?", "who", "was was was was was was"], vocabulary, 7)
    assert found.tolist() == [[2, 4, 5, 6, 7, 8, 3], [2, 4, 3, 0, 0, 0, 0], [2, 5, 5, 5, 5, 5, 3]]


@needs_tokenizers
@pytest.mark.parametrize(("name", "sizes"), [("trec", (4952, 500, 500)), ("sst2", (6920, 872, 1821))])
def test_texts_are_read_as_they_are(name, sizes, raw_files, vocabulary, tmp_path):
    if not (raw_files / "text").is_dir():
        pytest.skip(f"no texts in {raw_files}")
    sources.prepare(name, tmp_path, download_dir=raw_files)
    dataset = text.load(name, vocabulary, tmp_path)
    assert tuple(len(split.labels) for split in dataset[:3]) == sizes
    assert dataset.num_classes == len(np.unique(dataset.test.labels)) == {"trec": 6, "sst2": 2}[name]
    if name == "trec":
        question = text.tokens(["Who was Galileo ?"], vocabulary, 24)[0]
        assert dataset.test.labels[(dataset.test.images == question).all(-1)].tolist() == [3]


def test_other_texts_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"text/TREC.train.all with --download-dir \(nobody offers"):
        sources.prepare("trec", tmp_path)
    (tmp_path / "raw" / "text").mkdir(parents=True)
    for file in sources.TEXTS["trec"].files:
        (tmp_path / "raw" / "text" / file).write_text("0 a text\n")
    with pytest.raises(UsageError, match="damaged or another version"):
        sources.prepare("trec", tmp_path / "data", download_dir=tmp_path / "raw")


def test_the_labelled_examples_of_a_seed():
    pool = Split(np.arange(50)[:, None], np.arange(50))
    ten, twenty, other = (text.few(pool, n, seed) for n, seed in ((10, 0), (20, 0), (20, 1)))
    assert ten.labels.tolist() == twenty.labels[:10].tolist()
    assert len(set(twenty.labels)) == 20
    assert twenty.labels.tolist() != other.labels.tolist()
    assert twenty.images[:, 0].tolist() == twenty.labels.tolist()
    with pytest.raises(UsageError, match="51 labels are wanted, but there are 50"):
        text.few(pool, 51, 0)


def test_functional_sam_keeps_the_derivative_by_the_outputs():
    """d = J(w + ε)ᵀ c, where c is the derivative of the loss by the outputs at w."""
    rng = np.random.default_rng(0)
    split = Split(rng.normal(size=(10, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 10).astype(np.int32))
    settings = {"batch_size": 10, "epochs": 1, "learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    config = Config("sam", 0.3, model="mlp", functional=True, **settings)
    program = make_program(config, Dataset(split, split, split, 3))
    start = program.init(0)
    w = jax.tree.map(jnp.array, start.params)  # the step takes the buffers of its argument
    outputs = lambda w: program.predict(start._replace(params=w), split.images)
    losses = lambda f: optax.softmax_cross_entropy_with_integer_labels(f, split.labels).mean()
    g = jax.grad(lambda w: losses(outputs(w)))(w)
    norm = optax.tree.norm(g)
    above = jax.tree.map(lambda w, g: w + 0.3 * g / norm, w, g)
    (d,) = jax.vjp(outputs, above)[1](jax.grad(losses)(outputs(w)))
    expected = jax.tree.map(lambda w, d: w - 0.5 * d, w, d)
    steps = train.train_steps(program, jax.tree.map(jnp.asarray, split), program.init(0), 0)
    _, state, _ = next(steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, expected)
    sam = jax.grad(lambda w: losses(outputs(w)))(above)
    assert float(optax.tree.norm(optax.tree.sub(sam, d))) > 1e-3
    with pytest.raises(UsageError, match="must see the whole batch; leave out --ascent-batch"):
        make_program(dataclasses.replace(config, ascent_batch=5), Dataset(split, split, split, 3))


def accuracy(settings):
    """Best at a rate of 5e-4, 20 epochs and a radius of 0.05."""
    place = lambda name: GRIDS[name].index(settings[name])
    peak = {"learning_rate": 5e-4, "epochs": 20, "rho": 0.05}
    return 0.9 - 0.01 * sum(abs(place(name) - GRIDS[name].index(peak[name])) for name in settings)


def searched(own):
    """Records of trials and networks, as if each had the accuracy above."""
    records = []
    for _ in range(20):
        new = [job for job in own.jobs(records) if not any(job.items() <= r.items() for r in records)]
        if not new:
            return records
        for job in new:
            score = accuracy(job["settings"]) + 0.001 * (job["seed"] % 7)
            record = job | {"validation_accuracy": score, "validation_loss": 1 - score}
            if job["part"] == "network":
                record |= {"test_accuracy": score, "test_loss": 1 - score, "ece": 0.1, "gradients": 100}
            records.append(record)
    raise AssertionError("the search does not end")


SMALL = FineTuning(
    seeds=(0, 1, 2, 3, 4),
    datasets=("trec",),
    labels=(100,),
    trainings=("full",),
    rows={n: ROWS[n] for n in ("adamw", TUNED, "sam")},
)


def test_other_rows_wait_for_the_rate_and_epochs_of_tuned_adamw():
    at = next(SMALL.places())
    assert SMALL.walk([], at, "sam") == ([], None)
    records = searched(SMALL)
    chosen = SMALL.walk(records, at, "sam").chosen
    assert chosen == {"learning_rate": 5e-4, "epochs": 20, "rho": 0.05}
    tried = SMALL.walk(records, at, "sam").tried
    for name in ("learning_rate", "epochs"):
        assert {settings[name] for settings in tried} == {chosen[name]}
    assert all(chosen | other in tried for other in neighbours({"rho": 0.05}, GRIDS))


def test_the_tables_to_the_letter():
    found = SMALL.tables(pd.DataFrame(searched(SMALL)), None)["docs/evidence/fine_tuning.md"]
    assert list(found) == ["trec_100_full", "trec_100_full_compared", "trec_100_full_search"]
    assert found["trec_100_full"].splitlines()[2:] == [
        "| AdamW | rate 5e-05 | 10 | 100 | 5 | 86.2 ± 0.1 | 0.138 ± 0.001 | 10.0 ± 0.0 |",
        "| AdamW, tuned | rate 0.0005 | 20 | 100 | 5 | 90.2 ± 0.1 | 0.098 ± 0.001 | 10.0 ± 0.0 |",
        "| SAM | rate 0.0005, rho 0.05 | 20 | 100 | 5 | 90.2 ± 0.1 | 0.098 ± 0.001 | 10.0 ± 0.0 |",
    ]
    assert found["trec_100_full_compared"].splitlines()[2:] == [
        "| AdamW minus AdamW, tuned | −4.0 ± 0.0, worse | +0.040 ± 0.000, worse "
        "| +0.0 ± 0.0, no difference |",
        "| SAM minus AdamW, tuned | +0.0 ± 0.0, no difference | +0.000 ± 0.000, no difference "
        "| +0.0 ± 0.0, no difference |",
    ]
    assert "| SAM | rate 0.0005, rho 0.05 | 20 | 90.3 | chosen |" in found["trec_100_full_search"]
