"""The tables of `cost/tpu.py`: by network, against the forms by hand, what is sent, what fits."""

from collections.abc import Iterable

import pandas as pd

from benchmarks.cost.tpu_programs import HAND, NETWORKS
from benchmarks.records import Record
from benchmarks.tables import table

COUNTS = {
    "flops": "flops",
    "cycles": "cycles",
    "bytes": "bytes_accessed",
    "temporary": "temporary_bytes",
    "peak": "peak_bytes",
}
KINDS = {
    "all-reduce": "summed",
    "all-gather": "gathered",
    "reduce-scatter": "in parts",
    "others": "passed on",
}
GROUP = ("network", "chip", "chips", "layout")
NAMES = {"data": "", "fsdp": ", FSDP", "local": ", m-sharpness"}


def fill(frame: pd.DataFrame) -> dict[str, str]:
    """Name of a table -> Markdown."""
    records = frame.to_dict("records")
    trained = [record for record in records if record["network"] in NETWORKS and record["fits"]]
    published = [record for record in records if record["network"] not in NETWORKS]
    return {
        "networks": by_network(trained),
        "bases": bases(trained),
        "limit": against_by_hand(trained),
        "sent": sent(trained),
        "provenance": provenance(records),
    } | ({"fits": fits(published)} if published else {})


def grouped(records: Iterable[Record]) -> dict[tuple, dict[str, Record]]:
    """(network, chip, number of chips, layout) -> row -> record."""
    found: dict[tuple, dict[str, Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in GROUP), {})[record["row"]] = record
    return found


def place(group: tuple) -> str:
    """What is compiled for; data-parallel, unless it says otherwise."""
    _, chip, number, layout = group
    return f"{number}×{chip}{NAMES[layout]}"


def by_network(records: list[Record]) -> str:
    """Relative to the base optimizer's step; the forms by hand are compared in a table of their own."""
    parts: dict[str, list[list[str]]] = {}
    for group, rows in grouped(records).items():
        unit = base_of(group, records)
        if unit is not None:
            parts.setdefault(NETWORKS[group[0]].title, []).extend(
                [
                    row,
                    place(group),
                    *(ratio(record, unit, key) for key in COUNTS.values()),
                    f"{int(record['lines']):,}",
                    ratio(record, unit, "compile_processor_seconds"),
                ]
                for row, record in rows.items()
                if row != "base" and not row.endswith(HAND)
            )
    titles = ["", "chips", *COUNTS, "program lines", "compile time"]
    return "\n\n".join(f"### {title}\n\n{table(titles, lines)}" for title, lines in parts.items())


def bases(records: list[Record]) -> str:
    """What is 1 in the tables of the networks."""
    lines = [
        [
            group[0],
            place(group),
            *(amount(rows["base"], key) for key in ("flops", "cycles")),
            *(f"{rows['base'][key] / 1e6:,.0f} MB" for key in ("temporary_bytes", "peak_bytes")),
            f"{int(rows['base']['lines']):,}",
            f"{rows['base']['compile_processor_seconds']:.0f} s",
        ]
        for group, rows in grouped(records).items()
        if "base" in rows
    ]
    titles = ["", "chips", "flops", "cycles", "temporary", "peak", "program lines", "compile time"]
    return table(titles, lines)


def base_of(group: tuple, records: list[Record]) -> Record | None:
    """The base optimizer's step; with m-sharpness the data-parallel one."""
    groups = grouped(records)
    own = groups.get(group, {}).get("base")
    return own or groups.get((*group[:3], "data"), {}).get("base")


def against_by_hand(records: list[Record]) -> str:
    """Each method relative to its own form by hand: of all networks and chips the ratio farthest from 1."""
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for rows in grouped(records).values():
        for row, record in rows.items():
            if row + HAND in rows:
                pairs.setdefault(row, []).append((record, rows[row + HAND]))
    lines = [
        [row, f"{len(found)}", *(farthest(found, key) for key in COUNTS.values())]
        for row, found in pairs.items()
    ]
    return table(["", "programs", *COUNTS], lines)


def farthest(pairs: list[tuple[Record, Record]], key: str) -> str:
    """The ratio farthest from 1, where the compiler counts."""
    ratios = [ratio(record, other, key, 3) for record, other in pairs]
    return max((r for r in ratios if r != "–"), key=lambda r: abs(float(r) - 1), default="–")


def sent(records: list[Record]) -> str:
    """The collectives of each program; methods that send the same share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for group, rows in grouped(records).items():
        for row, record in rows.items():
            if group[2] == 1 or row.endswith(HAND):
                continue
            sizes = {kind: n / record["parameter_bytes"] for kind, n in record["collective_bytes"].items()}
            sizes["others"] = sizes.get("collective-permute", 0) + sizes.get("all-to-all", 0)
            shown = {word: f"{sizes.get(kind, 0):.2f}" for kind, word in KINDS.items()}
            key = (
                group[0],
                place(group),
                f"{sum(record['collectives'].values())}",
                f"{sum(record['asynchronous'].values())}",
                ", ".join(f"{size} {word}" for word, size in shown.items() if size != "0.00"),
                ratio(record | {"cycles": record["hidden_cycles"]}, record, "cycles"),
            )
            lines.setdefault(key, []).append(row)
    titles = ["", "network", "chips", "collectives", "asynchronous", "copies of the parameters"]
    return table(
        [*titles, "cycles meanwhile"], [[", ".join(methods), *key] for key, methods in lines.items()]
    )


def fits(records: list[Record]) -> str:
    """The published settings on one chip."""
    lines = [
        [
            f"`{record['config']}.toml`",
            record["row"],
            f"{record['batch_size_per_chip']}",
            f"{record['peak_bytes'] / 1e9:.2f} GB" if record["fits"] else "more than there is",
            "yes" if record["fits"] else "no",
        ]
        for record in records
    ]
    return table(["settings", "program", "batch", "memory", "fits"], lines)


def provenance(records: list[Record]) -> str:
    """Versions and commits."""
    found: dict[str, set[str]] = {}
    for record in records:
        for package, version in record["versions"].items():
            found.setdefault(package, set()).add(version)
    names = ", ".join(f"{package} {' and '.join(sorted(own))}" for package, own in found.items())
    code = ", ".join(sorted({record["commit"][:7] for record in records}))
    return f"{len(records)} programs; {names}; the code of {code}"


def ratio(record: Record, unit: Record, key: str, digits: int = 2) -> str:
    """A count relative to the same of another program, where the compiler has one."""
    return f"{record[key] / unit[key]:.{digits}f}" if unit.get(key, 0) > 0 else "–"


def amount(record: Record, key: str) -> str:
    """A count, where the compiler has one."""
    return f"{record[key]:.3g}" if record.get(key, 0) > 0 else "–"
