"""Claims: methods by their equations, verdicts on made-up numbers, the page against the stored results."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from matplotlib.collections import PathCollection

from benchmarks import experiment as claim
from benchmarks import figures as plots
from benchmarks import methods
from benchmarks.claim import Comparison, Verdict, judge, number
from benchmarks.errors import UsageError
from benchmarks.experiments.claims import (
    __main__,
    alternatives,
    eigen_sam_tracked,
    info_sam,
    setting,
    sphere,
    weightings,
)
from benchmarks.experiments.claims.alternatives import Alternatives
from benchmarks.experiments.claims.eigen_sam import PAPERS, EigenSAM, perturbation_of
from benchmarks.experiments.claims.eigen_sam_tracked import EigenSAMTracked
from benchmarks.experiments.claims.info_sam import InfoSAM
from benchmarks.experiments.claims.info_sam_weightings import InfoSAMWeightings
from benchmarks.experiments.claims.xsam_accuracy import XSAMAccuracy
from benchmarks.experiments.claims.xsam_direction import XSAMDirection
from benchmarks.models import table
from benchmarks.records import read_records
from benchmarks.reports.claim_pages import blocks
from benchmarks.tables import DOCS, filled
from tests.benchmarks.networks import Tiny
from tests.problems import network

CLAIMS = __main__.CLAIMS
RECIPES = {
    name: recipe | {"dataset": "digits", "train_size": 100, "model": "tiny", "batch_size": 25}
    for name, recipe in setting.RECIPES.items()
}
INCREASES = {
    "num_parameters": 10,
    "ratios": (1.0, 10.0),
    "num_gradients": 30,
    "controlled_seeds": (0, 1),
    "epochs": {25: 2},
    "seeds": (0, 1),
    "warm_up": 2,
    "every": 3,
}
# Few small networks, trained for two epochs of four steps, and one problem of each kind.
TINY = {
    claim.name: claim
    for claim in (
        EigenSAM(RECIPES, rows=PAPERS, epochs=2, seeds=(0, 1), num_batches=2, first_iters=2, later_iters=2),
        EigenSAMTracked(
            {name: recipe | {"batch_size": 32} for name, recipe in RECIPES.items()},
            epochs=2,
            seeds=(0, 1),
            epochs_between=1,
            alphas_of_the_paper=(1.0,),
            alphas=(0.2, 1.0),
            num_batches=2,
            first_iters=3,
            later_iters=3,
        ),
        InfoSAM(RECIPES, **INCREASES),
        InfoSAMWeightings(RECIPES, **INCREASES),
        XSAMDirection(
            RECIPES, num_quadratics=5, epochs=2, seeds=(0, 1), steps_per_epoch=4, per_epoch=2, ascent_steps=2
        ),
        XSAMAccuracy(
            RECIPES,
            rows=(("sam", 1), ("xsam", 1)),
            radii=(0.1,),
            epochs=2,
            seeds=(0, 1),
            interval_seeds=(0, 1),
            intervals={"1 epoch": 4, "never again": 8},
        ),
        Alternatives(RECIPES, radii=(0.1,), epochs=1, seeds=(0, 1)),
    )
}


@pytest.fixture
def tiny(monkeypatch, tmp_path, data_dir):
    """Results and page in an empty folder, and the small network."""
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    (tmp_path / "claims.md").write_text((DOCS / "claims.md").read_text(encoding="utf-8"), encoding="utf-8")
    return __main__.Options(data_dir=data_dir, processes=1, results=tmp_path, docs=tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, beside the files."""
    figures, save = [], plots.save
    monkeypatch.setattr(
        plots, "save", lambda figure, *args, **kw: figures.append(figure) or save(figure, *args, **kw)
    )
    return figures


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_measures_and_reports(name, tiny, drawn):
    one = TINY[name]
    claim.measure_missing(one, tiny.results, tiny.data_dir, 1)
    records = read_records(claim.result_file(one, tiny.results))
    jobs = one.jobs(records)
    assert all(claim.is_done(job, records) for job in jobs)
    assert all({"versions", "seed"} <= record.keys() for record in records if "num_quadratics" not in record)
    suite = claim.read_suite(tiny.results)
    one.draw(records, suite, tiny.docs / "picture.png")
    assert plt.imread(tiny.docs / "picture.png").std() > 0
    report = one.report(records, suite)
    assert report.tables
    assert not any("nan" in table for table in report.tables)
    # From the numbers themselves, without the code of the claim.
    expected = CHECKS[name](one, records, drawn[0].axes)
    assert [verdict.outcome for verdict in report.verdicts] == expected


