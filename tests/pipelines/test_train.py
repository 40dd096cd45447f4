"""``anomaly train``: any layout in; bundle, report and registered model out; each part fitted on its own rows only."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from command_line import FLAGS, SHORT, Outcome, Press, anomaly, write_log
from processes import run_apart

from anomaly.files import TEMPORARY
from pipelines.ingest import Ingested
from registry.bundle import load_bundle, read_manifest


def arrays_of(bundle: Path) -> dict[str, np.ndarray]:
    with np.load(bundle / "arrays.npz", allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


class _References(HTMLParser):
    """Tags of a page and everything it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "background")]


def test_train_gives_bundle_report_and_a_registered_model(press_registry: Press) -> None:
    """The first model of a name is challenger and champion; the run holds settings, data, split, figures and report."""
    trained = press_registry.trained
    assert (trained["name"], trained["version"]) == ("press", 1)
    assert sorted(trained["aliases"]) == ["challenger", "champion"]
    assert load_bundle(press_registry.bundle).digest == trained["digest"]
    card = anomaly("models", "show", "press", "--json").json
    assert card["digest"] == trained["digest"]
    figures = trained["evaluation"]["figures"]
    assert card["metrics"]["event_recall"] == pytest.approx(figures["event_recall"]["value"])
    assert card["metrics"]["event_recall_low"] == pytest.approx(figures["event_recall"]["low"])
    assert "baseline_row PCA.average_precision" in card["metrics"]
    assert not list(press_registry.home.parent.rglob(f"*{TEMPORARY}*"))
    assert not list((press_registry.home / "work").iterdir())


def test_a_training_that_runs_already_is_refused_and_the_running_one_is_left_alone(press: Press, home: Path) -> None:
    refused = list[Outcome]()

    def again(*_: object) -> Ingested:
        refused.append(anomaly("train", press.log, *SHORT))
        raise KeyboardInterrupt

    with mock.patch("pipelines.train._prepare", again):
        assert anomaly("train", press.log, *SHORT).status == 130
    assert refused[0].status == 5 and "E5001" in refused[0].err and "wait for it" in refused[0].err
    assert not list((home / "work").iterdir())


def test_s62_figures_are_of_the_test_part_with_counts_and_intervals(press: Press) -> None:
    evaluation = press.trained["evaluation"]
    assert evaluation["part"] == "test"
    judged = sum(evaluation["confusion"].values())
    assert 0 < judged <= evaluation["rows"] < 0.25 * len(press.frame)
    for name in ("average_precision", "roc_auc", "recall", "event_recall", "false_episodes_per_day"):
        figure = evaluation["figures"][name]
        assert figure["count"]
        if figure["value"] == 1 and figure["low"] is None:
            assert "every resample gives the same value" in figure["note"], name
        else:
            assert figure["low"] <= figure["value"] <= figure["high"], name
    assert evaluation["figures"]["event_recall"]["low"] is not None
    assert {"always", "never", "random", "row PCA", "5-NN"} <= set(evaluation["baselines"])


def test_the_report_is_one_self_contained_file_with_the_figures(press: Press) -> None:
    page = Path(press.trained["report"]).read_text(encoding="utf-8")
    found = _References()
    found.feed(page)
    assert "script" not in found.tags
    assert not {"link", "iframe", "object", "embed"} & found.tags
    assert all(load.startswith(("data:", "#")) for load in found.loads)
    assert not re.search(r"url\(\s*['\"]?(?!data:)", page), "no style loads anything"
    pictures = [base64.b64decode(p) for p in re.findall(r"data:image/[a-z+]+;base64,([A-Za-z0-9+/=]+)", page)]
    assert len(pictures) >= 5
    assert all(p.startswith((b"\x89PNG", b"RIFF")) or b"<svg" in p[:2000] for p in pictures)
    for name in ("average precision", "events found", "false episodes per day", "row PCA", "5-NN"):
        assert name in page, name
    ours = press.trained["evaluation"]["figures"]["average_precision"]["value"]
    assert f"{ours:.3g}"[:4] in page, "the figure as trained"


@pytest.mark.slow
def test_a_second_model_of_the_name_is_challenger_only(registry_home: Path, press: Press, tmp_path: Path) -> None:
    log = write_log(press.frame[:1500], tmp_path / "a.csv")
    first, second = (anomaly("train", log, *SHORT, "--name", "kiln", "--json").json for _ in range(2))
    assert (first["version"], sorted(first["aliases"])) == (1, ["challenger", "champion"])
    assert (second["version"], second["aliases"]) == (2, ["challenger"])
    aliases = {m["version"]: sorted(m["aliases"]) for m in anomaly("models", "list", "--json").json["models"]}
    assert aliases == {1: ["champion"], 2: ["challenger"]}
    assert first["threshold"] == second["threshold"], "one log, one seed, one model"
    assert first["bundle"] is None
    assert anomaly("score", log, "--model", "kiln@challenger", "--out", tmp_path / "s.parquet").status == 0


