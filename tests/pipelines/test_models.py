"""`anomaly models promote`, `rollback`, `compare` on a trained model: what a person types, and what it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Press, anomaly, write_log

from anomaly.data.contract import EVENT, NORMAL, UNKNOWN
from anomaly.errors import InputRefused
from anomaly.fitting import PartScores
from anomaly.model import AnomalyModel
from pipelines import models
from pipelines.models import Answers, later_kinds, same_rows, stretches
from registry.bundle import load_bundle, save_bundle
from registry.comparison import parity_gate
from registry.parity import reload_parity
from registry.tracking import record_run

DAY = 86_400_000_000


@dataclass(frozen=True)
class Life:
    """A registry with a champion (version 1), a way to add versions, and a log from after the training."""

    champion: AnomalyModel
    register: Callable[[AnomalyModel], int]
    later: Path
    earlier: Path


@pytest.fixture
def life(press: Press, registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    monkeypatch.setattr(models, "reload_parity", lambda folder, digest, frame, here: parity_gate(here, here))

    def register(model: AnomalyModel) -> int:
        save_bundle(model, tmp_path / "bundle")
        plain: dict[str, Any] = {"settings": {}, "fingerprint": "f" * 64, "split": {}, "metrics": {}, "history": {}}
        return record_run(model, tmp_path / "bundle", name="press", **plain).version

    champion = load_bundle(press.bundle)
    assert register(champion) == 1
    later = press.frame.assign(time=press.frame["time"] + pd.Timedelta(days=30))
    return Life(champion, register, write_log(later, tmp_path / "later.csv"), press.log)


def deafened(model: AnomalyModel) -> AnomalyModel:
    """The model with its two telling tags scaled away: the events stand out no more."""
    parts, arrays = model.to_parts()
    scale = arrays["preparer/scale"].copy()
    scale[:2] *= 1e4
    made = AnomalyModel.from_parts(parts, {**arrays, "preparer/scale": scale})
    made.canary = model.canary
    return made


def promote(life: Life, reference: str = "press", *more: object) -> Any:
    return anomaly("models", "promote", reference, "--on", life.later, "--yes", "--recall-floor", 0, *more)


def champion() -> int:
    listed = anomaly("models", "list", "--json").json["models"]
    return int(next(m["version"] for m in listed if "champion" in m["aliases"]))


def test_a_worse_challenger_is_refused_in_words(life: Life) -> None:
    life.register(deafened(life.champion))
    done = promote(life, "press", "--budget", 1000)
    assert done.status == 4 and champion() == 1
    assert "E4101" in done.err and "gate average_precision for press version 2 over version 1" in done.err
    assert "worse than the champion: average precision" in done.err and "lower, between" in done.err
    shown = anomaly("models", "show", "press").out
    assert "refused press version 2 (before: version 1)" in shown


def test_an_equal_challenger_is_promoted_and_rolled_back(life: Life) -> None:
    life.register(life.champion)
    done = promote(life, "press@challenger", "--budget", 1000, "--why", "spring clean", "--by", "ann")
    assert done.status == 0, done.err
    assert "champion of press is now version 2 in place of version 1 (by ann)" in done.out
    for name in (
        "schema",
        "events",
        "average_precision",
        "event_recall",
        "recall_floor",
        "alert_budget",
        "parity",
        "latency",
    ):
        assert f"passed  {name}: " in done.out
    assert champion() == 2
    back = anomaly("models", "rollback", "press", "--why", "too early", "--json").json
    assert (back["version"], back["before"]) == (1, 2) and champion() == 1
    shown = anomaly("models", "show", "press").out
    assert "ann promoted press version 2 (before: version 1): spring clean" in shown
    assert "rolled back press version 1 (before: version 2): too early" in shown
    entry = anomaly("models", "show", "press", "--json").json["history"][1]
    assert entry["evidence"]["events"] == 21 and entry["evidence"]["rows"] == 3000
    assert entry["evidence"]["from"] == "2026-02-04T00:00:00+00:00"


def test_rows_that_were_learned_from_do_not_count(life: Life) -> None:
    split = max(end for _, end in life.champion.seen.values())
    frame = pd.read_csv(life.earlier)
    span = pd.to_datetime(frame["time"]).max() - pd.to_datetime(frame["time"]).min()
    overlapping = frame.assign(time=pd.to_datetime(frame["time"]) + span * 3 // 4)
    log = write_log(overlapping, life.earlier.parent / "overlapping.csv")
    version = life.register(life.champion)
    done = anomaly("models", "promote", "press", "--on", log, "--yes", "--min-events", 0, "--recall-floor", 0,
                   "--budget", 1000, "--json").json  # fmt: skip
    evidence = anomaly("models", "show", "press", "--json").json["history"][-1]["evidence"]
    assert done["version"] == version and 0 < evidence["rows"] < len(frame)
    assert pd.Timestamp(evidence["from"]).value // 1000 > split
    only_seen = write_log(frame.iloc[: len(frame) // 3], life.earlier.parent / "seen.csv")
    life.register(life.champion)
    refused = anomaly("models", "promote", "press", "--on", only_seen, "--yes")
    assert refused.status == 3 and "E3302" in refused.err and champion() == version


def test_few_events_need_a_person_with_a_reason(life: Life, tmp_path: Path) -> None:
    life.register(life.champion)
    frame = pd.read_csv(life.later).iloc[:500]
    short = replace(life, later=write_log(frame, tmp_path / "short.csv"))
    refused = promote(short, "press", "--budget", 1000)
    assert refused.status == 4 and "gate events" in refused.err and "too few to tell" in refused.err
    done = promote(short, "press", "--budget", 1000, "--accept-without-events", "spare line", "--json").json
    assert done["why"] == "spare line" and champion() == 2
    assert next(g for g in done["gates"] if g["name"] == "events")["waived"] == "spare line"


def test_another_schema_is_refused_before_anything_is_scored(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = replace(life.champion.contract, period_us=120_000_000)
    life.register(replace(life.champion, contract=contract, digest=None))
    monkeypatch.setattr(models, "judge", lambda *_, **__: pytest.fail("scored"))
    done = promote(life)
    assert done.status == 4 and "gate schema" in done.err and "period: 60 s and 120 s" in done.err


def test_a_closed_gate_of_the_process_refuses(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.register(life.champion)
    monkeypatch.setattr(models, "reload_parity", lambda folder, digest, frame, here: parity_gate(here, None, "killed"))
    done = promote(life, "press", "--budget", 1000)
    assert done.status == 4 and "gate parity" in done.err and done.err.count("E4101") == 1 and champion() == 1


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("promote", "press", "--on", "later.csv"), "E2001"),  # nobody can be asked
        (("promote", "press", "--on", "later.csv", "--yes", "--margin", "-1"), "E2001"),
        (("promote", "press", "--on", "later.csv", "--yes"), "E4101"),  # the champion itself
        (("promote", "boiler", "--on", "later.csv", "--yes"), "E4001"),
        (("rollback", "press"), "E4103"),
    ],
)
def test_what_cannot_be_done_has_its_code(life: Life, args: tuple[str, ...], code: str) -> None:
    done = anomaly("models", *(str(life.later) if a == "later.csv" else a for a in args))
    assert done.status == int(code[1]) and code in done.err


# Compare ------------------------------------------------------------------------------------------------------------


def test_compare_counts_where_outcomes_differ_and_draws_it(life: Life, tmp_path: Path) -> None:
    strict = replace(life.champion, threshold=replace(life.champion.threshold, value=life.champion.threshold.value + 1))
    life.register(strict)
    out = tmp_path / "compared.png"
    told = anomaly("models", "compare", "press", "press@challenger", life.later, "--out", out, "--json").json
    assert told["rows"] == 3000 == sum(told["outcomes"].values())
    assert told["differing"] == told["outcomes"]["anomalous / normal"] > 0
    assert told["correlation"] == pytest.approx(1.0)
    longest = [s["rows"] for s in told["stretches"]]
    assert longest == sorted(longest, reverse=True) and {s["first"] for s in told["stretches"]} == {"anomalous"}
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000
    said = anomaly("models", "compare", "press", "press", life.later, "--out", out).out
    assert "outcomes differ on 0" in said


# Pieces -------------------------------------------------------------------------------------------------------------


def scored(asset: list[str], time: list[int], outcome: list[int], kind: list[int] | None = None) -> PartScores:
    n = len(asset)
    return PartScores(
        "evaluation",
        np.array(time, np.int64),
        np.array(asset, object),
        np.arange(n, dtype=np.float32),
        np.array(outcome, np.int8),
        np.array(kind or [NORMAL] * n, np.int8),
        np.zeros((n, 1), np.float32),
    )


def answers(rows: PartScores, labelled: bool) -> Answers:
    return Answers(None, rows, [], None, "", labelled)  # type: ignore[arg-type]


def test_rows_are_matched_by_asset_and_time_with_the_labels_of_whoever_read_them() -> None:
    a = answers(scored(["b", "a", "a", "a"], [1, 1, 2, 2], [0, 0, 0, 1], [UNKNOWN] * 4), labelled=False)
    b = answers(
        scored(["a", "a", "b", "c"], [2, 1, 1, 9], [1, 0, 1, 0], [EVENT, NORMAL, NORMAL, NORMAL]), labelled=True
    )
    one, two = same_rows(a, b)
    for own in (one, two):
        assert own.asset.tolist() == ["a", "a", "b"] and own.time.tolist() == [1, 2, 1]
        assert own.kind.tolist() == [NORMAL, EVENT, NORMAL]
    assert one.score.tolist() == [1, 2, 0] and two.score.tolist() == [1, 0, 2]


def test_stretches_end_at_gaps_assets_and_other_outcomes() -> None:
    a = scored(["a"] * 7 + ["b"], [1, 2, 3, 4, 50, 51, 52, 52], [1, 1, 1, 0, 1, 1, 2, 1])
    b = scored(["a"] * 7 + ["b"], [1, 2, 3, 4, 50, 51, 52, 52], [0, 0, 0, 0, 0, 0, 0, 0])
    found = stretches(a, b, 10)
    assert [(s.asset, s.first, s.rows) for s in found] == [
        ("a", "anomalous", 3), ("a", "anomalous", 2), ("a", "unscorable", 1), ("b", "anomalous", 1),
    ]  # fmt: skip
    assert stretches(a, a, 10) == [] and stretches(scored([], [], []), scored([], [], []), 10) == []


def test_judged_rows_lie_a_window_and_a_lead_after_both_trainings(press: Press) -> None:
    model = load_bundle(press.bundle)  # six rows, four minutes
    first, second = replace(model, seen={"a": (0, DAY)}), replace(model, seen={"a": (0, 2 * DAY)})
    time = [2 * DAY + m * 60_000_000 for m in (0, 10, 11)]
    rows = scored(["a"] * 3 + ["new"] * 3, time * 2, [0] * 6)
    assert later_kinds(rows, [first, second]).tolist() == [UNKNOWN, UNKNOWN, NORMAL] * 2
    assert later_kinds(rows, [first]).tolist() == [NORMAL] * 6
    with pytest.raises(InputRefused, match="E3302"):
        later_kinds(rows, [replace(model, seen={"a": (0, 3 * DAY)})])


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_scores_and_tells_a_damaged_bundle(press: Press, tmp_path: Path) -> None:
    model = load_bundle(press.bundle)
    frame = model.canary
    here = model.score_frame(frame)["anomaly_score"].to_numpy(np.float64)
    good = reload_parity(press.bundle, str(model.digest), frame, here)
    assert good.passed and good.figure < 1e-5, good.words
    bad = reload_parity(press.bundle, "0" * 64, frame, here)
    assert not bad.passed and "E4002" in bad.words
    assert json.dumps(bad.to_dict())


@pytest.mark.slow
def test_a_promotion_with_nothing_replaced_reloads_the_model_in_a_process_of_its_own(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.register(life.champion)
    monkeypatch.setattr(models, "reload_parity", reload_parity)
    done = promote(life, "press", "--budget", 1000)
    assert done.status == 0, done.err
    assert "200 rows scored anew in a process of their own" in done.out and champion() == 2