def by_rule(*comparisons):
    shown = [np.mean(x) > 2 * np.std(x, ddof=1) / np.sqrt(len(x)) for x in comparisons]
    return "holds" if all(shown) else "in part" if any(shown) else "does not hold"


def of(records, field, **values):
    return np.array([record[field] for record in claim.select(records, **values)], float)


def assert_line(axes, label, expected):
    line = next(line for line in axes.lines if line.get_label() == label)
    np.testing.assert_allclose(line.get_ydata(), expected)


def points(axes):
    """Of all scatter plots, in order."""
    return np.concatenate([x.get_offsets() for x in axes.collections if isinstance(x, PathCollection)])


def check_eigen_sam(one, records, panels):
    assert len(records) == 3 * len(one.seeds) * one.epochs
    assert all(0 <= value <= 1 for name in ("alignment", "test_accuracy") for value in of(records, name))
    assert (of(records, "top_eigenvalue") > 0).all()  # of a linear model
    along = lambda field, row: of(records, field, row=row).reshape(len(one.seeds), one.epochs)
    tracked = "alignment_of_the_tracked_eigenvector"
    assert np.isnan(along(tracked, "sam")).all()
    assert (np.abs(along(tracked, "eigen_sam") - 0.5) <= 0.5).all()
    for axes, field in zip(panels, ("alignment", tracked, "top_eigenvalue"), strict=True):
        assert_line(axes, "Eigen-SAM, α = 0.2", along(field, "eigen_sam").mean(0))
    for field, axes in (("alignment", panels[0]), ("top_eigenvalue", panels[2])):
        assert_line(axes, "SAM", along(field, "sam").mean(0))
    mean = lambda field, row: along(field, row).mean(1)
    gains = lambda field: [mean(field, "eigen_sam") - mean(field, row) for row in ("sgd", "sam")]
    return [by_rule(*gains("alignment")), by_rule(*(-x for x in gains("top_eigenvalue")))]


