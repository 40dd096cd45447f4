"""Fine-tuning inside a fit: labels and verdicts become windows, and the gate decides (METHODS S33)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_plant import SMALL

from anomaly.config import DetectionSettings, FineTuningSettings
from anomaly.data.reading.verdicts import read_verdicts
from anomaly.data.store import WindowStore
from anomaly.errors import InputRefused, UsageError
from anomaly.few_labels import labelled_windows
from anomaly.fitting import PreparedWindows, fit_model
from anomaly.model import AnomalyModel

WEAK = replace(SMALL, detection=DetectionSettings(("knn",), labelled=False), training=replace(SMALL.training, epochs=2))


def test_s33_the_reason_is_said_and_the_model_scores_the_same_from_its_parts(store_path: Path, frame, tmp_path: Path):
    settings = replace(WEAK, fine_tuning=FineTuningSettings(enabled=True))
    with WindowStore.open(store_path) as store:
        fitted = fit_model(store, settings, tmp_path / "work")
    [notice] = fitted.notices
    used = fitted.model.ensemble.names == ("head",)
    assert notice.startswith("fine-tuning: ") and (("not used" in notice) != used)
    again = AnomalyModel.from_parts(*fitted.model.to_parts())
    scores = again.score_frame(frame[-300:])["anomaly_score"].to_numpy()
    np.testing.assert_allclose(scores, fitted.model.score_frame(frame[-300:])["anomaly_score"].to_numpy(), atol=1e-5)
    assert np.isfinite(scores).any()


def test_too_few_events_change_nothing_and_say_so(store_path: Path, tmp_path: Path):
    settings = replace(WEAK, fine_tuning=FineTuningSettings(enabled=True, least_events=999))
    with WindowStore.open(store_path) as store:
        fitted = fit_model(store, settings, tmp_path / "work")
    assert fitted.model.ensemble.names == ("knn",) and "few labels" in fitted.notices[0]


def test_windows_are_labelled_by_their_last_row_and_by_verdicts(store_path: Path, fitted):
    with WindowStore.open(store_path) as store:
        prepare = PreparedWindows(store, fitted.model.preparer, fitted.model.vocabulary, SMALL.training).prepare
        plain = labelled_windows(store, prepare, "train", None, seed=0)
        [asset] = store.assets
        first, stop = store.part_rows(asset, "train")
        kinds = store.rows(asset, first, stop).kind
        assert plain.positive.sum() <= (kinds == 2).sum() and plain.n_events > 5
        assert (np.diff(plain.block) >= 0).all(), "one asset: blocks follow one another"
        time = store.rows(asset, first, stop).time
        quiet = int(np.flatnonzero(np.convolve(kinds == 0, np.ones(40), "valid") == 40)[0]) + 25
        said = pd.DataFrame(
            {"asset": [asset], "start": [time[quiet]], "end": [time[quiet + 5]], "verdict": ["true fault"]}
        )
        more = labelled_windows(store, prepare, "train", said, seed=0)
        assert more.positive.sum() == plain.positive.sum() + 5 and more.n_events == plain.n_events + 1


def test_verdicts_that_cannot_be_read_and_an_encoder_without_weights_are_refused(store_path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"E2001.*verdicts"):
        read_verdicts(tmp_path / "none.csv")
    path = tmp_path / "verdicts.csv"
    path.write_text("asset,start,end,verdict\nP-1,soon,later,true fault\n")
    with pytest.raises(InputRefused, match="E3204"):
        read_verdicts(path)
    path.write_text("asset,start,end,verdict\nP-1,2026-01-05T00:00:00Z,2026-01-05T01:00:00Z,true fault\n")
    assert str(read_verdicts(path)["start"].dtype).startswith("datetime64") and len(read_verdicts(path)) == 1
    settings = WEAK.changed(encoder={"name": "features"}, fine_tuning={"enabled": True})
    with WindowStore.open(store_path) as store, pytest.raises(UsageError, match=r"E2002.*features"):
        fit_model(store, settings, tmp_path / "work")
