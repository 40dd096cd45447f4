"""Windows of a store drawn for labelling: table, picture, and the way back into training (METHODS S15 to S20, S33)."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from small_plant import SMALL, chunk_of, contract_of, small_frame

from anomaly.config import FineTuningSettings
from anomaly.data.reading.verdicts import read_verdicts
from anomaly.data.store import WindowStore, create_store
from anomaly.data.store_features import Features
from anomaly.embeddings.space import Space
from anomaly.encoders.fine_tuning import verdict_labels
from anomaly.errors import InputRefused, UsageError
from anomaly.fitting import Fitted, PreparedWindows, fit_model
from anomaly.model import AnomalyModel
from anomaly.scores.window_scores import energy, filled_radius
from pipelines.contact_sheet import MOST, Panel, panels, shown_windows, write_sheet
from pipelines.extract import ExtractOptions, energy_weights, extract
from pipelines.sample import (
    COLUMNS,
    LIMITS,
    Sampled,
    SampledWindow,
    iso,
    read_limits,
    sample,
    table_text,
)
from pipelines.stopping import Stopped

WINDOW = SampledWindow("P-1", 3, 0, 60_000_000, 0, 0.5, 1.0, -0.25, 2.0, 3.0, 1.5, 1, 1)


@pytest.fixture(scope="module")
def model(fitted: Fitted) -> AnomalyModel:
    return fitted.model


@pytest.fixture(scope="module")
def done(store_path: Path, model: AnomalyModel, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    return sample(store_path, model, 4, 0.5, tmp_path_factory.mktemp("drawn") / "samples", clusters=3)


@pytest.fixture(scope="module")
def features_path(store_path: Path, model: AnomalyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extraction that a draw makes of its own."""
    path = tmp_path_factory.mktemp("features") / "features.h5"
    extract(store_path, model, path, ExtractOptions(reduce=0, clusters=3))
    return path


@pytest.fixture
def store(store_path: Path) -> Iterator[WindowStore]:
    with WindowStore.open(store_path) as opened:
        yield opened


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_s20_every_mode_gives_its_windows_each_once(done: Sampled):
    rows = rows_of(done.table)
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(done.drawn)
    assert {w.mode for w in done.drawn} == set(done.modes) and sum(done.modes.values()) == done.windows
    for mode, size in done.modes.items():
        own = [w for w in done.drawn if w.mode == mode]
        assert len(own) == min(4, size) and [w.draw_order for w in own] == list(range(1, len(own) + 1))
        assert own[0].mode_share == pytest.approx(size / done.windows)
    assert len({(w.asset, w.start_row) for w in done.drawn}) == len(done.drawn)
    assert all(row["verdict"] == "" for row in rows)
    assert sum(m["drawn"] for m in done.to_dict()["modes"]) == len(rows) and json.dumps(done.to_dict())


def test_s20_rows_map_back_to_the_log(done: Sampled, store: WindowStore):
    for row, window in zip(rows_of(done.table), done.drawn, strict=True):
        time = store.rows(window.asset, window.start_row, window.start_row + store.lookback).time
        assert pd.Timestamp(row["start"]) == pd.Timestamp(int(time[0]), unit="us", tz="UTC")
        assert pd.Timestamp(row["end"]) == pd.Timestamp(int(time[-1]) + 60_000_000, unit="us", tz="UTC")


def test_s15_to_s18_the_figures_are_those_of_the_windows(
    done: Sampled, store: WindowStore, model: AnomalyModel, features_path: Path
):
    with Features.open(features_path) as features:
        space = Space.from_state(*features.kept("space"))
        ids, starts = features.column("cluster_id")[:], features.column("metadata/start")[:]
    assert space.pca is None and space.clusters == 3
    windows = PreparedWindows(store, model.preparer, model.vocabulary, model.settings.training)
    [asset] = store.assets
    radius, weights = filled_radius(space.kmeans.radius_), energy_weights(model)
    for window in done.drawn:
        rows = store.rows(asset, window.start_row, window.start_row + store.lookback)
        prepared, usable = windows.prepare(rows.values, rows.age, rows.categories)
        assert usable.all()
        placed = space.place(model.encoder.embed(prepared[None]))
        assert placed.ids[0] == window.mode
        assert window.novelty == pytest.approx(placed.distance[0] / radius[placed.ids[0]], rel=1e-3)
        assert window.cosine == pytest.approx(placed.cosine[0], abs=1e-3)
        assert window.energy == pytest.approx(energy(rows.values[None], weights)[0], rel=1e-5)
        at = int(np.searchsorted(starts, window.start_row))
        recent = ids[max(at - 19, 0) : at + 1]
        assert window.stability == pytest.approx((recent == window.mode).mean(), rel=1e-6), "of neighbouring windows"
    usual = np.median([w.energy for w in done.drawn])
    assert 0.3 < usual < 5, "tags are weighed so that a usual window has an energy near 1"