def check_eigen_sam_tracked(one, records, panels):
    tracked = eigen_sam_tracked
    assert len(records) == 2 * 5 * len(one.seeds)
    alphas, found, noises = one.alphas, [[], [], [], [], []], (0.0, 0.4)
    settings = tracked.TRACKERS
    for noise, panel in zip(noises, np.reshape(panels, (2, 4)), strict=True):

        def of_row(row, noise=noise):
            own = claim.select(records, label_noise=noise, **row)
            assert [record["seed"] for record in own] == [*one.seeds]
            each = lambda name: np.array([record[name] for record in own])
            values = each("eigenvalues")
            assert (np.diff(values, axis=-1) <= 1e-4).all()  # in descending order
            both = each("alignments")
            assert (both[..., 0] <= both[..., 1] + 1e-5).all()
            assert (both[..., 1] <= 1 + 1e-5).all()
            return {
                "alignment": both[..., 0].mean(1),
                "last": values[:, -1, 0],
                "ratio": (values[..., 1] / values[..., 0]).mean(),
                "tracked": each("tracked").mean(1) if row["method"] == "eigen_sam" else None,
                "validation": each("validation_accuracy"),
                "test": each("test_accuracy"),
            }

        row = lambda alpha, tracker="mean": {
            "method": "eigen_sam",
            "settings": {"rho": 0.1, "alpha": alpha} | settings[tracker],
        }
        sam = of_row({"method": "sam", "settings": {"rho": 0.1}})
        longer = of_row({"method": "sam", "settings": {"rho": 0.1414}})
        own = {alpha: of_row(row(alpha)) for alpha in alphas}
        kept = [a for a in alphas if (own[a]["validation"] - sam["validation"]).mean() >= -0.002]
        best = own[max(kept, default=min(alphas))]
        near = best["ratio"] > 0.8
        found[0].append(best["tracked"][:, int(near)] - (0.95 if near else 0.9))
        found[1].append(best["alignment"] - sam["alignment"])
        found[2].append(own[1.0]["alignment"] - of_row(row(1.0, "paper"))["alignment"])
        found[3] += [0.8 * sam["last"] - best["last"], best["test"] - sam["test"] + 0.005]
        found[4].append(longer["last"] - own[1.0]["last"])
        label = tracked.STYLES["mean"].label
        assert_line(panel[0], label, [own[a]["alignment"].mean() for a in alphas])
        assert_line(panel[1], label, [own[a]["tracked"][:, 0].mean() for a in alphas])
        assert_line(panel[2], label, [own[a]["last"].mean() for a in alphas])
        assert_line(panel[3], label, [100 * own[a]["test"].mean() for a in alphas])
        assert_line(panel[3], "SAM", [100 * sam["test"].mean()] * 2)
    return [by_rule(*comparisons) for comparisons in found]


def check_info_sam(one, records, panels):
    get = lambda field, name, **values: of(records, field, estimator=name, **values)
    controlled = [{"experiment": "controlled", "noise_ratio": ratio} for ratio in one.ratios]
    network = {"experiment": "network"}
    sam = [get("increase", "sam", **group) for group in (*controlled, network)]
    own = [get("increase", "info_sam", **group) for group in (*controlled, network)]
    free = [get("noise_free_increase", "sam", **group) for group in (*controlled, network)]
    assert all((x > 0).all() for x in free)
    assert (np.abs(of(records, "cosine_with_the_noise_free", **network)) < 1 + 1e-5).all()
    assert_line(panels[0], "SAM", [np.mean(x / y) for x, y in zip(sam[:-1], free[:-1], strict=True)])
    steps = sorted(set(of(records, "step", **network)))
    assert steps == [3, 6]  # every third after the second of eight
    assert_line(panels[1], "infoSAM", own[-1].reshape(len(one.seeds), len(steps)).mean(0))
    more = [x - y for x, y in zip(own, sam, strict=True)]
    half = [x - (y + z) / 2 for x, y, z in zip(own, sam, free, strict=True)]
    found = [by_rule(*x) for x in (more[:-1], half[:-1], more[-1:], half[-1:])]
    return [*found, "not measured yet"]


def check_info_sam_weightings(one, records, panels):
    get = lambda name, **values: of(records, "increase", estimator=name, **values)
    free = lambda name, **values: of(records, "noise_free_increase", estimator=name, **values)
    for axes, noise in zip(panels, ("independent", "like the gradient"), strict=False):
        groups = [{"noise": noise, "noise_ratio": ratio} for ratio in one.ratios]
        mean = lambda name, groups=groups: [np.mean(get(name, **x) / free(name, **x)) for x in groups]
        assert_line(axes, "SAM", mean("sam"))
        assert_line(axes, "signal to noise", mean("signal_to_noise"))
    network = {"experiment": "network"}
    relative = get("layer_signal_to_noise", **network) / free("sam", **network)
    assert_line(panels[2], "signal to noise of each layer", relative.reshape(len(one.seeds), -1).mean(0))
    known = {"sam", "info_sam", "running_mean"}
    others = [name for name in weightings.DIRECTIONS if name not in known]
    order = ["parts_variance", "layer_variance", "signal_to_noise", "parts_signal_to_noise"]
    order += ["gradient_to_noise", "layer_signal_to_noise"]
    assert sorted(order) == sorted(others)
    return [by_rule(get(name, **network) - get("sam", **network)) for name in order]


