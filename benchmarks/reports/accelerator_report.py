"""The tables of docs/accelerator.md, from the files that `benchmarks.accelerator` writes."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.reports import step_cost_table
from benchmarks.reports.pages import DOCS, fill_tables, table
from benchmarks.reports.records import RESULTS, Record, read_records
from benchmarks.reports.setting_tables import NOTHING, setting_table
from benchmarks.reports.suite_numbers import of, spread
from benchmarks.training.suite_rows import ROWS
from benchmarks.training.suite_settings import SETTINGS

FOLDER = RESULTS / "accelerator"
PAGE = DOCS / "accelerator.md"


def write_page() -> None:
    """Fills the tables of the page."""
    fill_tables(PAGE, tables(FOLDER))


def tables(folder: Path) -> dict[str, str]:
    """Table by name; a part for each kind of device, or that there is none.

    Args:
        folder: with a folder for each kind of device.
    """
    devices = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    made: dict[str, Callable[[Path], str]] = {
        "cost": cost_table,
        "published": published_table,
        "prices": prices_table,
        **{
            setting: lambda device, setting=setting: setting_table(setting, device)
            for setting in ("cifar_resnet18", "fashion_vit_full")
        },
    }
    return {name: by_device(devices, make) for name, make in made.items()}


def by_device(devices: list[Path], make: Callable[[Path], str]) -> str:
    """One table for each device that has one."""
    parts = [f"{device.name}:\n\n{text}" for device in devices if (text := make(device)) != NOTHING]
    return "\n\n".join(parts) or "Nothing has been measured on an accelerator yet."


def cost_table(device: Path) -> str:
    """Counts, time to compile and time of a step, relative to SGD."""
    records = read_records(device / "step_cost.jsonl")
    return step_cost_table.markdown(records) if records else NOTHING


def published_table(device: Path) -> str:
    """ResNet-18 on all images of Fashion-MNIST."""
    records = read_records(device / "published.jsonl")
    if not records:
        return NOTHING
    lines = []
    for epochs, row in dict.fromkeys((record["config"]["epochs"], record["row"]) for record in records):
        own = [r for r in records if (r["config"]["epochs"], r["row"]) == (epochs, row)]
        accuracies = [100 * record["test_accuracy"] for record in own]
        settings = {"rho": own[0]["rho"]} if own[0]["rho"] is not None else {}
        settings |= own[0]["options"]
        chosen = ", ".join(f"{key} {value:g}" for key, value in settings.items()) or "–"
        lines.append([ROWS[row].label, str(epochs), str(len(own)), spread(accuracies), chosen])
    return table(["", "epochs", "seeds", "test accuracy (%)", "settings"], lines)


def prices_table(device: Path) -> str:
    """The time of a step of the suite's rows, and their accuracies."""
    file = SETTINGS["fashion_mnist"].file
    seconds = {r["row"]: r["seconds_per_step"] for r in read_records(device / f"{file}_time.jsonl")}
    records: list[Record] = read_records(device / f"{file}.jsonl")
    if not seconds:
        return NOTHING
    lines = []
    for row, own in seconds.items():
        accuracies = [100 * value for value in of(records, row, 0.4).values()]
        lines.append(
            [
                ROWS[row].label,
                f"{own / seconds['sgd']:.2f}",
                f"{1e3 * own:.2f} ms",
                str(len(accuracies)),
                spread(accuracies),
            ]
        )
    return table(["", "time of a step, SGD = 1", "time", "seeds", "40 % wrong"], lines)
