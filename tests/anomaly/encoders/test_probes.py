"""Probes and clustering figures against scikit-learn, brute force and planted data."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    normalized_mutual_info_score,
    roc_auc_score,
)

from anomaly.encoders.probes import (
    PROBES,
    balanced_accuracy,
    chronological_folds,
    compared_representations,
    grouped_folds,
    matched_accuracy,
    nmi,
    probe_table,
    ranking_figure,
    spectrum_components,
)

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def best_by_trying(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Every way to name up to four clusters after up to four labels."""
    return max(float(np.mean(np.array(names)[clusters] == labels)) for names in permutations(range(4)))


def tones(n: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Windows of two classes: a slow and a fast tone, at any phase, in noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) // 20 % 2
    phase = rng.uniform(0, 2 * np.pi, n)
    beat = np.where(label, 5, 2)[:, None] * np.arange(16) / 16 * 2 * np.pi
    wave = np.sin(beat + phase[:, None])
    return (wave[..., None] + 0.3 * rng.normal(size=(n, 16, 2))).astype(np.float32), label


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_s43_nmi_and_matched_accuracy_equal_their_references(pairs: list[tuple[int, int]]) -> None:
    labels, clusters = np.array(pairs).T
    assert nmi(labels, clusters) == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-9)
    assert matched_accuracy(labels, clusters) == pytest.approx(best_by_trying(labels, clusters))


@settings(max_examples=30, deadline=None)
@given(pairs, st.permutations(range(4)), st.permutations(range(4)))
def test_s43_relabelling_changes_nothing(pairs: list[tuple[int, int]], one: list[int], two: list[int]) -> None:
    labels, clusters = np.array(pairs).T
    for rule in (nmi, matched_accuracy):
        assert rule(np.array(one)[labels], np.array(two)[clusters]) == pytest.approx(rule(labels, clusters), abs=1e-12)


def test_more_clusters_than_labels_leave_some_unnamed() -> None:
    assert matched_accuracy([0, 0, 0, 1], [0, 1, 2, 3]) == 0.5
    assert nmi([0, 0, 1], ["a", "a", "a"]) == 0.0


@pytest.mark.parametrize(("labels", "clusters"), [([0, 1], [0]), ([], [])])
def test_unequal_or_empty_labels_are_refused(labels: list[int], clusters: list[int]) -> None:
    with pytest.raises(ValueError, match="labels, clusters: expected"):
        nmi(labels, clusters)


def test_spectrum_components_are_those_of_scikit_learn_and_know_no_phase() -> None:
    windows, _ = tones()
    spectra = np.abs(np.fft.rfft(windows.astype(float), axis=1)).reshape(len(windows), -1)
    assert np.abs(spectrum_components(windows, 3)) == pytest.approx(np.abs(PCA(3).fit_transform(spectra)), abs=1e-8)
    rolled = np.roll(windows, 5, axis=1)
    assert spectrum_components(rolled, 3, fit_on=windows) == pytest.approx(spectrum_components(windows, 3), abs=1e-5)
    assert spectrum_components(windows[:2], 50).shape == (2, 2)


def test_s44_all_nine_numbers_in_one_report_on_the_same_folds() -> None:
    windows, label = tones()
    embedding = np.random.default_rng(1).normal(size=(len(windows), 4))  # knows nothing of the label
    groups = np.arange(len(label)) // 10
    folds = grouped_folds(label, groups, k=4)
    table = probe_table(compared_representations(windows, embedding), label, folds, groups=groups)
    assert len(table.scores) == 9 and (table.rows, table.folds, table.groups) == (240, 4, 24)
    assert all(s.low is not None and s.high is not None and s.low <= s.value <= s.high for s in table.scores)
    assert min(table.value("spectrum components", p) for p in PROBES) > 0.95
    assert table.value("raw windows", "linear") < 0.7, "a tone of any phase has no linear border"
    assert max(table.value("embedding", p) for p in PROBES) < 0.65
    text = table.to_text()
    assert [line.split("  ")[0] for line in text.splitlines()[1:4]] == [
        "embedding",
        "raw windows",
        "spectrum components",
    ]
    assert text.count("–") == 9 and "240 rows judged in 4 folds" in text


def test_the_same_folds_for_all_a_copy_gets_the_same_figures() -> None:
    windows, label = tones()
    flat = windows.reshape(len(windows), -1)
    table = probe_table({"one": flat, "two": flat.copy()}, label, chronological_folds(len(label), 3))
    assert all(table.value("one", p) == table.value("two", p) for p in PROBES)