def test_weightings_by_hand(x64):
    """Two steps of two parts, and two layers, transcribed."""
    rng = np.random.default_rng(0)
    steps = rng.normal(1, 1, (2, weightings.PARTS, 5))
    tree = lambda x: {"a": jnp.asarray(x[..., :2]), "b": jnp.asarray(x[..., 2:])}
    statistics = weightings.start(tree(steps[0, 0]))
    for parts in steps:
        found, statistics = weightings.observe(tree(parts), statistics, jnp.asarray(0.1))
    first, g = steps.mean(axis=1)
    m = 0.9 * first + 0.1 * g
    t = (m - g) ** 2
    between = ((steps - steps.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / 12
    p = (0.99 * between[0] + between[1]) / 1.99
    layer = lambda x: np.concatenate([np.full(2, x[:2].mean()), np.full(3, x[2:].mean())])
    expected = {
        "sam": g,
        "info_sam": g / (t + t.mean()),
        "signal_to_noise": g * m**2 / (m**2 + t),
        "gradient_to_noise": g**3 / (g**2 + t),
        "layer_variance": g / (layer(t) + t.mean()),
        "layer_signal_to_noise": g * layer(m**2) / (layer(m**2) + layer(t)),
        "parts_variance": g / (p + p.mean()),
        "parts_signal_to_noise": g * m**2 / (m**2 + p),
        "running_mean": m,
    }
    assert found.keys() == expected.keys()
    for name, direction in expected.items():
        own = np.concatenate([found[name]["a"], found[name]["b"]])
        np.testing.assert_allclose(own, 0.1 * direction / np.linalg.norm(direction), rtol=1e-9, err_msg=name)


def check_xsam_direction(one, records, panels):
    networks = claim.select(records, experiment="network")
    for losses in (record["loss_at"] for record in networks):
        on_the_arc = [losses[name] for name in ("v(0)", "v(1)", "v(kept)")]
        assert max(on_the_arc) - 1e-6 <= losses["v(alpha*)"] <= losses["worst found"] + 1e-6
    nearer, slow, heights = [], [], []
    for noise in (0.0, 0.4):
        own = [claim.select(networks, label_noise=noise, seed=seed) for seed in one.seeds]
        loss = lambda name, own=own: np.array([[r["loss_at"][name] for r in network] for network in own])
        nearer += [(loss("v(1)") - loss("v(0)")).mean(1), (loss("v(kept)") - loss("v(1)")).mean(1)]
        clean = np.array([[r["loss"] for r in network] for network in own])
        names = ("v(0)", "v(1)", "v(kept)", "v(alpha*)")
        heights += [100 * (loss(name) - clean) / (loss("worst found") - clean) for name in names]
        found = lambda seed, noise=noise: claim.select(networks, label_noise=noise, seed=seed, batch=0)
        alphas = np.array([[r["alphas"][sphere.RADII.index(1.0)] for r in found(seed)] for seed in one.seeds])
        slow.append(0.2 - np.abs(alphas[:, one.per_epoch :] - alphas[:, : -one.per_epoch]).mean(1))
    np.testing.assert_allclose(points(panels[0])[:, 1], np.concatenate([x.mean(1) for x in heights]))
    quadratics = {r["radius"]: np.array(r["alphas"]) for r in claim.select(records, experiment="quadratic")}
    assert {len(alphas) for alphas in quadratics.values()} == {one.num_quadratics}
    assert_line(panels[2], "100 random quadratics", [alphas.mean() for alphas in quadratics.values()])
    ends = (quadratics[max(quadratics)] > 1).all(), (quadratics[min(quadratics)] < 1).all()
    of_quadratics = "holds" if all(ends) else "in part" if any(ends) else "does not hold"
    return [by_rule(*nearer), of_quadratics, by_rule(*slow)]


def check_xsam_accuracy(one, records, panels):
    accuracy = lambda **values: of(records, "test_accuracy", **values)
    sam, xsam = (accuracy(experiment="radius", method=method) for method in ("sam", "xsam"))
    assert_line(panels[0], "SAM, k = 1", [100 * sam.mean()])
    assert_line(panels[0], "XSAM, k = 1", [100 * xsam.mean()])
    usual, never = (accuracy(interval=name) for name in ("1 epoch", "never again"))
    assert {len(x) for x in (sam, xsam, usual, never)} == {2}
    np.testing.assert_allclose(points(panels[2]), np.transpose([[0, 0, 1, 1], 100 * np.append(usual, never)]))
    return [by_rule(xsam - sam), "not measured yet", by_rule(never - usual + 0.01)]


def check_alternatives(one, records, panels):
    field = lambda name, method: of(records, name, experiment="test", method=method)
    sharpness = {method: field("largest_hessian_eigenvalue", method) for method in alternatives.STYLES}
    accuracy = {method: field("test_accuracy", method) for method in alternatives.STYLES}
    assert all((values > 0).all() for values in sharpness.values())  # of a linear model
    expected = [np.concatenate([*x.values()]) for x in (sharpness, accuracy)]
    np.testing.assert_allclose(points(panels[1]), np.transpose(expected) * [1, 100])
    trial = of(records, "validation_accuracy", experiment="trial", method="sam")
    assert_line(panels[0], "SAM", 100 * trial)
    gains = [accuracy["sam"] - accuracy[other] for other in alternatives.OTHERS]
    return [by_rule(*gains), by_rule(*(sharpness[x] - sharpness["sam"] for x in alternatives.OTHERS))]


CHECKS = {
    "eigen_sam": check_eigen_sam,
    "eigen_sam_tracked": check_eigen_sam_tracked,
    "info_sam": check_info_sam,
    "info_sam_weightings": check_info_sam_weightings,
    "xsam_direction": check_xsam_direction,
    "xsam_accuracy": check_xsam_accuracy,
    "alternatives": check_alternatives,
}


class Counted(Alternatives):
    """Measures nothing; remembers its jobs."""

    done = []  # noqa: RUF012

    def measure(self, job, data_dir):
        self.done.append(job)
        return [job | {"validation_accuracy": job["settings"].get("rho", 0), "test_accuracy": 0.5}]


def test_what_is_measured_already_is_not_measured_again(tiny):
    one, done = Counted(RECIPES, radii=(0.1, 0.2), epochs=1, seeds=(0, 1)), Counted.done
    claim.measure_missing(one, tiny.results, tiny.data_dir, 1)
    assert len(done) == 4 * 2 + 5 * 2
    assert {job["settings"].get("rho") for job in done if job["experiment"] == "test"} == {None, 0.2}
    file = claim.result_file(one, tiny.results)
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text("".join(lines[:5] + lines[6:-1]) + lines[-1][:20])  # one is missing, one cut short
    again, done[:] = list(done), []
    claim.measure_missing(one, tiny.results, tiny.data_dir, 1)
    assert done == [again[5], again[-1]]
    assert file.read_text() == whole


def test_report_before_anything_is_measured(tiny, capsys):
    __main__.run(dataclasses.replace(tiny, report_only=True))
    shown = capsys.readouterr().out
    verdicts = [v for one in CLAIMS.values() for v in one.report([], claim.SuiteResults([], [])).verdicts]
    assert {verdict.outcome for verdict in verdicts} == {"not measured yet"}
    assert all(verdict.statement in shown for verdict in verdicts)
    assert (tiny.docs / "claims.md").read_text(encoding="utf-8").count("not measured yet") >= 2 * len(
        verdicts
    )


# --- Methods ------------------------------------------------------------------------------------------


@pytest.fixture
def problem(x64):
    """Parameters, loss and the loss's gradient."""
    made = network(dtype=jnp.float64)
    batch = jax.tree.map(lambda x: x[0], made.batches)
    loss = lambda params: made.loss(params, batch)
    return made.params, loss, jax.jit(jax.grad(loss))


@functools.partial(jax.jit, static_argnums=(0, 2))
def direction(method, params, loss, rho):
    tx = methods.build(method, {"rho": rho})
    return tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss, refresh=False)[0]


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def test_gradient_norm_penalty_is_the_gradient_of_its_objective(problem):
    params, loss, grad = problem
    objective = lambda w: loss(w) + 0.3 * optax.tree.norm(grad(w))
    assert_same(direction("gradient_norm_penalty", params, loss, 0.3), jax.jit(jax.grad(objective))(params))


def test_reverse_sam_is_the_gradient_downhill(problem):
    params, loss, grad = problem
    g = grad(params)
    ahead = grad(optax.tree.add_scale(params, -0.3 / optax.tree.norm(g), g))
    assert_same(direction("reverse_sam", params, loss, 0.3), ahead)
    assert_same(direction("reflected_sam", params, loss, 0.3), jax.tree.map(lambda a, b: 2 * a - b, g, ahead))


@pytest.mark.parametrize(
    ("method", "order"), [("reflected_sam", 2), ("gradient_norm_penalty", 2), ("reverse_sam", 1)]
)
def test_order_in_which_alternatives_differ_from_sam(problem, method, order):
    """As the docstring's table has it: the difference falls by 2^order where ρ is halved."""
    params, loss, _ = problem
    far, near = (
        float(
            optax.tree.norm(
                optax.tree.sub(direction(method, params, loss, rho), direction("sam", params, loss, rho))
            )
        )
        for rho in (1e-2, 5e-3)
    )
    assert far / near == pytest.approx(2**order, rel=0.03)


def test_perturbation_of_eigen_sam_is_the_one_of_its_step(data_dir, tiny):
    """The measurement sees where the method evaluates its second gradient."""
    job = TINY["eigen_sam"].jobs([])[-1]
    job |= {"method": "eigen_sam", "settings": {"rho": 0.1, "alpha": 0.2}, "epochs": 1}
    made = setting.setting_of(job, RECIPES, data_dir)
    noisy = setting.training_data(made)
    state = next(iter(setting.states_along_training(made, noisy)))[1]
    gradient = jax.grad(made.loss)(state.params, (noisy.images, noisy.labels))
    found = perturbation_of("eigen_sam", rho=0.1, alpha=0.2)(gradient, state)
    seen = []

    def grad_fn(w):
        seen.append(w)
        return gradient

    tx = methods.build("eigen_sam", {"rho": 0.1, "alpha": 0.2})
    tx.update(gradient, state.opt_state[0], state.params, grad_fn=grad_fn, refresh=False)
    moved = optax.tree.sub(seen[0], state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, moved)
    assert float(optax.tree.norm(found)) > 0.1  # tilted, so longer than ρ


# --- Verdicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([], "not measured yet"),
        ([[1.0, 1.1, 0.9]], "holds"),
        ([[1.0, 1.1, 0.9], [0.5, 0.6, 0.4]], "holds"),
        ([[1.0, 1.1, 0.9], [3.0, -1.0, 0.5]], "in part"),
        ([[3.0, -1.0, 0.5]], "does not hold"),
        ([[-1.0, -1.1, -0.9]], "does not hold"),
        ([[1.0]], "does not hold"),  # one seed shows nothing
    ],
)
def test_rule_of_verdicts(differences, outcome):
    comparisons = [Comparison("a", values) for values in differences]
    assert judge("it is so", comparisons).outcome == outcome


