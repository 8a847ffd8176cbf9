"""Tables and picture of the comparison of eigenvector solvers, for `docs/curvature.md`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import figures as plots
from benchmarks.records import Record
from benchmarks.tables import table
from optax_sam.curvature.krylov import SOLVERS

STARTS = ("cold", "warm")


def select(records: list[Record], kind: str, **fields: Any) -> list[Record]:
    """The records of a kind with these values."""
    return [
        record
        for record in records
        if record["kind"] == kind and all(record[name] == value for name, value in fields.items())
    ]


def alignment_table(records: list[Record]) -> str:
    """Mean alignment (and the lowest decile) of each solver and start, one line per number of products."""
    columns = [(solver, start) for start in STARTS for solver in sorted(SOLVERS)]
    lines = []
    for num_iters in sorted({record["num_iters"] for record in select(records, "alignment")}):
        cells = []
        for solver, start in columns:
            own = select(records, "alignment", num_iters=num_iters, solver=solver, start=start)
            values = [record["alignment"] for record in own]
            cells.append(f"{statistics.mean(values):.3f} ({np.quantile(values, 0.1):.2f})")
        lines.append([str(num_iters), *cells])
    return table(["products", *(f"{solver}, {start}" for solver, start in columns)], lines)


def eigenvalue_table(records: list[Record]) -> str:
    """Largest error over the seeds, one line per number of products."""
    last = max(record["step"] for record in select(records, "eigenvalue"))
    columns = [(solver, step) for step in (0, last) for solver in sorted(SOLVERS)]
    lines = []
    for num_iters in sorted({record["num_iters"] for record in select(records, "eigenvalue")}):
        cells = []
        for solver, step in columns:
            own = select(records, "eigenvalue", num_iters=num_iters, solver=solver, step=step)
            cells.append(f"{100 * max(record['relative_error'] for record in own):.2g} %")
        lines.append([str(num_iters), *cells])
    titles = [f"{solver}, {'at the start' if step == 0 else 'after training'}" for solver, step in columns]
    return table(["products", *titles], lines)


def equal_quality(records: list[Record], products: Sequence[int] = range(1, 11), num_iters: int = 5) -> str:
    """How many Lanczos products align at least as well as `num_iters` power iterations, both warm."""

    def mean(solver: str, count: int) -> float:
        own = select(records, "alignment", solver=solver, start="warm", num_iters=count)
        return statistics.mean(record["alignment"] for record in own)

    wanted = mean("power", num_iters)
    enough = [count for count in products if mean("lanczos", count) >= wanted]
    if not enough:
        return f"No number of Lanczos products up to {max(products)} reaches {num_iters} power iterations."
    best, same = mean("lanczos", enough[0]), mean("lanczos", num_iters)
    return (
        f"{num_iters} warm power iterations, the paper's setting, reach an alignment of {wanted:.3f}. "
        f"Lanczos reaches that with {enough[0]} products ({best:.3f}), {100 * enough[0] / num_iters:.0f} % "
        f"of the cost; with {num_iters} products it reaches {same:.3f}."
    )


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of the page."""
    return {
        "alignment": alignment_table(records),
        "equal_quality": equal_quality(records),
        "eigenvalue": eigenvalue_table(records),
    }


def draw(records: list[Record], path: Path) -> None:
    """Alignment against the number of products."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    styles = {
        "lanczos": {"color": plots.STYLES["sam"]["color"], "marker": "s"},
        "power": {"color": plots.STYLES["xsam"]["color"], "marker": "o"},
    }
    names = {"lanczos": "Lanczos", "power": "power iteration"}
    for solver, start in ((solver, start) for solver in SOLVERS for start in STARTS):
        own = select(records, "alignment", solver=solver, start=start)
        products = sorted({record["num_iters"] for record in own})
        values = [[r["alignment"] for r in own if r["num_iters"] == n] for n in products]
        style = styles[solver] | {"linestyle": "-" if start == "warm" else "--"}
        fill = "full" if start == "warm" else "none"
        axes.plot(
            products,
            [statistics.mean(v) for v in values],
            label=f"{names[solver]}, {start}",
            fillstyle=fill,
            **style,
        )
    axes.set(
        xlabel="Hessian-vector products at a refresh",
        ylabel="alignment with the exact top eigenvector",
        xticks=products,
        ylim=(0, 1.02),
    )
    plots.tidy(axes)
    axes.legend(frameon=False, loc="lower right")
    plots.save(figure, path)
