# ruff: noqa: E501
# (Rows and paragraphs of the page.)
"""Write docs/method-table.md and its picture from docs/results. `--check` only says whether the page is up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.method_table import TARGET as RESULTS  # noqa: E402
from benchmarks.method_table import TASKS  # noqa: E402

from afina.compare.table import quality, setting  # noqa: E402
from afina.evidence.score import is_near  # noqa: E402

TARGET = ROOT / "docs" / "method-table.md"
PICTURE = "method-table.svg"
TITLES = {
    "tweets-classifier": "tweets, classified", "tweets": "tweets, answered", "french": "French, read on (loss)",
}  # fmt: skip
LORA = "lora"
Comparison = Mapping[str, Any]
Row = Mapping[str, Any]


def label(row: Row) -> str:
    """A method as the page names it: LoRA by where it lies, not by how the command line said so."""
    method, settings = str(row["name"]).split(":")[0], row["settings"]
    return f"{method}, all linear layers" if settings.get("target_modules") == "all-linear" else method


def measured() -> dict[str, Comparison]:
    """The comparisons that are kept, by recipe; former ones do not tell which methods were trained."""
    paths = {task: RESULTS / f"{task}.json" for task in TASKS}
    found = {task: json.loads(path.read_text(encoding="utf-8")) for task, path in paths.items() if path.is_file()}
    return {task: made for task, made in found.items() if all("trained" in row for row in done(made))}


def done(comparison: Comparison) -> list[Row]:
    """The rows with a result."""
    return [row for row in comparison["rows"] if row["status"] == "done"]


def level(comparison: Comparison) -> list[Row]:
    """Trained methods that are not significantly worse than the best, itself among them."""
    return [row for row in done(comparison) if row["trained"] is not False and not row["worse"]]


def order(comparisons: Mapping[str, Comparison]) -> list[str]:
    """Methods by their mean place, of the tasks on which they have a result."""
    places: dict[str, list[float]] = {}
    for comparison in comparisons.values():
        rows = done(comparison)
        for place, row in enumerate(rows):
            places.setdefault(label(row), []).append(place / len(rows))
    return sorted(places, key=lambda name: fmean(places[name]))


def cell(row: Row | None, comparison: Comparison) -> str:
    """A method's result on one task."""
    if row is None:
        return ""
    if row["status"] != "done":
        return row["status"]
    text = quality(row["quality"], comparison["metric"]).replace(" %", "")
    if row["trained"] is False:
        return f"({text})"
    if row["name"] == comparison["best"]:
        return f"**{text}**"
    return text if row["worse"] else f"{text} ="


def relative(name: str, key: str, comparisons: Mapping[str, Comparison]) -> str:
    """What a method takes, in what LoRA takes on the same task; the mean of the tasks."""
    shares = []
    for comparison in comparisons.values():
        by_name = {label(row): row for row in done(comparison)}
        if name in by_name and LORA in by_name:
            shares.append(by_name[name][key] / by_name[LORA][key])
    return f"{fmean(shares):.2g}" if shares else ""


