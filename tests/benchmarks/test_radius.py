"""A radius that needs no tuning: the rules by their equations, what is trained, the verdict by hand."""

import jax
import jax.numpy as jnp
import optax
import pandas as pd
import pytest

from benchmarks import methods
from benchmarks.experiments.radius import CANDIDATES, FIXED, Radius, verdict

PARAMS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.0, 12.0]), "zero": jnp.zeros(2)}


def value_fn(w):
    return sum(((x - 1) ** 2).sum() for x in jax.tree.leaves(w))


def perturbation(layerwise):
    """ε, from the gradient 2 (w + ε − 1) there."""
    tx = methods.build("relative_sam", {"c": 0.1, "layerwise": layerwise})
    direction, _ = tx.update(jax.grad(value_fn)(PARAMS), tx.init(PARAMS), PARAMS, value_fn=value_fn)
    return jax.tree.map(lambda d, w: d / 2 + 1 - w, direction, PARAMS)


def test_a_radius_relative_to_the_weights():
    assert float(optax.tree.norm(perturbation(False))) == pytest.approx(1.3, rel=1e-5)
    own = perturbation(True)
    assert {name: float(optax.tree.norm(own[name])) for name in own} == pytest.approx(
        {"a": 0.5, "b": 1.2, "zero": 0}, rel=1e-5, abs=1e-6
    )


def test_the_verdict_is_that_of_the_rule():
    assert [verdict(own, 2.0) for own in (-0.1, 0.99, 1.0, 1.5)] == ["yes", "yes", "no", "no"]
    assert verdict(-1.0, 0.0) == "no"  # nothing to win back


def test_the_table_counts_settings_where_all_is_measured():
    """Numbers are the best trials; a mean is over the settings that are complete."""
    own = Radius()
    records = [{"part": "trial", "candidate": "none", "seed": 0, "settings": {}, "setting": "noisy"}]
    for job in own.jobs(records):
        if job["part"] == "trial":
            is_start = job["settings"] == CANDIDATES[job["candidate"]].start
            records.append(job | {"validation_accuracy": 0.8 if is_start else 0.7})
    jobs = [job for job in own.jobs(records) if job["part"] == "network"]
    # A suite has SAM with ρ = 0.1 and ASAM with ρ = 1 on clean labels.
    assert {job["candidate"] for job in jobs if job["setting"] == "clean"} == {*CANDIDATES} - {FIXED, "asam"}
    accuracies = {FIXED: 0.80, "held_rise": 0.85}
    for job in jobs:
        if job["setting"] == "part_16" or job["candidate"] == FIXED:
            records.append(job | {"test_accuracy": accuracies.get(job["candidate"], 0.7)})
    text = own.tables(pd.DataFrame(records), own.name)["docs/evidence/radius.md"]["radius"]
    tuned = own.of_suite("part_16", FIXED, {"rho": 0.2})
    loss = 100 * (sum(tuned[seed] for seed in own.seeds) / 3 - 0.80)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert f"| {loss:.2f} ±" in lines["the same ρ"]
    assert lines["relative rise held"].endswith("| yes |")
    assert lines["ρ = c‖w‖"].endswith("| no |")
    assert "transformer, not counted" in text
