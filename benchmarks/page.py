"""How fast the page answers twenty people on one core, with 100,000 or 1,000,000 alerts in the database.

    python benchmarks/page.py [--alerts 100000 1000000] [--users 20] [--seconds 30] [--think 0 1] [--write FILE]

A database of made-up alerts (40 assets, two years, most of them closed) is served by a process of its own that is held to one
core; the clients hold to the others. Each user is signed in and asks for a page, waits ``think`` seconds on average, and asks
for the next: the list, the list with one of eleven filters, a page further down, one alert. Every answer must be a 200 and a
whole page. The table gives the 50th and 99th percentile of the time to the last byte by kind, the goal and the verdict.

Both ways of asking are measured. Without a pause (``0``) the queue holds all twenty at any time, as if nobody ever read: by this
the goal is judged. With a pause of one second on average the users are more like people; these rows are for comparison.

A busy machine blurs all of this. So two more rows tell what an answer cost the server's processor, and for which share of the
time its core worked for others: the times are those of one core where that is a few percent.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from alerts import tables
from alerts.database import Database
from alerts.passwords import Cost
from alerts.texts import search_text
from alerts.users import Users
from alerts.workflow import clock_us

DAY, HOUR = 86_400_000_000, 3_600_000_000
GOALS_MS = {100_000: 150.0, 1_000_000: 500.0}
WEIGHT_KB = 250.0
HEAD = ("| alerts | what | goal | measured | verdict |", "|---|---|---|---|---|")
KINDS = ("list", "filter", "older page", "alert")
ASSETS = tuple(f"line-{k // 8 + 1}-unit-{k % 8 + 1}" for k in range(40))
TAGS = tuple(f"{what}_{k}" for what in ("Temp", "Flow", "Vacuum", "Pressure", "Current") for k in range(1, 9))
PASSWORD = "eleven quiet wet felts"  # noqa: S105 - of made-up users
_BLOCK = 20_000
_FILTERS: tuple[dict[str, str], ...] = (
    {"state": "new"}, {"state": "closed"}, {"state": "all", "priority": "1"}, {"asset": ASSETS[7], "state": "all"},
    {"text": "vacuum_3", "state": "all"}, {"text": "unit-5"}, {"text": "no such text", "state": "all"},
    {"kind": "flat_line", "state": "all"}, {"priority": "2"}, {"assignee": "user-3", "state": "all"},
    {"asset": ASSETS[3], "priority": "1", "state": "all", "text": "flow"},
)  # fmt: skip


def seed(database: Database, alerts: int, users: int) -> list[str]:
    """Write alerts, their past, answered time and users; the session tokens of the users."""
    rng, now = np.random.default_rng(11), clock_us()
    with database.writing() as connection:
        for first in range(0, alerts, _BLOCK):
            rows = [_row(rng, now, k, alerts) for k in range(first, min(first + _BLOCK, alerts))]
            connection.execute(sa.insert(tables.alerts), rows)
            past = [_past(k + 1, row) for k, row in enumerate(rows, first) if row["state"] != "new"]
            connection.execute(sa.insert(tables.alert_events), past)
        spans = [{"asset": a, "model": "m1", "start_us": now - 800 * DAY, "end_us": now} for a in ASSETS]
        connection.execute(sa.insert(tables.coverage), spans)
    people = Users(database, cost=Cost(16, 1, 1))
    for k in range(users):
        people.add(f"user-{k}", "operator", PASSWORD, by="benchmark")
    return [people.sign_in(f"user-{k}", PASSWORD)[0] for k in range(users)]


def _row(rng: np.random.Generator, now: int, k: int, alerts: int) -> dict[str, object]:
    """One alert; the last one in a hundred is open, the rest closed with a verdict."""
    start = now - int((alerts - k) / alerts * 730 * DAY) - int(rng.integers(0, HOUR))
    asset, tag = ASSETS[rng.integers(len(ASSETS))], TAGS[rng.integers(len(TAGS))]
    kind = "anomaly" if rng.random() < 0.9 else "flat_line"
    cause = tag if kind == "flat_line" else ""
    is_open = k > 0.99 * alerts or rng.random() < 0.002
    state = str(rng.choice(["new", "acknowledged", "in_work", "shelved"])) if is_open else "closed"
    tags = [[tag, 0.7], [TAGS[rng.integers(len(TAGS))], 0.2]]
    reasons = [
        {"tag": t, "share": s, "value": 3.25, "low": 1.0, "high": 2.0, "direction": "high"} for t, s in tags
    ]  # fmt: skip
    return {
        "asset": asset, "model": "m1", "model_name": "paper-line", "start_us": start, "peak_us": start + HOUR // 2,
        "end_us": start + HOUR, "peak_score": 3 + float(rng.exponential()), "threshold": 3.0, "rows": 60, "lead_us": 4 * HOUR,
        "top_tags": json.dumps(tags), "state": state, "created_at": start + HOUR, "priority": int(rng.integers(1, 4)),
        "kind": kind, "cause": f"{cause}#{k}" if cause else "", "reasons": json.dumps({"tags": reasons, "alike": []}),
        "version": 1 if state == "new" else 2, "assignee": f"user-{k % 20}" if k % 5 == 0 else None,
        "verdict": "nuisance" if state == "closed" else None, "closed_at": start + DAY if state == "closed" else None,
        "acknowledged_at": None if state == "new" else start + 2 * HOUR,
        "shelved_until": now + DAY if state == "shelved" else None,
        "search": search_text(asset, cause, (str(t) for t, _ in tags)),
    }  # fmt: skip


def _past(id: int, row: dict[str, object]) -> dict[str, object]:
    action = "verdict" if row["state"] == "closed" else "acknowledge"
    return {"alert_id": id, "at": row["acknowledged_at"], "actor": "user-1", "action": action, "from_state": "new",
            "to_state": row["state"], "comment": "", "detail": "{}"}  # fmt: skip


@dataclass
class Taken:
    """What the users saw: milliseconds by kind, what went wrong, bytes of the largest whole page."""

    ms: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, ms: float, fault: str) -> None:
        """One answer."""
        with self.lock:
            self.ms[kind].append(ms)
            if fault:
                self.faults.append(f"{kind}: {fault}")


def user(port: int, token: str, number: int, alerts: int, think_s: float, until: float, taken: Taken) -> None:
    """One person: asks, waits, asks."""
    draw, after = random.Random(number), ""  # noqa: S311 - which page to ask for
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    time.sleep(draw.random() * think_s)
    while time.monotonic() < until:
        kind = draw.choice(KINDS)
        path = _path(kind, draw, alerts, after)
        began = time.perf_counter()
        try:
            connection.request("GET", path, headers={"cookie": f"anomaly_session={token}"})
            answer = connection.getresponse()
            body = answer.read()
            fault = "" if answer.status == 200 and b"</html>" in body else f"{path} gave {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            body, fault = b"", f"{path}: {error!r}"
            connection.close()
        taken.add(kind, 1000 * (time.perf_counter() - began), fault)
        if kind in ("list", "older page"):
            match = re.search(rb"after=([\d.]+)", body)
            after = match[1].decode() if match else ""
        if think_s:
            time.sleep(min(draw.expovariate(1 / think_s), 5 * think_s))
    connection.close()


def _path(kind: str, draw: random.Random, alerts: int, after: str) -> str:
    if kind == "alert":
        return f"/alerts/{draw.randint(1, alerts)}"
    if kind == "filter":
        return "/?" + urlencode(draw.choice(_FILTERS))
    return "/?" + urlencode({"state": "all", "after": after}) if kind == "older page" and after else "/"


def serve(path: str, port: int) -> None:
    """The page as `anomaly serve` runs it, held to the first core that this process may use."""
    import uvicorn

    from alerts.web.app import create_app
    from alerts.web.services import Services

    uvicorn.run(
        create_app(Services(Database(path, wait_s=5.0))),
        port=port,
        log_level="warning",
        limit_concurrency=200,
        timeout_keep_alive=15,
    )


class Server:
    """The server as a process on one core; ``cpu_s`` is what it used so far."""

    def __init__(self, database: Path, port: int) -> None:
        core = min(os.sched_getaffinity(0))
        command = ["taskset", "-c", str(core), sys.executable, __file__, "--serve", str(database), str(port)]
        self.process, self.port, self.core = subprocess.Popen(command), port, core
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {core} or {core})
        while not self._alive():
            time.sleep(0.05)

    def _alive(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            if self.process.poll() is not None:
                raise SystemExit("the server: expected it to start, got an exit") from None
            return False

    def cpu_s(self) -> float:
        """Processor seconds so far (Linux)."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def core_s(self) -> float:
        """Seconds so far in which the server's core worked for anybody (Linux)."""
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        busy = next(line.split()[1:] for line in lines if line.startswith(f"cpu{self.core} "))
        return sum(int(part) for k, part in enumerate(busy[:8]) if k not in (3, 4)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


def page_weight(port: int, token: str) -> float:
    """Kilobytes of the heaviest page with its scripts and style sheets, nothing cached."""

    def size(path: str) -> tuple[bytes, int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path, headers={"cookie": f"anomaly_session={token}"})
        body = connection.getresponse().read()
        return body, len(body)

    heaviest = 0
    for path in ("/?state=all", "/alerts/1", "/handover", "/figures", "/health"):
        body, total = size(path)
        parts = set(re.findall(rb'(?:src|href)="(/static/[^"]+)"', body))
        heaviest = max(heaviest, total + sum(size(p.decode())[1] for p in parts))
    return heaviest / 1000


def measure(folder: Path, alerts: int, given: argparse.Namespace) -> list[str]:
    """Rows of the table for one size of the database."""
    path = folder / f"{alerts}.db"
    began = time.monotonic()
    tokens = seed(Database(path), alerts, given.users)
    print(f"{alerts:,} alerts written in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    server = Server(path, given.port)
    rows: list[str] = []
    try:
        _rush(server.port, tokens, alerts, 0.2, 3.0)  # what is kept in memory is in memory
        for think_s in given.think:
            began, cpu_s, core_s = time.monotonic(), server.cpu_s(), server.core_s()
            taken = _rush(server.port, tokens, alerts, think_s, given.seconds)
            cpu_s, core_s = server.cpu_s() - cpu_s, server.core_s() - core_s
            rows += _table(alerts, think_s, taken, cpu_s, max(core_s - cpu_s, 0.0) / (time.monotonic() - began))
        weight = page_weight(server.port, tokens[0])
    finally:
        server.stop()
    rows.append(_weight(alerts, weight))
    print("\n".join(rows), flush=True)
    return rows


def _rush(port: int, tokens: list[str], alerts: int, think_s: float, seconds: float) -> Taken:
    taken, until = Taken(), time.monotonic() + seconds
    people = [
        threading.Thread(target=user, args=(port, token, k, alerts, think_s, until, taken))
        for k, token in enumerate(tokens)
    ]
    for one in people:
        one.start()
    for one in people:
        one.join()
    return taken


def _told(good: bool) -> str:
    return "holds" if good else "MISSED"


def _weight(alerts: int, kilobytes: float) -> str:
    verdict = _told(kilobytes < WEIGHT_KB)
    return f"| {alerts:,} | heaviest page with scripts and styles | < {WEIGHT_KB:.0f} kB | {kilobytes:.0f} kB | {verdict} |"


def _table(alerts: int, think_s: float, taken: Taken, cpu_s: float, others: float) -> Iterator[str]:
    """The rows of one way of asking; ``others``: the share of the time that the server's core worked for others."""
    goal = next((ms for size, ms in sorted(GOALS_MS.items()) if alerts <= size), max(GOALS_MS.values()))
    head = f"| {alerts:,} | {'no' if think_s == 0 else f'{think_s:g} s'} pause, "
    for kind, ms in taken.ms.items():
        half, most = np.quantile(ms, [0.5, 0.99]) if ms else (np.nan, np.nan)
        asked, verdict = (f"≤ {goal:.0f} ms", _told(bool(most <= goal))) if think_s == 0 else ("–", "–")
        yield f"{head}{kind}: p99 of {len(ms)} (half within {half:.0f} ms) | {asked} | {most:.0f} ms | {verdict} |"
    count = sum(map(len, taken.ms.values()))
    yield f"{head}errors of {count} answers | 0 | {len(taken.faults)} | {_told(not taken.faults)} |"
    yield f"{head}processor time per answer, mean | – | {1000 * cpu_s / max(count, 1):.1f} ms | – |"
    yield f"{head}time that the server's core worked for others | – | {others:.0%} | – |"
    for fault in taken.faults[:5]:
        print(f"  {fault}")


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--think", type=float, nargs="+", default=[0.0, 1.0],
        help="mean pauses of a user between two pages, in seconds, measured one after the other; judged is 0, no pause",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8793)
    parser.add_argument("--write", type=Path, help="also write the table into this file")
    parser.add_argument("--serve", nargs=2, metavar=("DATABASE", "PORT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve[0], int(given.serve[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(HEAD))
        rows = [row for alerts in given.alerts for row in measure(Path(name), alerts, given)]
    told = "\n".join([*HEAD, *rows])
    if given.write:
        head = (
            f"# Speed of the page\n\nBy `python benchmarks/page.py`: {given.users} users, {given.seconds:g} s each way; "
            "the server on one core, SQLite, clients on another. The goal is judged by users that make no pause.\n\n"
        )
        given.write.write_text(head + told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