def table(comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """All methods on all tasks."""
    heads = [TITLES[task] for task in comparisons]
    yield f"| method | {' | '.join(heads)} | trained, % | memory / LoRA | time / LoRA |"
    yield "|---|" + "--:|" * (len(heads) + 3)
    for name in order(comparisons):
        rows = {t: next((r for r in c["rows"] if label(r) == name), None) for t, c in comparisons.items()}
        cells = [cell(rows[task], comparison) for task, comparison in comparisons.items()]
        shares = [100 * row["share"] for row in rows.values() if row is not None and row["status"] == "done"]
        costs = [relative(name, key, comparisons) for key in ("memory_mb", "cpu_s")]
        yield f"| {name} | {' | '.join([*cells, f'{fmean(shares):.3g}', *costs])} |"


def sentences(task: str, comparison: Comparison) -> Iterator[str]:
    """What one task says."""
    rows, same = done(comparison), level(comparison)
    best = next(row for row in rows if row["name"] == comparison["best"])
    metric = comparison["metric"]
    trained = [row for row in rows if row["trained"] is not False]
    yield (f"- *{TITLES[task].capitalize()}.* {setting(comparison)} The best is {label(best)}, "
           f"{quality(best['quality'], metric)}; {len(same)} of {len(trained)} trained methods are not significantly "
           f"worse: {', '.join(label(row) for row in same)}. {untrained(rows)}")  # fmt: skip
    least = min(same, key=lambda row: row["trainable"])
    yield (f"  The one of them with the fewest trained parameters is {label(least)} ({least['trainable']:,}, "
           f"{label(best)} {best['trainable']:,}). Half of the trained methods are within "
           f"{spread(trained, best, metric)} of the best. {searched(rows)}")  # fmt: skip


def untrained(rows: Sequence[Row]) -> str:
    """Which methods' loss did not fall."""
    names = [label(row) for row in rows if row["trained"] is False]
    return f"Not trained in {rows[0]['seeds'][-1] + 1} seeds: {', '.join(names)}." if names else "All of them trained."


def spread(rows: Sequence[Row], best: Row, metric: str) -> str:
    """How far the method in the middle is from the best."""
    return told(median(abs(best["quality"]["mean"] - row["quality"]["mean"]) for row in rows), metric)


def told(value: float, metric: str) -> str:
    """A difference in the metric's unit."""
    return f"{100 * value:.1f} points" if metric == "accuracy" else f"{value:.3f} nats"


def searched(rows: Sequence[Row]) -> str:
    """Where the rates that were found lie."""
    end = own = 0
    found = [row for row in rows if row["search"] and row["search"]["best"] is not None]
    for row in found:
        rates = sorted(trial["learning_rate"] for trial in row["search"]["trials"])
        own += row["search"]["best"] == rates[1]  # of .3, 1, 2, 5, 10 times the method's own
        end += row["search"]["best"] in (rates[0], rates[-1])
    return (f"Of {len(found)} searched rates {own} are the method's own, {end} lie at an end of the five that were tried, "
            "so that a better one may lie beyond.")  # fmt: skip


def picture(comparisons: Mapping[str, Comparison]) -> None:
    """Every method's interval on every task, ordered as in the table."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "afina"  # the same picture from the same numbers
    names = order(comparisons)
    figure = Figure(figsize=(9, 0.24 * len(names) + 1), layout="constrained")
    for number, (task, comparison) in enumerate(comparisons.items()):
        axes = figure.add_subplot(1, len(comparisons), number + 1)
        percent = 100 if comparison["metric"] == "accuracy" else 1
        for row in done(comparison):
            place, value = names.index(label(row)), row["quality"]
            middle, ends = percent * value["mean"], [percent * value["low"], percent * value["high"]]
            colour = "0.75" if row["trained"] is False else "0.45" if row["worse"] else "tab:blue"
            axes.plot(ends, [place, place], color=colour, linewidth=1.2)
            axes.plot([middle], [place], "o", color=colour, markersize=4)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names), fontsize=7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(TITLES[task] + (", %" if percent == 100 else ""), fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    FigureCanvasSVG(figure).print_svg(RESULTS / PICTURE, metadata={"Date": None})


def short(comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """What a newcomer takes home, task by task and of all."""
    for task, comparison in comparisons.items():
        rows, same, metric = done(comparison), level(comparison), comparison["metric"]
        trained = [row for row in rows if row["trained"] is not False]
        lora = next(row for row in rows if label(row) == LORA)
        behind = abs(same[0]["quality"]["mean"] - lora["quality"]["mean"])
        near = "at most 5 points" if metric == "accuracy" else "at most 5 % of its loss"
        alike = "one of these" if lora in same else "which is more than chance"
        place = "is the best of them" if lora in same[:1] else f"is {told(behind, metric)} behind the best, {alike}"
        yield (f"- *{TITLES[task].capitalize()}.* {len(same)} of {len(trained)} methods that trained cannot be told apart "
               f"from the best by {len(lora['seeds'])} seeds and {comparison['held_out_rows']} rows; with 95 % certainty {near} worse "
               f"are {', '.join(label(row) for row in same if row is same[0] or is_near(row, same[0], metric))}. LoRA {place}. "
               f"Another seed of one and the same method "
               f"moves it by {seeds(trained, metric)} (median); {rates(lora)}")  # fmt: skip
    everywhere = set.intersection(*({label(row) for row in level(c)} for c in comparisons.values()))
    if len(comparisons) > 1:
        yield (f"- *On all {len(comparisons)} tasks* level with the best: "
               f"{', '.join(n for n in order(comparisons) if n in everywhere) or 'none'}.")  # fmt: skip


def seeds(rows: Sequence[Row], metric: str) -> str:
    """How far the seeds of one method are apart."""
    return told(median(max(row["by_seed"].values()) - min(row["by_seed"].values()) for row in rows), metric)


def rates(row: Row) -> str:
    """What the learning rate alone did to a method, in those of its trials that went on to the end."""
    ended = [trial for trial in row["search"]["trials"] if trial["status"] == "done"]
    best, worst = (pick(ended, key=lambda trial: trial["loss"]) for pick in (min, max))
    if best is worst:
        return f"of the rates that were tried, {len(row['search']['trials']) - 1} were given up early."
    return (f"another learning rate moves LoRA's held-out loss from {best['loss']:.2f} ({best['learning_rate']:g}) to "
            f"{worst['loss']:.2f} ({worst['learning_rate']:g}).")  # fmt: skip


HEAD = """# How far the methods are apart

Generated by `python scripts/method_table_page.py` from docs/results; do not edit. Made by `python -m benchmarks.method_table`,
which goes on where it was stopped: about 90, 50 and 35 minutes of processor time (the tweets classified, answered; French), one thread.

*How to read it.* Every method trained on the same rows for the same steps, with its learning rate searched among five. A number in the
table is what it reached on rows that it had not seen, with the interval in which it lies by chance; the picture shows the same. Methods whose
intervals lie over each other may be equally good: take the one that costs least, and spend your time on data and on the learning rate.

"""
READ = f"""
![Every method's interval on every task]({{folder}}/{PICTURE})

*Bold*: the best of its task. *=*: not significantly worse than the best. *In brackets*: the training loss fell in too few of the
seeds for it to count as trained. Intervals are of 95 % over held-out rows and seeds together; comparisons are made in pairs, row by
row and seed by seed. *memory* and *time* (of the processor) in multiples of what LoRA takes on queries and values, mean of the tasks. Methods have the
settings and the places that they have by themselves (rank 8 for LoRA and its derivatives, on queries and values); `lora, all linear layers` shows what the place does.
"""


def page(comparisons: Mapping[str, Comparison]) -> str:
    """All of it."""
    links = ", ".join(f"[{TITLES[task]}](results/{task}.md) ([page](results/{task}.html))" for task in comparisons)
    lines = [
        HEAD.rstrip(),
        "",
        *short(comparisons),
        "",
        *table(comparisons),
        READ.format(folder="results").rstrip(),
        "",
        "## Task by task",
        "",
    ]
    for task, comparison in comparisons.items():
        lines += sentences(task, comparison)
    return "\n".join([*lines, "", f"Each comparison in full: {links}."]) + "\n"


def main() -> int:
    """Write or check."""
    comparisons = measured()
    text = page(comparisons)
    if "--check" in sys.argv:
        return int(not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    picture(comparisons)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
