"""Our default against what people would use instead, on every case of a panel of logs, shown honestly.

    python benchmarks/detection.py PANEL                          ours and the peers, written to docs/benchmark.md
    python benchmarks/detection.py PANEL --methods ours,encoders,peers   our single encoders too
    python benchmarks/detection.py PANEL --robustness             how far ours, energy, 5-NN and PCA fall when data is damaged
    python benchmarks/detection.py PANEL --learning-curve         what they reach with half, a quarter, an eighth of the log

PANEL holds one folder per case with train.parquet, test.parquet and meta.json. Same normal training rows, same test rows,
same metric code for all. Scores are kept in --cache by case and method, under a digest of the data and of the method's
code: a run that was killed goes on where it stopped, and a changed method is measured again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.encoders import ENCODERS
from anomaly.errors import AnomalyError, Fault, UsageError
from anomaly.files import atomic_path
from benchmarks import detection_table as table
from benchmarks.detection_cases import PLAIN
from benchmarks.detection_learning import SHORTER
from benchmarks.detection_ours import CENTRED, ENCODER, OURS
from benchmarks.detection_peers import PEERS, REFERENCES, absent
from benchmarks.detection_robustness import DAMAGES
from benchmarks.detection_run import Cache, Job, Record, run_jobs
from benchmarks.encoder_cases import read_cases

DEFAULT_CACHE = Path(".anomaly") / "benchmarks" / "detection"
DEFAULT_OUT = Path("docs") / "benchmark.md"
GROUPS = {
    "ours": [OURS, CENTRED],
    "encoders": [f"{ENCODER}{name}" for name in ENCODERS],
    "peers": [*REFERENCES, *PEERS],
}
#: What is measured where every case is measured several times over.
FEW_METHODS = (OURS, "energy", "knn", "pca")


def chosen_methods(text: str | None, few: bool) -> tuple[list[str], list[str]]:
    """The methods to measure (``few``: four where none is named), and a sentence for each whose package is missing.

    Raises UsageError E2002 for a name that is none.
    """
    default = ",".join(FEW_METHODS) if few else "ours,peers"
    asked = [name.strip() for name in (text or default).split(",") if name.strip()]
    if few and text is None:
        names = asked
    else:
        names = list(dict.fromkeys(method for name in asked for method in GROUPS.get(name, [name])))
    known = {method for group in GROUPS.values() for method in group}
    for name in names:
        if name not in known:
            raise UsageError(Fault("E2002", f"methods of {', '.join([*GROUPS, *sorted(known)])}", name))
    out = [f"- {name}: left out, the package {absent(name)} is not installed" for name in names if absent(name)]
    return [name for name in names if not absent(name)], out


def report(chosen: argparse.Namespace, command: str) -> Iterator[str]:
    """Measure what was asked for; the lines to print. Raises UsageError, InputRefused."""
    if chosen.jobs < 1:
        raise UsageError(Fault("E2001", "--jobs of at least 1", chosen.jobs))
    cases = read_cases(chosen.panel, chosen.cases.split(",") if chosen.cases else ())
    changes = DAMAGES if chosen.robustness else SHORTER if chosen.learning_curve else {}
    methods, left_out = chosen_methods(chosen.methods, bool(changes))
    variants = [PLAIN, *changes]
    jobs = [Job(case, method, variant) for variant in variants for method in methods for case in cases]
    records = run_jobs(jobs, Cache(chosen.cache), 0 if chosen.in_process else chosen.jobs)
    yield from _head(len(cases), len({c.dataset for c in cases}), command)
    title = "Damaged data" if chosen.robustness else "Shorter training logs"
    yield from _changed(records, title) if changes else _comparison(records)
    failed = [*left_out, *table.failures(records)]
    yield from ["", "## Not measured", "", *failed] if failed else []


def _head(cases: int, datasets: int, command: str) -> list[str]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return [
        "# Detection benchmark",
        "",
        f"Written by `{command}` on {today}: {cases} cases of {datasets} data sets, {os.cpu_count()} cores.",
        "",
        "Every method learned from the normal rows of the training log and scored the test log. The threshold was set on the "
        "last fifth of the training log's normal rows, which the method had not learned from in that pass, at 2 false "
        "episodes per 1000 normal rows, then carried over to the method that learned from all of them; where the held-back "
        "rows cannot hold one such episode their tail is followed. No label of a test log chose anything, except in the "
        "columns that say so. Flagged rows at most ten rows apart are one episode; it is false where it touches no event. "
        "A method that floods the log has few, long episodes: read them beside the share of normal rows flagged. "
        "Lead: event start less the first alert from 16 rows before it on, negative when late. Seconds: learning from the "
        "whole training log and scoring the test log; ours include the start of its processes. Peers get rows that were "
        "filled and scaled with care, one fixed setting each. Means are over data sets; margins are intervals of 95 % from "
        "drawing data sets and their cases again. Parts of our recipe were compared on the open panel itself "
        "(docs/experiments.md): on other plants expect less of a margin than is shown for that one.",
        "",
    ]


def _comparison(records: Sequence[Record]) -> Iterator[str]:
    results = table.Results.of(records)
    yield from ["## Methods", "", *table.main_table(results), ""]
    yield from ["## Data sets", "", *table.dataset_table(results), ""]
    yield from [*table.dataset_table(results, "recall", "event recall"), ""]
    yield from [*table.dataset_table(results, "ratio", "false / nominal"), ""]
    if OURS in results.by_method:
        yield from ["## Margin of ours", "", *table.margin_table(results), ""]
    yield from ["## Goals", "", *table.goal_table(results)]


def _changed(records: Sequence[Record], title: str) -> Iterator[str]:
    yield from [
        f"## {title}",
        "",
        "The first column is the figure on the data as they are, the others its change, over the cases that have both.",
        "",
    ]
    for metric, words in (("vus_pr", "VUS-PR"), ("ap", "AP"), ("auc", "AUC"), ("recall", "event recall"),
                          ("ratio", "false / nominal"), ("flagged_normal", "normal rows flagged")):  # fmt: skip
        yield from [*table.robustness_table(records, metric, words), ""]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("panel", type=Path, help="folder of cases")
    made.add_argument(
        "--methods", help="ours, encoders, peers, or single names, with commas between; ours,peers by default"
    )
    made.add_argument("--cases", help="names with commas between; all by default")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time")
    made.add_argument("--in-process", action="store_true", help="no process beside this one, for tests and debuggers")
    made.add_argument("--out", type=Path, help=f"Markdown file to write; {DEFAULT_OUT} for the comparison")
    made.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of kept scores")
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--robustness", action="store_true", help="damage the data instead of comparing all methods")
    instead.add_argument("--learning-curve", action="store_true", help="shorten the training log instead")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Print the tables and write them; 0, or the exit status of the refusal."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser().parse_args(given)
    out = chosen.out or (None if chosen.robustness or chosen.learning_curve else DEFAULT_OUT)
    try:
        text = "\n".join(report(chosen, shlex.join(["python", "benchmarks/detection.py", *_shown(given)]))) + "\n"
        print(text, end="")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(out) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except AnomalyError as error:
        print("\n".join(fault.line() for fault in error.faults), file=sys.stderr)
        return error.exit_code
    return 0


def _shown(given: Sequence[str]) -> list[str]:
    """The arguments as a document shows them: where the results lie on this machine is nobody's business."""
    kept, skip = list[str](), False
    for word in given:
        if skip or word in ("--cache", "--out"):
            skip = not skip
        elif not word.startswith(("--cache=", "--out=")):
            kept.append(word)
    return kept


if __name__ == "__main__":
    sys.exit(main())
