"""The tables of `cost/step_cost.py`, in Markdown, for the terminal and for docs/cost.md."""

from collections.abc import Iterable, Sequence

from benchmarks.records import Record
from benchmarks.tables import table

TITLES = {
    "mlp": "MLP, 784-256-256-10",
    "strided_cnn": "Strided CNN, 16-32-32 channels, 28 x 28 x 1",
    "resnet8": "ResNet-8, 16-32-64 channels, group normalisation, 32 x 32 x 3",
    "transformer": "Transformer, 2 blocks of width 64, sequences of 64 of 256 tokens",
    "resnet18": "ResNet-18, BatchNorm, bfloat16, 32 x 32 x 3",
}


def markdown(records: Sequence[Record]) -> str:
    """Returns one table per device and network."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["device"], record["machine"], record["model"]), []).append(record)
    order = list(TITLES)
    parts = []
    for (device, machine, model), group in sorted(
        groups.items(), key=lambda item: (item[0][:2], order.index(item[0][2]))
    ):
        parts += [f"### {TITLES[model]}", f"On {device} ({machine}); {provenance(group)}.", cost_table(group)]
    return "\n\n".join(parts)


def provenance(records: Iterable[Record]) -> str:
    """Returns the versions, and the rounds measured."""
    versions: dict[str, set[str]] = {}
    for record in records:
        for package, version in record["versions"].items():
            versions.setdefault(package, set()).add(version)
    rounds = {record["rounds"] for record in records if "refresh" not in record["row"]}
    packages = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in versions.items())
    few, many = min(rounds), max(rounds)
    if many == 0:
        return f"{packages}; counts alone"
    return f"{packages}; {few if few == many else f'{few} to {many}'} rounds"


def cost_table(records: Sequence[Record]) -> str:
    """Returns the table of one network on one device: counts, then the time with every batch size."""
    batch_sizes = sorted({record["batch_size"] for record in records})
    own = {(record["row"], record["batch_size"]): record for record in records}
    # Counts are shown for the batch size that has every row.
    shown = max(batch_sizes, key=lambda size: (sum(key[1] == size for key in own), -size))
    rows = dict.fromkeys(record["row"] for record in sorted(records, key=lambda r: r["batch_size"] != shown))
    units = {
        framework: own[row, shown]
        for framework, row in (("jax", "sgd"), ("torch", "torch.optim.SGD"))
        if (row, shown) in own
    }
    titles = [
        "",
        "flops",
        "bytes",
        "memory",
        "state",
        "first call",
        *(f"{size} examples" for size in batch_sizes),
    ]
    lines = []
    for row in rows:
        record = own[row, shown]
        unit = units[record["framework"]]
        lines.append(
            [
                row if record["framework"] == "torch" else f"**{row}**" if row == "sgd" else row,
                "–" if "automatic" in row else ratio(record, unit, "flops"),
                "–" if "automatic" in row else ratio(record, unit, "bytes_accessed"),
                ratio(record, unit, "temporary_bytes"),
                state(record),
                ratio(record, unit, "first_call_seconds"),
                *(time(own.get((row, size))) for size in batch_sizes),
            ]
        )
    return table(titles, lines, padded=True)


def ratio(record: Record, unit: Record, key: str) -> str:
    """Returns a count relative to SGD's; PyTorch counts only flops."""
    return f"{record[key] / unit[key]:.2f}" if key in record and key in unit else "–"


def state(record: Record) -> str:
    """Returns the optimizer's state in copies of the parameters."""
    if "state_bytes" not in record or record["row"] in ("forward pass", "gradient"):
        return "–"
    return f"{record['state_bytes'] / record['parameter_bytes']:.2f}"


def duration(seconds: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def time(record: Record | None) -> str:
    """Returns the ratio to SGD with its quartiles, and milliseconds."""
    if record is None or "seconds" not in record:
        return ""
    low, median, high = record["seconds_relative_to_sgd"]
    return f"{median:.2f} ({low:.2f}–{high:.2f}), {duration(record['seconds'][1])}"