def test_numbers_have_the_digits_that_their_error_allows():
    assert number([0.5, 0.5]) == "0.5"
    assert number([1.0, 2.0, 3.0]) == "2.0 ± 0.6"
    assert number([0.101, 0.102, 0.103]) == "0.1020 ± 0.0006"
    assert number([100.0, 200.0], sign="+") == "+150 ± 50"
    assert number([]) == "–"


def outcomes(one, records):
    return [verdict.outcome for verdict in one.report(records, claim.SuiteResults([], [])).verdicts]


@pytest.mark.parametrize(
    ("alignment", "eigenvalue", "expected"),
    [
        ((0.1, 0.2, 0.4), (9.0, 5.0, 3.0), ["holds", "holds"]),
        ((0.1, 0.4, 0.2), (9.0, 3.0, 5.0), ["in part", "in part"]),
        ((0.4, 0.3, 0.2), (1.0, 3.0, 5.0), ["does not hold", "does not hold"]),
    ],
)
def test_verdicts_on_eigen_sam(alignment, eigenvalue, expected):
    records = [
        {
            "row": row,
            "seed": seed,
            "epoch": epoch,
            "alignment": a + 0.01 * seed,
            "alignment_of_the_tracked_eigenvector": None,
            "top_eigenvalue": e + 0.1 * seed,
            "test_accuracy": 0.8,
        }
        for row, a, e in zip(("sgd", "sam", "eigen_sam"), alignment, eigenvalue, strict=True)
        for seed in (0, 1, 2)
        for epoch in (1, 2)
    ]
    assert outcomes(EigenSAM(), records) == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [(0.9, ["holds", "holds"]), (0.6, ["holds", "does not hold"]), (0.4, ["does not hold"] * 2)],
)
def test_verdicts_on_info_sam(own, expected):
    """SAM's increase is 0.5, the noise-free one 1."""
    shared = [
        ({"experiment": "controlled", "noise_ratio": 1.0}, [(seed, None) for seed in (0, 1, 2)]),
        (
            {"experiment": "network", "settings": {"batch_size": 128}},
            [(s, t) for s in (0, 1) for t in (10, 20)],
        ),
    ]
    records = [
        fields
        | {"seed": seed, "estimator": name, "increase": increase + 0.01 * seed, "noise_free_increase": 1.0}
        | ({} if step is None else {"step": step, "rank_correlation_of_signal_and_noise": 0.9})
        for fields, places in shared
        for seed, step in places
        for name, increase in (*((name, 0.5) for name in info_sam.LABELS), ("info_sam", own))
        if (name, increase) != ("info_sam", 0.5)
    ]
    assert outcomes(InfoSAM(), records) == [*expected, *expected, "not measured yet"]