def test_s20_a_draw_from_an_extraction_is_the_draw_that_makes_its_own(
    done: Sampled, store_path: Path, model: AnomalyModel, features_path: Path, tmp_path: Path, monkeypatch
):
    def no_reading(self, *args):
        raise AssertionError("raw windows were read again")

    monkeypatch.setattr(WindowStore, "raw_blocks", no_reading)
    monkeypatch.setattr(WindowStore, "window_blocks", no_reading)
    again = sample(store_path, model, 4, 0.5, tmp_path / "again", features=features_path)
    for name in ("samples.csv", "contact_sheet.png", LIMITS):
        assert (again.out / name).read_bytes() == (done.out / name).read_bytes()
    assert again.windows == done.windows and again.modes == done.modes


def test_features_that_do_not_fit_are_refused(
    store_path: Path, model: AnomalyModel, features_path: Path, tmp_path: Path
):
    def refused(kind: type[Exception], said: str, path: Path, **changed) -> None:
        with pytest.raises(kind, match=said):
            sample(store_path, model, out=tmp_path / "out", features=path, **changed)
        assert not (tmp_path / "out").exists()

    for name in ("store", "model"):
        other = tmp_path / f"{name}.h5"
        shutil.copyfile(features_path, other)
        with h5py.File(other, "r+") as file:
            file.attrs["identity"] = json.dumps(json.loads(file.attrs["identity"]) | {name: "another"})
        refused(InputRefused, f"E3402.*features of the {name}", other)
    with h5py.File(other, "r+") as file:
        del file.attrs["identity"]
    refused(InputRefused, "E3402.*unknown", other)
    extract(store_path, model, tmp_path / "bare.h5", ExtractOptions(features_only=True))
    refused(UsageError, "E2001.*without --features-only", tmp_path / "bare.h5")
    refused(UsageError, "E2002.*clusters", features_path, clusters=3)
    refused(InputRefused, "E3001", tmp_path / "none.h5")
    refused(InputRefused, "E3007", store_path)


def test_the_extraction_of_a_draw_is_removed_also_after_an_error(
    store_path: Path, model: AnomalyModel, tmp_path: Path, monkeypatch
):
    import pipelines.sample as job

    left = tmp_path / ".out.anomaly-tmp-0badcafe"
    left.mkdir()
    (left / "features.h5").write_text("of a run that was killed")
    seen = list[Path]()

    def failing(store, made, limits, *rest):
        seen.extend(tmp_path.glob(".out*/*.h5"))
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        sample(store_path, model, out=tmp_path / "out", clusters=3)
    assert [p.name for p in seen] == ["features.h5"]
    assert list(tmp_path.iterdir()) == []

    def stopped(*args):
        raise Stopped(15, "go on with --resume")

    monkeypatch.setattr(job, "extract", stopped)
    with pytest.raises(Stopped, match="run the same command again"):
        sample(store_path, model, out=tmp_path / "out", clusters=3)
    assert list(tmp_path.iterdir()) == []


def test_modes_that_the_model_has_already_are_told(
    store_path: Path, model: AnomalyModel, features_path: Path, tmp_path: Path, monkeypatch
):
    with Features.open(features_path) as features:
        monkeypatch.setattr(model.ensemble, "space", Space.from_state(*features.kept("space")))
    monkeypatch.setattr(model.ensemble, "levels_", np.repeat(model.ensemble.levels_, 3, axis=0))
    drawn = sample(store_path, model, 1, out=tmp_path / "out", clusters=5)
    assert len(drawn.modes) == 3 and "the 3 that the model has; 5 were asked for" in drawn.notices[0]
    assert sample(store_path, model, 1, out=tmp_path / "out", clusters=3).notices == ()


