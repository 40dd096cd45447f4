"""``anomaly watch --shadow``: the challenger scores beside the champion from file to file and raises no alerts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Press, anomaly, write_log
from test_watch import Place, alert_rows, assert_same, assert_same_alerts, log, model  # noqa: F401  fixtures

from alerts.store import AlertStore
from anomaly.errors import UsageError
from anomaly.model import AnomalyModel
from pipelines.score import score
from pipelines.watch import STATE, Watch, scores_of
from pipelines.watch_loop import once
from registry.bundle import load_bundle, save_bundle


class Shadowing(Place):
    """A folder that is watched with a challenger."""

    challenger: AnomalyModel

    def watch(self) -> Watch:
        return Watch(self.folder, self.model, "m", self.out, self.database, self.state, self.options,
                     ("m@challenger", self.challenger))  # fmt: skip


def lower(champion: AnomalyModel) -> AnomalyModel:
    """The same model with half the threshold."""
    threshold = replace(champion.threshold, value=champion.threshold.value / 2)
    return replace(champion, threshold=threshold, digest="c" * 64, _engines={})


@pytest.fixture
def place(model: AnomalyModel, tmp_path: Path) -> Shadowing:  # noqa: F811
    made = Shadowing(tmp_path / "place", model, lateness_us=0)
    made.challenger = lower(model)
    return made


def shadows(out: Path) -> pd.DataFrame:
    tables = [pd.read_parquet(p) for p in sorted(out.glob("shadow-*.parquet"))]
    return pd.concat(tables).sort_values(["asset", "time"]).reset_index(drop=True)


def test_it_says_from_file_to_file_what_it_says_of_one_file_and_raises_nothing(
    place: Shadowing,
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
) -> None:
    path, counts = write_log(log, tmp_path / "log.csv"), []
    for name, one in (("champion", place.model), ("challenger", place.challenger)):
        counts += [len(score([path], one, "m", tmp_path / f"{name}.parquet", str(tmp_path / f"{name}.db")).episodes)]
    total = None
    for number, part in enumerate(np.array_split(np.arange(len(log)), 6)):
        place.land(log.iloc[part], f"{number}.csv")
        done = once(place.watch())  # a new process each time: what goes on is in the state
        assert done.shadow is not None and done.shadow.rows == len(part)
        total = done.shadow if total is None else (total.add(done.shadow), total)[1]
    assert_same(place.scores(), pd.read_parquet(tmp_path / "champion.parquet"))
    assert_same(shadows(place.out), pd.read_parquet(tmp_path / "challenger.parquet"))
    assert_same_alerts(place.alerts(), alert_rows(tmp_path / "champion.db"))
    assert {b["model"][0] for b in AlertStore(place.database).dump()["batches"]} == {"d"}
    assert total is not None and (total.champion_episodes, total.challenger_episodes) == tuple(counts)
    assert (total.champion_only, total.aligned, total.refused) == (0, True, "") and total.challenger_only > 0
    flagged = [f["outcome"] == "anomalous" for f in (place.scores(), shadows(place.out))]
    assert total.both == int((flagged[0] & flagged[1]).sum())


def test_a_challenger_that_fails_never_harms_the_champion(
    place: Shadowing,
    log: pd.DataFrame,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, whole = place.watch(), type(place.model.stream()).score

    def broken(self: Any, chunk: Any) -> Any:
        if self.model.digest == "c" * 64 and len(scores_of(place.out)) == 1:
            raise MemoryError("no room for a challenger")
        return whole(self, chunk)

    monkeypatch.setattr(type(place.model.stream()), "score", broken)
    told = []
    for number in range(3):
        place.land(log[100 * number : 100 * number + 100], f"{number}.csv")
        told += [once(watch).shadow]
    assert [bool(t and t.refused) for t in told] == [False, True, False]
    assert "no room" in told[1].line()
    assert [len(pd.read_parquet(p)) for p in scores_of(place.out)] == [100] * 3
    assert len(list(place.out.glob("shadow-*.parquet"))) == 2 and not list(place.out.glob(".*"))


def test_a_challenger_of_other_sensors_is_refused_before_anything_is_scored(place: Shadowing) -> None:
    contract = place.model.contract
    for other, what in ((replace(contract, tags=(*contract.tags, "new")), "new"),
                        (replace(contract, period_us=1), "60 s")):  # fmt: skip
        place.challenger = replace(place.challenger, contract=other, _engines={})
        with pytest.raises(UsageError, match=what):
            place.watch()
    assert not place.state.exists()


def test_the_command_tells_where_they_disagree(press: Press, home: Path, tmp_path: Path) -> None:
    save_bundle(lower(load_bundle(press.bundle)), tmp_path / "lower")
    folder = tmp_path / "in"
    folder.mkdir()
    write_log(press.frame[:400], folder / "a.csv")
    command = (
        "watch",
        folder,
        "--model",
        press.bundle,
        "--out",
        tmp_path / "out",
        "--settle",
        "0s",
        "--once",
        "--flush",
    )
    done = anomaly(*command, "--shadow", tmp_path / "lower")
    assert done.status == 0 and f"shadow {tmp_path / 'lower'}: " in done.out + done.err
    assert "anomalous in both, 0 in the champion only" in done.out + done.err
    again = anomaly(*command, "--shadow", tmp_path / "lower", "--json").json
    assert again["shadow"] is None, "nothing was left to score"
    assert anomaly(*command, "--json").json["shadow"] is None
    assert anomaly(*command, "--shadow", "nobody").status == 4


def test_a_state_from_before_there_were_many_models_goes_on(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
) -> None:
    place, path = Place(tmp_path / "place", model), write_log(log[:400], tmp_path / "log.csv")
    place.land(log[:250], "a.csv")
    place.once()
    with np.load(place.state / STATE) as held:
        arrays = dict(held)
    plain = json.loads(arrays.pop("settings").tobytes())
    (member,) = plain.pop("members")
    plain |= member | {"format": 1, "model": member["key"], "name": plain["name"]}
    first = {key.removeprefix("0/"): value for key, value in arrays.items()}
    np.savez(place.state / STATE, settings=np.frombuffer(json.dumps(plain).encode(), np.uint8), **first)
    place.land(log[250:400], "b.csv")
    place.once(everything=True)
    score([path], model, "m", tmp_path / "s.parquet", str(tmp_path / "whole.db"))
    assert_same(place.scores(), pd.read_parquet(tmp_path / "s.parquet"))
    assert_same_alerts(place.alerts(), alert_rows(tmp_path / "whole.db"))
