"""What the recipe settled for a log is told with its reason and the setting that overrides it, and is read off the model."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import SHORT, Press, anomaly, write_log

from anomaly.config import Settings
from anomaly.data.store import WindowStore
from anomaly.detectors.base import Detector
from anomaly.detectors.labelled import LabelledDetector
from anomaly.ensemble import Ensemble
from anomaly.fitting import Fitted
from anomaly.scores.fusion import RAISED
from pipelines.recipe_choices import Choice, choices

WHAT = ["time step", "segments", "scale of a tag", "far values", "window", "detectors", "weights", "recent past"]


def chosen(store: Path, fitted: Fitted) -> dict[str, Choice]:
    with WindowStore.open(store) as opened:
        return {choice.what: choice for choice in choices(opened, fitted)}


def without_head(fitted: Fitted) -> list[Detector]:
    """The detectors that learned from normal rows alone; the shared model holds a labelled head."""
    return [d for d in fitted.model.ensemble.detectors if d.name != LabelledDetector.name]


def changed(fitted: Fitted, **tables: dict[str, object]) -> Fitted:
    return replace(fitted, model=replace(fitted.model, settings=fitted.model.settings.changed(**tables)))


def test_every_choice_has_a_reason_and_names_a_setting_there_is(store_path: Path, fitted: Fitted) -> None:
    found = chosen(store_path, fitted)
    assert set(found) <= {*WHAT, "tags that stand still", "missing values", "labelled head"}
    for choice in found.values():
        assert choice.chosen and choice.reason, choice
        table, _, name = choice.setting.partition(".")
        assert name in {f.name for f in fields(getattr(Settings(), table))}, choice.setting


def test_choices_are_read_off_the_model(store_path: Path, fitted: Fitted) -> None:
    found, model = chosen(store_path, fitted), fitted.model
    assert found["window"].chosen.startswith(f"{model.lookback} rows (")
    assert found["detectors"].chosen == ", ".join(model.ensemble.names)
    weights = [float(part.split()[-1]) for part in found["weights"].chosen.split(", ")]
    assert sum(weights) == pytest.approx(1, abs=0.05)
    assert len(weights) == len(model.ensemble.names)
    assert f"{model.ensemble.trail} rows before" in found["recent past"].chosen
    far = float((np.abs(model.reference) > 4).mean())
    assert f"{far:.2%} of normal values" in found["far values"].reason


def test_a_tag_that_never_moved_and_a_usual_silence_are_named(store_path: Path, fitted: Fitted) -> None:
    tags = fitted.model.contract.tags
    reference = fitted.model.reference.copy()
    reference[:, 1] = reference[0, 1]
    still = replace(fitted, model=replace(fitted.model, reference=reference))
    assert chosen(store_path, still)["tags that stand still"].chosen == f"{tags[1]} kept in its own unit"
    assert "tags that stand still" not in chosen(store_path, fitted)

    hold = fitted.model.preparer.hold_
    before = hold.copy()
    try:
        hold[:] = 0
        assert "missing values" not in chosen(store_path, fitted)
        hold[2] = 7
        assert f"at most 7 rows ({tags[2]})" in chosen(store_path, fitted)["missing values"].chosen
    finally:
        hold[:] = before


def test_what_was_set_is_said_to_be_set(store_path: Path, fitted: Fitted) -> None:
    stated = changed(
        fitted,
        encoder={"scaling": "standard", "far": "linear"},
        log={"period": "1min"},
        detection={"detectors": ("reconstruction",), "fusion": "max"},
    )
    found = chosen(store_path, stated)
    for what in ("time step", "scale of a tag", "far values", "detectors", "weights"):
        assert "as it was set" in found[what].reason, found[what]


def test_the_labelled_head_says_why_it_joined_or_not(store_path: Path, fitted: Fitted) -> None:
    said = "labelled head: not tried, 3 events to learn from and 1 later ones to be judged by; 8 and 1 are needed"
    model = replace(fitted.model, ensemble=Ensemble(without_head(fitted)))
    found = chosen(store_path, replace(fitted, model=model, notices=(said,)))["labelled head"]
    assert (found.chosen, found.setting) == ("left out", "detection.labelled")
    assert found.reason.startswith("not tried, 3 events")


def test_a_head_that_joined_is_said_to_have_joined_and_to_weigh_more(store_path: Path, fitted: Fitted) -> None:
    own = without_head(fitted)
    head = LabelledDetector.learned(
        np.random.default_rng(0).normal(size=(40, 6, 6)).astype(np.float32), np.arange(40) < 9
    )
    weights = (*[0.5 / len(own)] * len(own), 0.5)
    model = replace(fitted.model, ensemble=Ensemble((*own, head), RAISED, weights))
    said = "labelled head with 50% of the say: 9 later events ranked better by 0.1 (0 to 0.2): used"
    found = chosen(store_path, replace(fitted, model=model, notices=(said,)))
    assert found["labelled head"].chosen == "joined the detectors"
    assert found["labelled head"].reason.endswith("used")
    assert found["weights"].chosen.endswith("labelled 0.50")
    assert found["weights"].reason.startswith("equal but the labelled head's")


def test_train_tells_them_once_in_the_terminal_in_json_and_in_the_report(press: Press) -> None:
    told = press.trained["choices"]
    assert [choice["what"] for choice in told][:4] == WHAT[:4]
    page = Path(press.trained["report"]).read_text(encoding="utf-8")
    assert "What was chosen, and why" in page
    assert all(f"<code>{choice['setting']}</code>" in page for choice in told)


@pytest.mark.slow
def test_far_values_can_be_left_as_they_are(registry_home: Path, press: Press, tmp_path: Path) -> None:
    log = write_log(press.frame[:1500], tmp_path / "a.csv")
    settings = tmp_path / "s.toml"
    settings.write_text('[encoder]\nfar = "linear"\n', encoding="utf-8")
    done = anomaly("train", log, *SHORT, "--config", settings)
    assert done.status == 0, done.err
    words = " ".join(done.out.split())
    assert "chosen far values: as they are; as it was set (encoder.far)" in words
    assert words.count("labelled head") <= 1