def test_a_part_without_a_window_is_refused_before_anything_is_read(model: AnomalyModel, tmp_path: Path):
    frame = small_frame(600).assign(label=0)  # nothing that the ends of parts would move to
    frame.loc[595:, "time"] += pd.Timedelta("1h")
    split = replace(SMALL.split, train=0.7, validation=0.295, test=0.005)
    with create_store(tmp_path / "few.h5", contract_of(frame), SMALL.window, split) as writer:
        writer.append(chunk_of(frame))
    with pytest.raises(InputRefused, match=r"E3301.*another part"):
        sample(tmp_path / "few.h5", model, out=tmp_path / "out", part="test")
    assert [p.name for p in tmp_path.iterdir()] == ["few.h5"]


def test_s18_limits_are_saved_and_make_a_later_draw_comparable(
    done: Sampled, store_path: Path, model: AnomalyModel, tmp_path: Path
):
    saved = done.out / LIMITS
    part = sample(store_path, model, 5, 0.5, tmp_path / "part", clusters=3, part="test", limits=saved)
    scores = np.array([[w.stability, w.novelty, w.energy] for w in part.drawn + done.drawn])
    expected = read_limits(saved).scale(scores) @ [0.5, 1.0, 0.8]
    np.testing.assert_allclose([w.weight for w in part.drawn + done.drawn], expected, atol=1e-5)
    alone = sample(store_path, model, 5, 0.5, tmp_path / "alone", clusters=3, part="test")
    assert read_limits(tmp_path / "alone" / LIMITS).high.tolist() != read_limits(saved).high.tolist()
    assert alone.windows == part.windows
    assert read_limits(tmp_path / "part" / LIMITS).low.tolist() == read_limits(saved).low.tolist()
    (tmp_path / "bad.json").write_text('{"low": [1], "high": [2]}')
    for path in (tmp_path / "bad.json", tmp_path / "none.json"):
        with pytest.raises(UsageError, match="E2001"):
            read_limits(path)


def test_s20_a_seed_repeats_the_draw_byte_for_byte(
    done: Sampled, store_path: Path, model: AnomalyModel, tmp_path: Path
):
    again = sample(store_path, model, 4, 0.5, tmp_path / "again", clusters=3)
    other = sample(store_path, model, 4, 0.5, tmp_path / "other", seed=8, clusters=3)
    assert again.table.read_bytes() == done.table.read_bytes()
    assert again.sheet.read_bytes() == done.sheet.read_bytes()
    assert other.table.read_bytes() != done.table.read_bytes()
    assert not [p for p in again.out.iterdir() if p.name.startswith(".")]


def test_s19_fewer_rows_than_k_give_all_of_them(store_path: Path, model: AnomalyModel, tmp_path: Path):
    everything = sample(store_path, model, 10**6, 1.0, tmp_path / "all", clusters=2, part="test")
    assert len(everything.drawn) == everything.windows
    for mode in everything.modes:
        ranks = [(w.probability_rank, -w.weight) for w in everything.drawn if w.mode == mode]
        assert [w for _, w in sorted(ranks)] == sorted(w for _, w in ranks) and min(ranks)[0] == 1


def test_s33_a_filled_in_table_trains(done: Sampled, store_path: Path, store: WindowStore, frame, tmp_path: Path):
    path = tmp_path / "samples.csv"
    rows = rows_of(done.table)
    rows[0]["verdict"], rows[1]["verdict"] = "true fault", " nuisance "
    pd.DataFrame(rows).to_csv(path, index=False)
    said = read_verdicts(path)
    assert said["verdict"].tolist() == ["true fault", "nuisance"]
    window = done.drawn[0]
    time = store.rows(window.asset, 0, store.n_rows(window.asset)).time
    labels = verdict_labels(time, np.full(len(time), window.asset, dtype=object), said[:1])
    marked = np.flatnonzero(labels == 1)
    assert marked.tolist() == list(range(window.start_row, window.start_row + store.lookback)), (
        "the window, no row more"
    )
    settings = replace(SMALL, training=replace(SMALL.training, epochs=1))
    settings = replace(settings, fine_tuning=FineTuningSettings(verdicts=str(path)))
    assert fit_model(store, settings, tmp_path / "work").notices[0].startswith("fine-tuning: ")


