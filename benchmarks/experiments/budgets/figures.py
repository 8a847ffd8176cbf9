"""The picture of equal budgets: test accuracy against the gradients of the training, names at the points."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import figures
from benchmarks.tables import where

MOST = 8  # points of a panel: more names cannot be read


def draw(made: pd.DataFrame, rows: Mapping[str, Any], levels: Sequence[float], path: Path) -> None:
    """A panel for each noise level, with the first rows that have been measured there."""
    figure, grid = figures.panels(len(levels), 1, "", width=6.4, height=3.9)
    for axes, noise in zip(grid[:, 0], levels, strict=True):
        own = where(made, label_noise=noise)
        present = [name for name in rows if (own["row"] == name).any()][:MOST]
        points = []
        for name in present:
            accuracy = 100 * where(own, row=name)["test_accuracy"]
            gradients = where(own, row=name)["gradients"].iloc[0]
            look = rows[name].style()
            points.append((gradients, accuracy.mean(), look))
            axes.errorbar(
                *(gradients, accuracy.mean(), accuracy.sem()),
                capsize=2,
                ls="none",
                color=look.colour,
                marker=look.marker,
                markersize=7,
            )
        budgets = sorted({point[0] for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.9)
        axes.set_xticks(budgets, [f"{gradients:,.0f}" for gradients in budgets])
        axes.minorticks_off()
        labels = f"{100 * noise:.0f} % noisy labels" if noise else "clean labels"
        axes.set(ylabel="test accuracy (%)", title=f"Fashion-MNIST, 10,000 images, {labels}")
        axes.margins(y=0.12)
        name_points(axes, points)
    grid[-1, 0].set_xlabel("gradients of the whole training, each of 128 images")
    figures.save(figure, path)


def name_points(axes: Any, points: Sequence[tuple[float, float, Any]]) -> None:
    """Writes the names to the right of points with the same budget, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    for budget in {point[0] for point in points}:
        own = sorted((point for point in points if point[0] == budget), key=lambda point: point[1])
        heights = [point[1] for point in own]
        for _ in range(200):  # neighbours push each other
            for i in range(len(heights) - 1):
                lack = gap - (heights[i + 1] - heights[i])
                if lack > 0:
                    heights[i] -= lack / 2
                    heights[i + 1] += lack / 2
        for (x, y, look), height in zip(own, heights, strict=True):
            axes.annotate(
                look.label,
                (x, y),
                (x * 1.09, height),
                va="center",
                fontsize=9,
                color=look.colour,
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": look.colour, "shrinkA": 0, "shrinkB": 4},
            )