@pytest.mark.slow
def test_s60_the_bundle_gives_the_same_scores_in_a_fresh_process(press: Press, home: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    assert anomaly("score", press.log, "--model", press.bundle, "--out", here, "--no-alerts").status == 0
    status, said = run_apart(
        tmp_path, "score", press.log, "--model", press.bundle, "--out", there, "--no-alerts", "--json"
    )
    assert status == 0, said
    one, two = pd.read_parquet(here), pd.read_parquet(there)
    assert np.allclose(one["anomaly_score"], two["anomaly_score"], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert (one["outcome"] == two["outcome"]).all()


@pytest.mark.slow
def test_s56_s57_s61_rows_of_the_test_part_change_nothing_that_was_fitted(
    registry_home: Path, press: Press, tmp_path: Path
) -> None:
    """Scaler, encoder, calibration and threshold are the same, to the bit, when every test row is another."""
    models = []
    for shift in (0.0, 50.0):
        frame = press.frame[:1500].copy()
        frame.loc[1300:, "tag0":"tag5"] += shift
        log = write_log(frame, tmp_path / "a.csv")
        done = anomaly("train", log, *SHORT, "--out", tmp_path / "model", "--json").json
        models.append((done, arrays_of(tmp_path / "model")))
    (one, own), (two, other) = models
    assert replace_source(one["threshold"]) == replace_source(two["threshold"])
    assert own.keys() == other.keys()
    for name, array in own.items():
        assert np.array_equal(array, other[name], equal_nan=array.dtype.kind == "f"), name
    assert one["evaluation"]["figures"] != two["evaluation"]["figures"], "the test part is judged, so it shows there"


def replace_source(threshold: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in threshold.items() if k != "source"}


def test_s56_fitted_rows_are_normal_rows_of_the_train_part(press: Press) -> None:
    """The audits name the rows that the scaler and the encoder saw: none is an event, a lead row, or a later row."""
    model = load_bundle(press.bundle)
    label = press.frame["label"].to_numpy()
    minutes = press.frame["time"].astype("datetime64[us, UTC]").astype("int64").to_numpy() // 60_000_000
    tainted = np.zeros(len(label), dtype=bool)
    for event in np.flatnonzero(label):
        tainted |= (minutes >= minutes[event] - 4) & (minutes <= minutes[event])
    assert set(model.audits) == {"scaler", "encoder"}
    for name, audit in model.audits.items():
        rows = np.concatenate([np.arange(a, b) for a, b in audit.intervals("plant")])
        assert len(rows) > 500, name
        assert rows.max() < 0.65 * len(label), name
        assert not tainted[rows].any(), name


@pytest.mark.slow
def test_every_layout_trains_the_same_model(registry_home: Path, press: Press, tmp_path: Path) -> None:
    """CSV, a store, long form, and a TOML that names a folder of two files: the same arrays in the bundle.

    The TOML is given once as the source and once as ``--config``, with a flag that overrides it.
    """
    frame, folder = press.frame[:1500], tmp_path / "days"
    folder.mkdir()
    write_log(frame[:700], folder / "1.csv")
    write_log(frame[700:], folder / "2.parquet")
    wide = write_log(frame, tmp_path / "a.csv")
    long = frame.rename(columns={"label": "fault"}).melt("time", var_name="tag", value_name="value")
    long_log = write_log(long.sort_values("time", kind="stable"), tmp_path / "long.csv")
    store = tmp_path / "store.h5"
    assert anomaly("ingest", wide, *FLAGS, "--store", store).status == 0
    toml = tmp_path / "press.toml"
    toml.write_text(
        f"name = 'from-toml'\n[log]\npaths = ['{folder}']\nlabel = 'label'\n[window]\nlookback = 6\nlead = '4min'\n"
        "[training]\nepochs = 1\n"
    )
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(toml.read_text().replace("epochs = 1", "epochs = 40").replace("lookback = 6", "lookback = 9"))
    sources: dict[str, tuple[object, ...]] = {
        "csv": (wide, *SHORT),
        "store": (store, "--epochs", "1"),
        "long": (long_log, "--label", "fault", *SHORT[2:]),
        "toml": (toml,),
        "config": (folder, "--config", wrong, "--lookback", "6", "--epochs", "1"),
    }
    made: dict[str, Any] = {}
    for name, arguments in sources.items():
        done = anomaly("train", *arguments, "--out", tmp_path / name, "--json")
        assert done.status == 0, (name, done.err)
        made[name] = done.json
    assert made["toml"]["name"] == made["config"]["name"] == "from-toml"
    assert (made["csv"]["version"], made["store"]["version"], made["long"]["version"]) == (1, 2, 3)
    own = arrays_of(tmp_path / "csv")
    for name in sources:
        other = arrays_of(tmp_path / name)
        assert own.keys() == other.keys(), name
        assert all(np.allclose(own[k], other[k], rtol=1e-4, atol=1e-4, equal_nan=True) for k in own), name
        assert made[name]["threshold"]["value"] == pytest.approx(made["csv"]["threshold"]["value"], rel=1e-3), name


@pytest.mark.slow
def test_s63_the_rules_fixed_and_budget(registry_home: Path, press: Press, tmp_path: Path) -> None:
    log = write_log(press.frame[:1500], tmp_path / "a.csv")
    fixed = anomaly("train", log, *SHORT, "--rule", "fixed", "--threshold", "2.5", "--json").json["threshold"]
    assert (fixed["rule"], fixed["value"]) == ("fixed", 2.5)
    budget = anomaly("train", log, *SHORT, "--rule", "budget", "--budget", "2", "--out", tmp_path / "m", "--json").json
    assert budget["threshold"]["rule"] == "budget"
    assert budget["threshold"]["part"] == "validation"
    assert 0 < budget["threshold"]["value"] <= 324
    settings = read_manifest(tmp_path / "m")["model"]["settings"]
    assert (settings["threshold"]["rule"], settings["threshold"]["budget"]) == ("budget", 2.0)


def test_s56_a_validation_part_without_a_complete_window_is_refused(home: Path, press: Press, tmp_path: Path) -> None:
    """A tag that falls silent after the train part leaves nothing to calibrate on."""
    frame = press.frame[:1500].copy()
    frame.loc[850:, "tag0"] = np.nan
    done = anomaly("train", write_log(frame, tmp_path / "a.csv"), *SHORT, "--out", tmp_path / "model")
    assert done.status == 3, done.err
    assert "E3302" in done.err
    assert "--drop" in done.err
    assert {p.name for p in tmp_path.iterdir()} <= {"a.csv", "home"}
    assert not [p for p in home.rglob("*") if p.is_file()]


def test_evaluate_judges_only_rows_that_the_model_never_saw(press: Press, home: Path, tmp_path: Path) -> None:
    """The training log itself: its first four fifths are known to the model, so the figures are of the test part."""
    report = tmp_path / "judged.html"
    done = anomaly("evaluate", press.bundle, press.log, "--report", report, "--json").json
    again, trained = done["evaluation"], press.trained["evaluation"]
    assert "the model learned from" in " ".join(again["notes"])
    assert again["events"] >= trained["events"] > 0
    assert again["figures"]["event_recall"]["value"] == pytest.approx(trained["figures"]["event_recall"]["value"])
    assert sum(again["confusion"].values()) < 0.25 * len(press.frame)
    assert done["report"] == str(report)
    assert "<script" not in report.read_text(encoding="utf-8")


def test_evaluate_on_a_later_log_judges_all_of_it(press: Press, home: Path, tmp_path: Path) -> None:
    later = press.frame[:1000].assign(time=press.frame["time"][:1000] + pd.Timedelta(days=30))
    done = anomaly("evaluate", press.bundle, write_log(later, tmp_path / "a.csv"), "--json").json
    assert not [n for n in done["evaluation"]["notes"] if "the model learned from" in n]
    assert done["evaluation"]["events"] == int(later["label"].sum())
    assert Path(done["report"]).parent == home / "reports"


@pytest.mark.parametrize(("rows", "columns", "code"), [(1000, {}, "E3302"), (3000, {"label": None}, "E3105")])
def test_evaluate_refuses_what_it_cannot_judge(
    press: Press, home: Path, tmp_path: Path, rows: int, columns: dict[str, None], code: str
) -> None:
    """A log that the model saw whole, and one without labels."""
    log = write_log(press.frame[:rows].drop(columns=list(columns)), tmp_path / "a.csv")
    done = anomaly("evaluate", press.bundle, log)
    assert done.status == 3, done.out
    assert code in done.err
    assert not list(tmp_path.rglob("*.html"))


def test_what_train_says_to_a_person(press: Press, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another training: the words are made from the result that is there."""
    from anomaly.scores.thresholds import Threshold
    from pipelines import terminal
    from pipelines.recipe_choices import Choice
    from pipelines.train import Trained

    own = dict(press.trained)
    known = {f.name for f in Threshold.__dataclass_fields__.values()}
    threshold = Threshold(**{k: v for k, v in own.pop("threshold").items() if k in known})
    done = Trained(
        **own
        | {"threshold": threshold, "report": Path(own["report"]), "bundle": None, "notices": ("[bold]x[/bold]",)}
        | {"choices": tuple(Choice(**choice) for choice in own["choices"])}
    )
    with terminal._out.capture() as said:
        terminal.show_trained(replace(done, name="press[1]"))
    text = said.get()
    assert "[bold]x[/bold]" in text, "names from outside are not taken for markup"
    assert "press[1] version 1: challenger, champion" in text
    assert "chosen window: 6 rows" in text
    assert "(window.lookback)" in text
    assert "row PCA" in text
    assert "anomaly score LOG --model press[1]" in text
    json.dumps(done.to_dict(), allow_nan=False)