def test_s33_an_empty_table_says_nothing_and_names_come_back_as_they_were(tmp_path: Path):
    path = tmp_path / "samples.csv"
    names = ["=1+1", "007", "'quoted", "plain"]
    text = table_text([replace(WINDOW, asset=name) for name in names])
    assert "'=1+1," in text, "nothing runs as a formula"
    path.write_text(text, encoding="utf-8")
    empty = read_verdicts(path)
    assert len(empty) == 0 and (verdict_labels(np.arange(3), np.full(3, "P-1", dtype=object), empty) == -1).all()
    path.write_text(text.replace(",1,1,\n", ",1,1,unsure\n"), encoding="utf-8")
    assert read_verdicts(path)["asset"].tolist() == names
    assert text.splitlines()[1].startswith(f"'=1+1,{iso(0)},{iso(60_000_000)},0,0.5,1.0,-0.25,2.0,3.0,1.5,1,1,")


def test_a_table_with_verdicts_is_not_written_over(store_path: Path, model: AnomalyModel, tmp_path: Path):
    sample(store_path, model, 1, 1.0, tmp_path, clusters=2)
    sample(store_path, model, 2, 1.0, tmp_path, clusters=2)
    table = tmp_path / "samples.csv"
    text = table.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 5
    table.write_text(text.rstrip("\n") + "nuisance\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"E2003.*1 verdicts"):
        sample(store_path, model, 1, 1.0, tmp_path, clusters=2)
    assert table.read_text(encoding="utf-8").endswith("nuisance\n")


def test_what_cannot_be_followed_is_refused_before_anything_is_read(model: AnomalyModel, tmp_path: Path):
    for k, temperature, weights in ((0, 1.0, (1, 1, 1)), (1, 0.0, (1, 1, 1)), (1, 1.0, (0, 0, 0)), (1, 1.0, (1, 1))):
        with pytest.raises(UsageError, match="E2002"):
            sample(tmp_path / "none.h5", model, k, temperature, tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_more_modes_than_windows_are_refused(store_path: Path, model: AnomalyModel, tmp_path: Path):
    for clusters in (10**6, 0):
        with pytest.raises(UsageError, match="E2002"):
            sample(store_path, model, out=tmp_path / "out", clusters=clusters)
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_lookback_is_refused(model: AnomalyModel, tmp_path: Path):
    path, other = tmp_path / "other.h5", SMALL.changed(window={"lookback": 9})
    frame = small_frame(600)
    with create_store(path, contract_of(frame), other.window, other.split) as writer:
        writer.append(chunk_of(frame))
    with pytest.raises(InputRefused, match=r"E3402.*6 rows"):
        sample(path, model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_sheet_shows_at_most_sixty_panels_first_drawn_first_grouped_by_mode(tmp_path: Path):
    found = [replace(WINDOW, mode=m, draw_order=o, start_row=100 * m + o) for m in range(7) for o in range(1, 12)]
    shown = shown_windows(found)
    assert len(shown) == MOST and [w.mode for w in shown] == sorted(w.mode for w in shown)
    assert {w.mode for w in shown} == set(range(7)) and max(w.draw_order for w in shown) <= 9
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    panel = Panel(
        "$a_1$ is no formula\nmode 0", 0, ("t", "$x$"), np.random.default_rng(0).normal(size=(6, 2)), 1_000_000
    )
    write_sheet([panel], few)
    write_sheet([replace(panel, mode=i % 3) for i in range(12)], many)
    assert imread(many).shape[0] > 2 * imread(few).shape[0] and imread(many).shape[1] > 4 * imread(few).shape[1]


def test_panels_show_the_most_unusual_tags_in_units_of_their_normal_range(store: WindowStore, model: AnomalyModel):
    [asset] = store.assets
    [panel] = panels(store, model, [replace(WINDOW, asset=asset, start_row=148)])
    values = store.rows(asset, 148, 148 + store.lookback).values
    apart = np.abs((values - model.preparer.center_) / model.preparer.scale_).mean(axis=0)
    assert panel.names == tuple(f"tag{c}" for c in np.argsort(-apart)[:3])
    low, high = model.normal_ranges()
    first = int(panel.names[0][3:])
    np.testing.assert_allclose(
        panel.lines[:, 0], (values[:, first] - low[first]) / (high[first] - low[first]), rtol=1e-5
    )
    assert panel.lines[:, 0].max() > 1, "outside the grey band"
