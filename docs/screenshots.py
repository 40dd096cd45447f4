"""Pictures of the page for the documents: a made-up plant is served, Chromium takes the pictures.

    python docs/screenshots.py [--out docs/pictures]

The plant is synthetic and its time is now; nothing outside this machine is asked.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn

from alerts.database import Database
from alerts.episodes import Episode
from alerts.findings import Finding, record_findings
from alerts.passwords import Cost
from alerts.planning import Planning
from alerts.store import AlertStore, BatchRecord
from alerts.users import Users
from alerts.web.app import create_app
from alerts.web.services import Services, WebSettings
from alerts.workflow import Workflow, clock_us

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
PORT = 8791
TAGS = ("Felt_Tension", "Vacuum_2", "Steam_Flow", "Bearing_4_Temp", "Motor_Current", "Stock_pH")
ASSETS = ("press-section", "dryer-3", "pump-7", "refiner-1")
PAGES = {
    "alert-list": "/",
    "alert": "/alerts/{id}",
    "hand-over": "/handover",
    "figures": "/figures",
    "health": "/health",
    "planned-work": "/planning",
    "users": "/users",
    "audit": "/audit",
}
SIZES = {"": (1280, 1000), "-phone": (390, 1100)}
TALL = {"alert": 1650}


def plant(folder: Path, now: int) -> tuple[Database, int]:
    """A database with a month of alerts and the score file behind the newest; and the number of one to look at."""
    rng = np.random.default_rng(7)
    database = Database(folder / "alerts.db")
    episodes = sorted((_episode(rng, now) for _ in range(44)), key=lambda e: e.start_us)
    last = Episode(ASSETS[0], now - 2 * HOUR, now - HOUR, now - 40 * MINUTE, 6.4, 3.0, 71, ((TAGS[0], 0.62), (TAGS[1], 0.21)),
                   reasons=_reasons(0, 6, now))  # fmt: skip
    scores = folder / "scores.parquet"
    _write_scores(scores, last, rng)
    drift = {"model": "", "first_us": now - DAY, "last_us": now, "rows_compared": 10_000, "drifts": [
        {"kind": "input", "verdict": "drift", "words": f"{TAGS[3]} lies 0.9 training deviations above what it was"}]}  # fmt: skip
    scores.with_suffix(".drift.json").write_text(json.dumps(drift), encoding="utf-8")
    spans = {asset: [(now - 31 * DAY, now - (5 if k < 3 else 300) * MINUTE)] for k, asset in enumerate(ASSETS)}
    batch = BatchRecord("a" * 64, "d41f9c0e7722aa", "paper-line", "line-2026-11.parquet", 44_000,
                        {"normal": 42_300, "anomalous": 1_280, "unscorable": 420}, spans, str(scores), 4 * HOUR)  # fmt: skip
    AlertStore(database).record_batch(batch, [*episodes, last])
    record_findings(database, [Finding("flat_line", ASSETS[2], TAGS[5], now - 5 * HOUR, now - 3 * HOUR)])
    planning = Planning(database)
    planning.set_asset(ASSETS[0], weight=2.0, budget=0.5)
    planning.plan(ASSETS[1], now + DAY, now + 2 * DAY, "felt change", "ann")
    planning.plan(ASSETS[2], now - 2 * HOUR, now + 6 * HOUR, "impeller change", "bob")
    planning.plan("", now - 9 * DAY, now - 8 * DAY, "summer stop", "ann")
    people = Users(database, cost=Cost(16, 1, 1))
    for name, role in (("ann", "admin"), ("bob", "operator"), ("carla", "viewer")):
        people.add(name, role, secrets.token_urlsafe(12), by="local")
    people.add_token("scada", "viewer", by="ann", expires_at=now + 365 * DAY)
    _work(database, now)
    newest = AlertStore(database).alerts(asset=ASSETS[0], limit=1)[0]
    return database, newest.id


def _episode(rng: np.random.Generator, now: int) -> Episode:
    start = now - int(rng.uniform(0.2, 29) * DAY)
    first = int(rng.choice(len(TAGS), p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05]))
    asset, share = ASSETS[min(first, 3)], float(rng.uniform(0.35, 0.8))
    lasted = int(rng.uniform(5, 200)) * MINUTE
    tags = ((TAGS[first], share), (TAGS[(first + 1) % len(TAGS)], (1 - share) / 2))
    peak = float(3 + rng.exponential(1.5))
    return Episode(asset, start, start + lasted // 3, start + lasted, peak, 3.0, lasted // MINUTE, tags,
                   reasons=_reasons(first, peak, start))  # fmt: skip


def _reasons(first: int, peak: float, now: int) -> str:
    directions, rng = ("low", "high", "pattern"), np.random.default_rng(first)
    tags = [
        {"tag": TAGS[(first + k) % len(TAGS)], "share": s, "value": 12.4 + 7 * k, "low": 14.0, "high": 18.5 + k,
         "direction": directions[k]}
        for k, s in enumerate((0.62, 0.21, 0.09))
    ]  # fmt: skip
    wave = np.sin(np.arange(120) / 9)
    ramp = np.maximum(np.arange(120) - 70, 0) / 12
    curves = [
        {"tag": t["tag"], "low": t["low"], "high": t["high"],
         "actual": np.round(16 + wave + rng.normal(0, 0.2, 120) + (-1) ** (k + 1) * ramp * (3 - k) / 2, 3).tolist(),
         "expected": np.round(16 + wave, 3).tolist()}
        for k, t in enumerate(tags)
    ]  # fmt: skip
    excerpt = {"before": list(range(119 * 60, -1, -60)), "tags": curves}
    alike = [{"asset": ASSETS[0], "time_us": now - 200 * DAY, "event": True, "distance": 1.3 + peak / 100}]
    return json.dumps({"tags": tags, "alike": alike, "excerpt": excerpt})


def _write_scores(path: Path, alert: Episode, rng: np.random.Generator) -> None:
    time_us = np.arange(alert.start_us - 8 * HOUR, alert.end_us + HOUR, MINUTE)
    calm = rng.gamma(2.0, 0.35, len(time_us))
    inside = (time_us >= alert.start_us) & (time_us <= alert.end_us)
    bump = np.exp(-(((time_us - alert.peak_us) / (45 * MINUTE)) ** 2))
    score = np.where(inside, np.maximum(3.0, 6.4 * bump), calm + 2.0 * bump).astype(np.float32)
    table = pa.table({"time": pa.array(time_us, pa.timestamp("us", tz="UTC")), "asset": [alert.asset] * len(time_us),
                      "anomaly_score": score})  # fmt: skip
    pq.write_table(table, path)


def _work(database: Database, now: int) -> None:
    """What people did: the older the alert, the further it has come."""
    flow, verdicts = Workflow(database), ("true_fault", "nuisance", "true_fault", "known_work", "sensor_fault")
    for k, alert in enumerate(sorted(AlertStore(database).alerts(limit=None), key=lambda a: a.start_us)):
        age = now - alert.start_us
        if age > 4 * DAY:
            flow.verdict(alert.id, "ann", verdicts[k % 5], comment="looked at on the walk-round" if k % 3 == 0 else "")
        elif age > 2 * DAY:
            flow.start(alert.id, "bob", comment="parts ordered")
        elif age > DAY:
            flow.shelve(alert.id, "ann", now + 6 * HOUR, "waiting for the felt change")
        elif age > 12 * HOUR:
            flow.acknowledge(alert.id, "bob")


@contextmanager
def served(database: Database) -> Iterator[str]:
    """The page of a database on this machine; its address."""
    app = create_app(Services(database, WebSettings(local=True)))
    server = uvicorn.Server(uvicorn.Config(app, port=PORT, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{PORT}"
    server.should_exit = True
    thread.join(5)


def picture(browser: str, address: str, to: Path, size: tuple[int, int], dark: bool = False) -> None:
    """One page as it looks in a window of ``size`` pixels."""
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=4000", f"--screenshot={to}"]
    flags += [f"--window-size={size[0]},{size[1]}"] + (["--blink-settings=preferredColorScheme=0"] if dark else [])
    subprocess.run([browser, *flags, address], check=True, capture_output=True, timeout=90)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--only", default="", help="only pictures with this name")
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("chromium: expected on the path, got nothing")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        database, id = plant(Path(folder), clock_us())
        with served(database) as address:
            for name, page in PAGES.items():
                for suffix, size in SIZES.items():
                    window = (size[0], TALL.get(name, size[1]))
                    if given.only in name:
                        picture(browser, address + page.format(id=id), given.out / f"{name}{suffix}.png", window)
            picture(browser, address + "/", given.out / "alert-list-dark.png", SIZES[""], dark=True)


if __name__ == "__main__":
    main()
