"""Pictures about the choice of a threshold: what is drawn, and what stands in words beside it."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from anomaly.scores.calibration_check import CalibrationRow
from anomaly.scores.what_if import WhatIfRow
from pipelines.report_thresholds import calibration_plot, what_if_plot

CALIBRATION = [
    CalibrationRow(0.1, 0.11, 0.08, 0.14, 100.0, 110, "as calibrated"),
    CalibrationRow(0.01, 0.03, 0.02, 0.05, 10.0, 30, "too many"),
    CalibrationRow(0.001, 0.0, 0.0, 0.004, 1.0, 0, "as calibrated"),
]
WHAT_IF = [
    WhatIfRow(1.0, False, 40, 2.0, 20.0, 14.3, 27.2, 4, 4, 3600.0, 0.1),
    WhatIfRow(2.0, True, 4, 2.0, 2.0, 0.5, 5.1, 3, 4, -120.0, 0.01),
    WhatIfRow(3.0, False, 0, 2.0, 0.0, 0.0, 1.8, 0, 4, None, 0.0),
]


def svg(picture):
    assert picture.url.startswith("data:image/svg+xml;base64,")
    return base64.b64decode(picture.url.partition(",")[2]).decode()


def test_calibration_is_drawn_and_told():
    picture = calibration_plot(CALIBRATION)
    assert "<svg" in svg(picture)
    assert "1 of 3 rates are not as calibrated" in picture.text
    assert "1 in 100: 30 rows, 10 expected, too many" in picture.text
    assert "1 in 1e+03: 0 rows, 1 expected, as calibrated" in picture.text


def test_calibration_that_holds_is_said_to_hold():
    assert "every rate is as calibrated" in calibration_plot(CALIBRATION[::2]).text


def test_calibration_marks_what_is_off_in_another_colour():
    red = "#d55e00"
    assert red in svg(calibration_plot(CALIBRATION)).lower()
    assert red not in svg(calibration_plot(CALIBRATION[::2])).lower()


def test_a_rate_that_cannot_be_told_is_neither_held_nor_off():
    unknown = replace(CALIBRATION[2], verdict="too little to tell")
    picture = calibration_plot([CALIBRATION[0], unknown])
    assert "1 of 2 rates are as calibrated, 1 cannot be told" in picture.text
    assert "#d55e00" not in svg(picture).lower()
    assert "1 of 2 rates are not as calibrated, 1 cannot be told" in calibration_plot([CALIBRATION[1], unknown]).text


@pytest.mark.filterwarnings("error")
def test_no_row_that_passed_is_drawn_without_a_warning():
    svg(calibration_plot([CALIBRATION[2]]))


def test_what_if_is_drawn_and_told_in_order_of_thresholds():
    picture = what_if_plot(WHAT_IF[::-1])
    assert "<svg" in svg(picture)
    assert "1.00: 20 a week (14.3 to 27.2), 4 of 4 events, median lead 60 min" in picture.text
    assert "2.00 (chosen): 2 a week (0.5 to 5.1), 3 of 4 events, median lead -2 min" in picture.text
    assert "3.00: 0 a week (0 to 1.8), 0 of 4 events." in picture.text
    assert picture == what_if_plot(WHAT_IF)


def test_the_chosen_threshold_alone_is_marked():
    red = "#d55e00"
    assert red in svg(what_if_plot(WHAT_IF)).lower()
    assert red not in svg(what_if_plot([replace(row, chosen=False) for row in WHAT_IF])).lower()


@pytest.mark.filterwarnings("error")
def test_thresholds_without_a_false_episode_are_drawn():
    svg(what_if_plot([WHAT_IF[2]]))
    svg(what_if_plot([WHAT_IF[2], replace(WHAT_IF[2], threshold=4.0)]))


def test_nothing_to_draw_gives_a_sentence():
    for picture in (calibration_plot([]), what_if_plot([]), what_if_plot([replace(WHAT_IF[0], events=0, found=0)])):
        assert picture.url == ""
        assert picture.text.endswith(".")
