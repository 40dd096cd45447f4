"""Feedback: verdicts become labels and a threshold, never on the word of one person where a failure class could be hidden."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import Outcome, Press, anomaly, write_log

from alerts.database import Database
from alerts.episodes import Episode
from alerts.overrides import Wanted, active_threshold, evidence_mark, threshold_changes, write_change
from alerts.store import AlertStore, BatchRecord
from alerts.users import Users
from alerts.workflow import Workflow
from anomaly.data.reading.verdicts import read_verdicts
from anomaly.encoders.fine_tuning import verdict_labels
from anomaly.errors import UsageError
from pipelines import feedback as job
from pipelines.feedback_refit import Evidence, needs_second, propose, reaches, what_if

T0, HOUR = 1_700_000_000_000_000, 3_600_000_000
MODEL = "5" * 64
WORD = {"t": "true_fault", "n": "nuisance", "k": "known_work", "s": "sensor_fault", "u": "unsure"}


def evidence(text: str, who: str = "ann") -> list[Evidence]:
    """``"3.5n 4t 5-"``: peaks with the first letter of a verdict, - for none; ``who`` judged them in turn."""
    names = who.split()
    return [
        Evidence(k, "P", float(word[:-1]), WORD.get(word[-1]), names[k % len(names)] if word[-1] != "-" else "")
        for k, word in enumerate(text.split(), 1)
    ]


MIXED = "3.1n 3.2n 3.3n 3.4k 3.6n 3.5n 3.3n 5t 6t 7t 3.2s 4.5-"


# -- pure rules ------------------------------------------------------------------------------------------------------


def test_the_proposal_removes_nuisances_and_keeps_every_true_fault() -> None:
    found = propose(evidence(MIXED), 3.0, 3.0)
    assert found.value is not None and 3.6 < found.value <= 5
    told = found.what_if
    assert told is not None
    assert (told.alerts, told.nuisance_removed, told.true_kept, told.true_lost) == (12, 7, 3, ())
    assert (told.precision_before, told.precision_after) == (0.3, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3.1n 5t", "10 are needed"),
        ("3.1n " * 12, "no alert was called a true fault"),
        ("3.1u 3.2s 3.3- " * 6, "0 verdicts"),
        ("3.1t 3.5n 3.6n 3.7n 3.8n 3.9n 4n 4.1n 4.2n 4.3n", "the verdicts ask for"),
    ],
)
def test_without_evidence_there_is_no_proposal(text: str, words: str) -> None:
    found = propose(evidence(text), 3.0, 3.0)
    assert found.value is None and words in found.why


@pytest.mark.parametrize("seed", range(30))
def test_no_proposal_loses_a_true_fault_or_goes_below_what_was_judged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alerts = [
        Evidence(k, "P", float(np.float32(3 + rng.exponential())), str(rng.choice(list(WORD.values()))), "ann")
        for k in range(40)
    ]
    now = 3.0 + rng.exponential()
    found = propose(alerts, now, 3.0)
    if found.value is not None:
        assert found.value >= 3.0
        assert all(reaches(e.peak, found.value) for e in alerts if e.verdict == "true_fault")


def test_a_lower_threshold_brings_alerts_back() -> None:
    told = what_if(evidence("3n 4t 6t"), 5.0, 3.5)
    assert (told.alerts, told.kept, told.dropped, told.regained, told.true_kept) == (1, 1, 0, 1, 2)


@pytest.mark.parametrize(
    ("text", "who", "after", "reasons"),
    [
        ("3n 3n 3n 3n 9t", "ann", 4.0, 1),  # four of five on the word of ann
        ("3n 3n 3n 3n 9t", "ann bob", 4.0, 1),  # two of five are still ann's alone
        ("3n 9t 9t 9t 9t", "ann", 4.0, 0),  # one of five is not more than 20 %
        ("3n 3n 9t 9t 9t", "ann bob", 4.0, 0),  # two people, and one of five alone
        ("3t 9t 9t 9t 9t 9t", "ann bob", 4.0, 1),  # a true fault would go
        ("3- 3- 9t 9t 9t", "ann", 4.0, 1),  # nobody said that they were nothing
        ("3n 3n 3n", "ann", 2.0, 0),  # lower: nothing is dropped
    ],
)
def test_when_one_person_may_not_decide(text: str, who: str, after: float, reasons: int) -> None:
    assert len(needs_second(evidence(text, who), 2.5, after)) == reasons


# -- on a database ---------------------------------------------------------------------------------------------------


@pytest.fixture
def database(home: Path) -> Database:
    return Database(home / "alerts.db")


def raise_alerts(database: Database, peaks: Sequence[float], threshold: float = 3.0, path: str = "") -> list[int]:
    episodes = [
        Episode("007", T0 + k * HOUR, T0 + k * HOUR, T0 + k * HOUR + 60_000_000, p, threshold, 2, (("P", 1.0),))
        for k, p in enumerate(peaks)
    ]
    batch = BatchRecord("a" * 64, MODEL, "press", "f", 9, {}, {"007": (T0, T0 + len(peaks) * HOUR)}, score_path=path)
    AlertStore(database).record_batch(batch, episodes)
    return sorted(a.id for a in AlertStore(database).alerts(limit=None))


def judge(database: Database, text: str, who: str = "ann", path: str = "") -> list[int]:
    """Alerts as in ``evidence``, in a database."""
    wanted = evidence(text, who)
    ids = raise_alerts(database, [e.peak for e in wanted], path=path)
    for id, e in zip(ids, wanted, strict=True):
        if e.verdict:
            Workflow(database).verdict(id, e.who, e.verdict)
    return ids


def feedback(*args: object, typed: str = "") -> Outcome:
    before, sys.stdin = sys.stdin, io.StringIO(typed)
    try:
        return anomaly("feedback", *args)
    finally:
        sys.stdin = before


BY = ("--by", "ann", "--why", "nuisances of June")
TWO = (*BY, "--second", "bob", "--password-stdin")
PASSWORDS = "correct horse ann\ncorrect horse bob\n"


def people(database: Database) -> None:
    for name, role in (("ann", "operator"), ("bob", "admin"), ("eve", "viewer")):
        Users(database).add(name, role, f"correct horse {name}", by="test")


SPREAD = "3.1n 3.2n 3.3n 5t 5.5t 6t 6.5t 7t 7.5t 8t 8.1t 8.2t 8.3t 8.4t 8.5t 8.6t"


def test_a_threshold_is_proposed_applied_shown_and_undone(database: Database) -> None:
    judge(database, SPREAD)
    told = feedback("propose", "--json").json
    assert told["value"] > 3.3 and told["what_if"]["nuisance_removed"] == 3 and told["two_people"] == []
    assert active_threshold(database, MODEL) is None, "proposing changes nothing"
    before = AlertStore(database).dump()["alerts"]
    done = feedback("apply", *BY, "--json").json
    assert (done["actor"], done["why"], done["value"], done["before"]) == ("ann", BY[3], told["value"], None)
    held = active_threshold(database, MODEL)
    assert held is not None and held.value == told["value"]
    assert AlertStore(database).dump()["alerts"] == before, "what was stored stays"
    shown = feedback("show").out
    assert "in place of the model's own 3" in shown and BY[3] in shown
    again = feedback("apply", *BY)
    assert again.status == 2 and "the threshold that holds is the one" in again.err
    undone = feedback("undo", "--by", "ann", "--why", "missed one", "--json").json
    assert (undone["value"], undone["undoes"]) == (None, done["id"])
    assert active_threshold(database, MODEL) is None
    assert [c.why for c in threshold_changes(database)] == [BY[3], "missed one"], "the record only grows"
    assert feedback("undo", "--by", "ann", "--why", "x").status == 2


def test_changes_stack_and_are_taken_back_one_by_one(database: Database) -> None:
    judge(database, SPREAD)
    for value in (3.05, 3.06):
        assert feedback("apply", *BY, "--value", value).status == 0
    for expected in (3.05, None):
        assert feedback("undo", *BY, "--json").json["value"] == expected
    assert feedback("undo", *BY).status == 2


def test_a_change_on_evidence_that_moved_is_refused(database: Database) -> None:
    ids = judge(database, SPREAD)
    case = job.read_case(database)
    Workflow(database).verdict(ids[0], "bob", "true_fault")
    with pytest.raises(UsageError, match="look at the proposal again"):
        job.apply(database, case, job.proposal(case), job.Actors("ann", "x"))
    assert threshold_changes(database) == []


def test_nothing_may_delete_or_change_the_record(database: Database) -> None:
    import sqlalchemy as sa

    raise_alerts(database, [5.0])
    write_change(database, Wanted(MODEL, "press", 4.0, "ann", "x"), evidence_mark(database))
    for text in ("DELETE FROM alert_events", "UPDATE alert_events SET comment = 'y'"):
        with pytest.raises(sa.exc.IntegrityError), database.writing() as connection:
            connection.execute(sa.text(text))
    assert [c.why for c in threshold_changes(database)] == ["x"]


# -- one person cannot hide a failure class ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "typed", "said"),
    [
        (BY, "", "two people"),
        ((*BY, "--second", "bob"), "", "--password-stdin"),
        ((*BY, "--second", "ann", "--password-stdin"), PASSWORDS, "twice"),
        ((*BY, "--second", " Ann ", "--password-stdin"), PASSWORDS, "twice"),
        ((*BY, "--second", "eve", "--password-stdin"), "correct horse ann\ncorrect horse eve\n", "eve, who is none"),
        ((*BY, "--second", "zed", "--password-stdin"), PASSWORDS, "zed, who is none"),
        (TWO, "correct horse ann\nwrong\n", "E2001"),
        (TWO, "wrong\ncorrect horse bob\n", "E2001"),
        (("--by", "zed", "--why", "x", *TWO[4:]), PASSWORDS, "zed, who is none"),
        (("--by", "system", "--why", "x"), "", "E2001"),
    ],
)
def test_one_person_cannot_drop_a_true_fault(database: Database, args: tuple[str, ...], typed: str, said: str) -> None:
    judge(database, SPREAD)
    people(database)
    done = feedback("apply", "--value", 5.2, *args, typed=typed)
    assert done.status == 2 and said in done.err
    assert threshold_changes(database) == []


def test_two_people_may_and_both_are_written_down(database: Database) -> None:
    judge(database, SPREAD)
    people(database)
    proposed = feedback("propose", "--value", 5.2)
    assert "needs --second: alert 4 was a true fault" in proposed.out
    done = feedback("apply", "--value", 5.2, *TWO, "--json", typed=PASSWORDS).json
    assert (done["actor"], done["second"]) == ("ann", "bob")
    assert done["evidence"]["true_lost"] == [4] and done["evidence"]["reasons"]
    assert feedback("undo", "--by", "ann", "--why", "too high").status == 0, "lowering needs one person"


def test_one_persons_verdicts_alone_cannot_drop_many_alerts(database: Database) -> None:
    judge(database, "3.1n 3.2n 3.3n 3.4n 3.5n 3.6n 3.7n 3.8n 3.9n 9t")
    done = feedback("apply", *BY)
    assert done.status == 2 and "on the word of ann alone" in done.err


def test_taking_back_a_lower_threshold_is_raising_it(database: Database) -> None:
    ids = judge(database, SPREAD)
    people(database)
    assert feedback("apply", "--value", 8.0, *TWO, typed=PASSWORDS).status == 0
    assert feedback("apply", "--value", 3.0, *BY).status == 0
    refused = feedback("undo", *BY)
    assert refused.status == 2 and "two people" in refused.err
    assert len(ids) == 16 and feedback("undo", *TWO, typed=PASSWORDS).status == 0


def test_a_threshold_by_hand_stays_where_something_is_known(database: Database) -> None:
    judge(database, SPREAD)
    for value in (2.5, "nan", "inf"):
        assert feedback("apply", "--value", value, *BY).status == 2
    assert feedback("propose", "--value", 4.0, "--least", 99).status == 2
    assert feedback("propose", "--model", "other").status == 2
    assert threshold_changes(database) == []


# -- labels and what to look at next -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verdicts.csv", "verdicts.parquet"])
def test_labels_are_what_training_reads(database: Database, tmp_path: Path, name: str) -> None:
    judge(database, "3.1n 5t 4u 4-")
    assert "wrote 2 intervals" in feedback("labels", "--out", tmp_path / name).out
    frame = read_verdicts(tmp_path / name)
    assert frame["asset"].tolist() == ["007", "007"]
    time = T0 + np.array([0, 60_000_000, 60_000_001, HOUR, HOUR + 60_000_000, 2 * HOUR])
    assert verdict_labels(time, np.full(6, "007", dtype=object), frame).tolist() == [0, 0, -1, 1, 1, -1]


def test_labels_go_to_no_other_kind_of_file(database: Database, tmp_path: Path) -> None:
    judge(database, "3.1n")
    assert feedback("labels", "--out", tmp_path / "verdicts.txt").status == 2
    assert feedback("labels").out.startswith("asset,start,end,verdict")


def test_next_asks_for_what_is_near_the_threshold_and_for_bad_actors(database: Database) -> None:
    judge(database, "9- 3.1- 3.05n 4- 8-")
    asked = feedback("next", "--count", 4, "--json").json["next"]
    assert [a["alert"] for a in asked] == [2, 5, 4, 1], "nearest, newest of the worst actor, in turn"
    assert "near the threshold" in asked[0]["why"] and "4 alerts of 007 P" in asked[1]["why"]
    assert feedback("next", "--count", 1).out.count("\n") == 2


def test_without_alerts_the_commands_say_so_and_make_nothing(home: Path) -> None:
    for line in (["show"], ["propose"], ["next"], ["apply", *BY], ["undo", *BY]):
        done = feedback(*line)
        assert done.status == 2 and "no alerts yet" in done.err
    assert not home.exists()


def test_of_two_models_of_a_name_the_one_in_use_is_meant(database: Database) -> None:
    judge(database, SPREAD)
    late = Episode("007", T0 - HOUR, T0 - HOUR, T0 - HOUR, 4.0, 3.0, 1, (("P", 1.0),))
    AlertStore(database).record_batch(BatchRecord("b" * 64, "6" * 64, "press", "f", 1, {}, {"007": (0, 1)}), [late])
    assert job.read_case(database, "press").model == "6" * 64
    assert job.read_case(database, MODEL[:8]).model == MODEL


# -- scoring with it -----------------------------------------------------------------------------------------------------


def test_scoring_uses_the_threshold_and_says_so_and_stored_scores_stay(
    press: Press, home: Path, tmp_path: Path
) -> None:
    def scored(name: str, log: Path) -> dict[str, Any]:
        return anomaly("score", log, "--model", press.bundle, "--out", tmp_path / name, "--json").json

    first = scored("one.parquet", press.log)
    before, database = (tmp_path / "one.parquet").read_bytes(), Database(home / "alerts.db")
    for alert in AlertStore(database).alerts(limit=None):
        Workflow(database).verdict(alert.id, "ann", "true_fault")
    own = job.read_case(database).own
    value = float(np.float32(own)) + 1.0
    case = job.read_case(database)
    wanted = Wanted(
        case.model, case.name, value, "ann", "too many", "bob", what_if(case.evidence, own, value).to_dict()
    )
    write_change(database, wanted, case.mark)
    assert job.stored_rows(case, database, value)["before"] == first["outcomes"]["anomalous"]
    later = press.frame.assign(time=press.frame["time"] + pd.Timedelta(days=30))
    second = scored("two.parquet", write_log(later, tmp_path / "later.csv"))
    (notice,) = [n for n in second["notices"] if "set by ann and bob" in n]
    assert f"in place of the model's own {own:.6g}" in notice
    found = pq.read_table(tmp_path / "two.parquet").to_pandas()
    assert set(found["threshold"]) == {np.float32(value)}
    assert second["outcomes"]["anomalous"] == (found["anomaly_score"] >= np.float32(value)).sum()
    assert second["outcomes"]["anomalous"] < first["outcomes"]["anomalous"]
    assert (tmp_path / "one.parquet").read_bytes() == before
    newest = max(AlertStore(database).alerts(limit=None), key=lambda a: a.start_us)
    assert newest.threshold == pytest.approx(value)


def test_a_watch_takes_the_threshold_up_while_it_runs(press: Press, home: Path, tmp_path: Path) -> None:
    from pipelines.watch import Watch, WatchOptions
    from registry.bundle import load_bundle

    folder, database = tmp_path / "in", Database(home / "alerts.db")
    folder.mkdir()
    model = load_bundle(press.bundle)
    own, digest = model.threshold.value, str(model.digest)
    watch = Watch(folder, model, "press", tmp_path / "out", str(home / "alerts.db"), tmp_path / "state",
                  WatchOptions(0, settle_s=0.0))  # fmt: skip

    def thresholds(name: str, rows: pd.DataFrame) -> list[float]:
        write_log(rows, folder / name)
        done = watch.turn(watch.new_files()[0])
        watch.record()
        said.extend(done.notices)
        return sorted({t for path in done.scores for t in pq.read_table(path)["threshold"].to_pylist()})

    said: list[str] = []
    assert thresholds("a.csv", press.frame.iloc[:200]) == [pytest.approx(own, rel=1e-6)]
    write_change(
        database, Wanted(digest, "press", own + 1, "ann", "x", evidence={"before": own}), evidence_mark(database)
    )
    assert thresholds("b.csv", press.frame.iloc[200:400]) == [pytest.approx(own + 1, rel=1e-6)]
    assert any("set by ann" in s for s in said)
    undo = Wanted(digest, "press", None, "ann", "y")
    job.write_undo(database, undo, evidence_mark(database))
    assert thresholds("c.csv", press.frame.iloc[400:600]) == [pytest.approx(own, rel=1e-6)]
    assert model.threshold.value == own, "the model that was given stays as it was"


def test_another_model_keeps_its_own_threshold(fitted: Any, database: Database) -> None:
    write_change(database, Wanted(MODEL, "press", 4.0, "ann", "x", evidence={"before": 3.0}), evidence_mark(database))
    for digest, told in ((MODEL, True), ("6" * 64, False), (None, False)):
        model = replace(fitted.model, digest=digest)
        found, words = job.with_threshold(model, database)
        assert bool(words) == told and (found is model) != told
    assert job.with_threshold(replace(fitted.model, digest=MODEL), None)[1] == ""