def test_accuracy_under_label_noise_is_the_suites():
    networks = [
        {"row": row, "label_noise": noise, "seed": seed, "test_accuracy": accuracy + 0.01 * seed}
        for row, accuracy in (("sam", 0.7), ("info_sam", 0.8), ("xsam", 0.75), ("xsam3", 0.6))
        for noise in (0.0, 0.4)
        for seed in (0, 1, 2)
    ]
    suite = claim.SuiteResults([], networks)
    verdict = InfoSAM().report([], suite).verdicts[-1]
    assert (verdict.outcome, verdict.evidence) == ("holds", "40% wrong +10")
    verdict = XSAMAccuracy().report([], suite).verdicts[1]
    assert verdict.outcome == "in part"
    assert "0% wrong, k = 3 -10" in verdict.evidence


def test_verdicts_on_the_direction_of_xsam():
    def record(seed, step, loss_at, alpha, noise):
        return {
            "experiment": "network",
            "label_noise": noise,
            "seed": seed,
            "step": step,
            "batch": 0,
            "loss": 0.0,
            "loss_at": loss_at | {"v(alpha*)": 4.0 + 0.1 * seed, "worst found": 5.0},
            "alphas": [alpha] * len(sphere.RADII),
        }

    def report(kept, wander):
        records = [
            record(
                seed,
                step,
                {"v(0)": 1.0, "v(1)": 2.0 + 0.1 * seed, "v(kept)": kept},
                1 + wander * (step // 6 % 2),
                noise,
            )
            for noise in (0.0, 0.4)
            for seed in (0, 1, 2)
            for step in range(24)
        ]
        records += [r | {"batch": 1} for r in records]
        ends = {
            min(sphere.QUADRATIC_RADII): [0.5, 0.9],
            max(sphere.QUADRATIC_RADII): [1.5, wander + 1],
        }
        quadratics = [
            {"experiment": "quadratic", "radius": r, "alphas": alphas} for r, alphas in ends.items()
        ]
        return outcomes(XSAMDirection(), quadratics + records)

    assert report(kept=3.0, wander=0.1) == ["holds", "holds", "holds"]
    assert report(kept=1.5, wander=0.0) == ["in part", "in part", "holds"]
    assert report(kept=3.0, wander=0.5)[2] == "does not hold"


def test_verdicts_on_the_accuracy_of_xsam():
    """At the radius that is best on validation data, not on test data."""
    records = [
        {
            "experiment": "radius",
            "method": method,
            "settings": {"rho": rho, "num_steps": k},
            "seed": seed,
            "validation_accuracy": {0.1: 0.8, 0.2: 0.7}[rho],
            "test_accuracy": {("sam", 0.1): 0.7, ("sam", 0.2): 0.99, ("xsam", 0.1): 0.75, ("xsam", 0.2): 0.1}[
                method, rho
            ]
            + 0.001 * seed * k * (method == "xsam"),
        }
        for method in ("sam", "xsam")
        for rho in (0.1, 0.2)
        for k in (1, 3)
        for seed in (0, 1, 2)
    ]
    accuracies = {"½ epoch": 0.8, "1 epoch": 0.8, "5 epochs": 0.795, "never again": 0.7}
    records += [
        {
            "experiment": "interval",
            "interval": name,
            "seed": seed,
            "test_accuracy": accuracy + 0.001 * seed * (name[0] == "5"),
        }
        for name, accuracy in accuracies.items()
        for seed in (0, 1, 2)
    ]
    assert outcomes(XSAMAccuracy(), records) == ["holds", "not measured yet", "in part"]


def test_verdicts_on_the_alternatives():
    accuracy = {
        "sgd": 0.6,
        "sam": 0.8,
        "gradient_norm_penalty": 0.7,
        "reverse_sam": 0.5,
        "reflected_sam": 0.85,
    }
    sharpness = {
        "sgd": 9.0,
        "sam": 1.0,
        "gradient_norm_penalty": 2.0,
        "reverse_sam": 9.0,
        "reflected_sam": 3.0,
    }
    records = [
        {
            "experiment": "test",
            "method": method,
            "settings": {},
            "seed": seed,
            "test_accuracy": accuracy[method] + 0.001 * seed * (method == "sam"),
            "largest_hessian_eigenvalue": sharpness[method] + 0.01 * seed * (method == "sam"),
        }
        for method in accuracy
        for seed in (0, 1, 2)
    ]
    assert outcomes(Alternatives(), records) == ["in part", "holds"]


# --- The page -----------------------------------------------------------------------------------------


def test_page_without_a_place_for_a_block_is_an_error():
    report = claim.Report([Verdict("it is so", "holds", "1")], [])
    text = "<!-- table: one -->\nold\n<!-- end -->\n<!-- table: summary -->\n<!-- end -->\n"
    page = filled(text, blocks({"one": report}))
    assert "it is so" in page
    assert "\nold\n" not in page
    assert filled(page, blocks({"one": report})) == page
    with pytest.raises(UsageError, match=r"<!-- table: two -->"):
        filled(text, blocks({"two": report}))
