"""Shows measured rows (see `timing.measure`) as tables, fitted exponents and plots."""

from operator import itemgetter

import numpy as np
from matplotlib.figure import Figure

from arm_backbone.checkpoint.writing import replacing

from ..tables import markdown_table

FEWEST_SIZES = 3  # sizes needed to fit an exponent
COUNTS = {"forward_flops": ("forward GFLOP", 1e9), "backward_flops": ("backward GFLOP", 1e9)}
COUNTS |= {"scan_steps": ("scan steps (M)", 1e6)}  # key of a row -> title of its column and unit


def table(rows: list[dict]) -> str:
    """The rows of one case as a Markdown table. Beside a count, in brackets, is its ratio to the first candidate's."""
    first = rows[0]
    counts = {key: column for key, column in COUNTS.items() if any(row.get(key) for row in rows)}
    columns = ["", "ms", "quartiles", "times", f"time ÷ {first['baseline']}"]
    columns += [first["unit"]] if "unit" in first else []
    columns += ["peak MB"] if "peak_bytes" in first else []
    columns += [f"peak ÷ {first['tensor']}"] if "tensor" in first else []
    columns += [title for title, _ in counts.values()]
    shown = []
    for row in rows:
        low, high = (1e3 * q for q in row["quartiles"])
        cells = [row["candidate"], f"{1e3 * row['seconds']:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += [str(row["repetitions"]), f"{row['ratio']:.3g}"]
        cells += [f"{row['per_second']:.3g}"] if "per_second" in row else []
        if "peak_bytes" in first:
            cells.append(f"{row['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in row else "–")
        if "tensors" in first:
            cells.append(f"{row['tensors']:.2f}" if "tensors" in row else "–")
        for key, (_, unit) in counts.items():
            ratio = f" ({row[key] / first[key]:.2f})" if first[key] else ""
            cells.append(f"{row[key] / unit:.1f}{ratio}")
        shown.append(cells)
    return markdown_table(columns, shown, "l" + "r" * (len(columns) - 1))


def exponent_table(rows: list[dict]) -> str:
    """The fitted exponents as a Markdown table; "" if there are none."""
    fitted = exponents(rows)
    if not fitted:
        return ""
    cells = [(f"{kind}, {candidate}", f"{exponent:.2f}") for (kind, candidate), exponent in fitted.items()]
    return markdown_table(("", "exponent"), cells, "lr")


def curves(rows: list[dict]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(kind, candidate) -> pairs of size and seconds, for candidates that were measured at several sizes."""
    found: dict = {}
    for row in filter(itemgetter("scales"), rows):
        found.setdefault((row["kind"], row["candidate"]), []).append((row["size"], row["seconds"]))
    return {key: sorted(points) for key, points in found.items() if len({size for size, _ in points}) > 1}


def exponents(rows: list[dict]) -> dict[tuple[str, str], float]:
    """(kind, candidate) -> p of the least-squares fit seconds = c size^p, for curves with at least `FEWEST_SIZES`."""
    fitted = {}
    for key, points in curves(rows).items():
        if len({size for size, _ in points}) >= FEWEST_SIZES:
            fitted[key] = float(np.polyfit(*np.log(points).T, 1)[0])
    return fitted


def plot(rows: list[dict], about: dict, path: str) -> None:
    """Draw time against size if there are several sizes, otherwise bars; one panel for each kind.

    Args:
        about: see `conditions.conditions`.
        path: of the PNG file.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(6 * len(kinds), 4.5), layout="constrained")
    drawn = curves(rows)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
        of_kind = {name: points for (which, name), points in drawn.items() if which == kind}
        axes.set_title(kind)
        if of_kind:
            for name, points in of_kind.items():
                sizes, seconds = zip(*points)
                axes.loglog(sizes, [1e3 * s for s in seconds], marker="o", label=name)
            axes.set_xticks(sizes, sizes)
            axes.set_xticks([], minor=True)
            axes.set(xlabel=rows[0]["axis"], ylabel="ms")
            axes.legend()
        else:
            shown = [row for row in rows if row["kind"] == kind]
            bars = axes.barh([row["candidate"] for row in shown], [1e3 * row["seconds"] for row in shown])
            axes.bar_label(bars, [f" {1e3 * row['seconds']:.3g} ({row['ratio']:.3g})" for row in shown])
            axes.invert_yaxis()
            axes.margins(x=0.3)
            axes.set(xlabel=f"ms (and time ÷ {shown[0]['baseline']})")
    figure.suptitle(f"{about['gpu'] or about['cpu']}, threads: {about['threads']}, torch {about['torch']}", fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