def test_folds_keep_groups_whole_and_purge_their_neighbours() -> None:
    label, groups = np.arange(120) // 6 % 2, np.arange(120) // 6
    folds = grouped_folds(label, groups, k=4, purge=3)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(120))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert np.abs(train[:, None] - test[None]).min() > 3
        near = np.abs(np.arange(120)[:, None] - test[None]).min(axis=1)
        assert train.tolist() == np.flatnonzero(near > 3).tolist()


def test_chronological_folds_never_learn_from_later_rows() -> None:
    folds = chronological_folds(103, k=5, purge=4)
    assert np.concatenate([test for _, test in folds]).tolist() == list(range(17, 103))
    assert all(train.max() + 4 < test.min() for train, test in folds)
    with pytest.raises(ValueError, match="n, k: expected"):
        chronological_folds(3, k=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_weighted_figures_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, positive = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.4
    positive[:2] = True, False
    weights = rng.integers(0, 3, (3, 30)).astype(float)
    weights[:, :2] = 1
    for metric, rule in (("average_precision", average_precision_score), ("roc_auc", roc_auc_score)):
        expected = [rule(positive, score, sample_weight=w) for w in weights]
        assert ranking_figure(metric, score, positive, weights) == pytest.approx(expected)
    truth, said = rng.integers(0, 3, 30), rng.integers(0, 3, 30)
    truth[:3], said[:3], weights[:, :3] = range(3), range(3), 1
    expected = [balanced_accuracy_score(truth, said, sample_weight=w) for w in weights]
    assert balanced_accuracy(said.astype(float), truth, 3, weights) == pytest.approx(expected)


def test_rare_events_are_judged_by_ranking() -> None:
    rng = np.random.default_rng(3)
    rare = np.zeros(400, int)
    rare[10::25] = 1
    values = rng.normal(size=(400, 5)) + 4 * rare[:, None] * np.array([1, 0, 0, 0, 0])
    groups, folds = np.arange(400) // 25, chronological_folds(400, 4)
    telling = {"told": values, "noise": rng.normal(size=(400, 5))}
    for metric, chance in (("roc_auc", 0.5), ("average_precision", 0.04)):
        table = probe_table(telling, rare, folds, groups=groups, metric=metric)
        assert table.value("told", "linear") > 0.9 > table.value("noise", "linear")
        assert abs(table.value("noise", "linear") - chance) < 0.25


def test_a_fold_without_a_class_to_learn_is_left_out_for_all_and_said() -> None:
    label = np.r_[np.zeros(40, int), np.tile([0, 1], 20)]
    values = np.random.default_rng(0).normal(size=(80, 2)) + label[:, None]
    table = probe_table({"a": values, "b": values * 2}, label, chronological_folds(80, 3))
    assert (table.folds, table.left_out, table.rows) == (1, 2, 20)
    assert "2 folds left out" in table.to_text()
    with pytest.raises(ValueError, match="folds: expected one with all classes"):
        probe_table({"a": values}, label, chronological_folds(80, 3)[:1])


def test_too_few_groups_give_no_interval() -> None:
    windows, label = tones(80)
    values = windows.reshape(80, -1)
    table = probe_table({"raw": values}, label, chronological_folds(80, 2), groups=np.zeros(80, int))
    assert all(s.low is None and s.high is None for s in table.scores) and "–" not in table.to_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"representations": {}}, "at least one, got none"),
        ({"representations": {"a": np.zeros((3, 2))}}, r"expected \(8, d\) for 'a', got \(3, 2\)"),
        ({"representations": {"a": np.full((8, 2), np.nan)}}, "NaN or infinity in 'a'"),
        ({"labels": np.zeros(8, int)}, "two or more classes, got 1"),
        ({"labels": np.arange(8) % 3, "metric": "roc_auc"}, "two classes for roc_auc, got 3"),
        ({"metric": "f1"}, "metric: expected one of"),
        ({"probes": ("tree",)}, "probes: expected names of linear, knn, svm, got 'tree'"),
    ],
)
def test_what_cannot_be_probed_is_refused(changed: dict[str, object], message: str) -> None:
    usual = {"representations": {"a": np.ones((8, 2))}, "labels": np.arange(8) % 2, "folds": chronological_folds(8, 2)}
    with pytest.raises(ValueError, match=message):
        probe_table(**(usual | changed))  # type: ignore[arg-type]
