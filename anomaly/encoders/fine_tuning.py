"""Few labels: a head on a pretrained encoder, first alone, then with the encoder unfrozen (METHODS S33; seed 003).

Labels are dear and few. A linear head on frozen embeddings has little to overfit with; only then is the encoder let go,
at a small step. What comes out is used only where it ranks the validation part better than the frozen model did, by an
interval over its events, never because it was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from anomaly.config import FineTuningSettings
from anomaly.data.contract import EVENT, NORMAL, UNKNOWN
from anomaly.encoders.neural import NeuralEncoder
from anomaly.errors import Fault, InputRefused
from anomaly.intervals import contains

Floats = NDArray[np.float64]
#: Scores and positives of rows → how well the scores rank them, higher is better.
Metric = Callable[[Floats, NDArray[np.bool_]], float]

#: Share of the training events, the last ones, that choose between the two stages and end the second.
_HELD_BACK = 0.25
_DRAWS = 400
_BATCH = 64

#: What each verdict on an alert says of the rows it covers. A failed sensor or a doubt says nothing of the plant.
VERDICTS: dict[str, int] = {
    "true fault": EVENT,
    "nuisance": NORMAL,
    "known work": NORMAL,
    "sensor fault": UNKNOWN,
    "unsure": UNKNOWN,
}


@dataclass(frozen=True)
class LabelledWindows:
    """Windows ``(n, T, channels)`` in time order, whether an event is near ``(n,)``, and the block of each ``(n,)``: an
    event with the normal time after it. Blocks are what an interval is drawn over."""

    windows: NDArray[np.float32]
    positive: NDArray[np.bool_]
    block: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def n_events(self) -> int:
        """Blocks with a positive window."""
        return len(np.unique(self.block[self.positive]))

    def take(self, index: NDArray[np.bool_]) -> LabelledWindows:
        """The windows at ``index``."""
        return LabelledWindows(self.windows[index], self.positive[index], self.block[index])


@dataclass(frozen=True)
class Head:
    """A linear head: ``embedding @ weight (d,) + bias`` is the log odds that an event is near."""

    weight: Floats
    bias: float

    def log_odds(self, embedding: NDArray[np.float32]) -> Floats:
        """``(B, d)`` → ``(B,)``."""
        return np.asarray(embedding.astype(np.float64) @ self.weight + self.bias)

    def probability(self, embedding: NDArray[np.float32]) -> Floats:
        """``(B, d)`` → ``(B,)`` in [0, 1]; of a training with as many event windows as normal ones, so only a ranking.

        >>> Head(np.array([1.0, 0.0]), 0.0).probability(np.zeros((1, 2), np.float32)).tolist()
        [0.5]
        """
        return np.asarray(expit(self.log_odds(embedding)))

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: ``weight (d,)`` and ``bias ()``."""
        return {"weight": self.weight, "bias": np.asarray(self.bias)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]]) -> Head:
        """Undo ``to_state``; raises ValueError for weights that are not one finite vector."""
        weight, bias = np.asarray(arrays["weight"], np.float64), float(arrays["bias"])
        if weight.ndim != 1 or not np.isfinite(weight).all() or not np.isfinite(bias):
            raise ValueError(f"arrays: expected a finite weight (d,) and bias, got weight {weight.shape}, bias {bias}")
        return cls(weight, bias)


@dataclass(frozen=True)
class FineTuned:
    """What few labels gave.

    ``stage``: "head" (encoder as it was), "unfrozen", or "frozen" where nothing was trained. ``gain`` with ``low`` and
    ``high``: how much better validation is ranked than by the frozen model's scores. ``used`` only where ``low`` is
    above 0; ``reason`` says so in words. An unfrozen autoencoder's decoder was not trained along: embed with it only.
    """

    encoder: NeuralEncoder
    head: Head | None
    stage: str
    gain: float
    low: float
    high: float
    n_events: int
    used: bool
    reason: str


def fit_head(embedding: NDArray[np.float32], positive: NDArray[np.bool_], strength: float) -> Head:
    """A balanced logistic regression on standardised embeddings, the scaling folded into its weights.

    ``strength`` is scikit-learn's C: the smaller, the more the weights are held at zero.
    """
    exact = embedding.astype(np.float64)
    centre, scale = exact.mean(axis=0), exact.std(axis=0)
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-12), scale, np.inf)
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit(
        (exact - centre) / scale, positive
    )
    weight = fitted.coef_[0] / scale
    return Head(weight, float(fitted.intercept_[0] - centre @ weight))


def fine_tune(
    encoder: NeuralEncoder,
    train: LabelledWindows,
    validation: LabelledWindows,
    baseline: Floats,
    settings: FineTuningSettings,
    metric: Metric,
    seed: int = 7,
) -> FineTuned:
    """Head first, then unfreeze; judged on ``validation`` against ``baseline (n,)``, the frozen model's scores there.

    ``encoder`` is left as it was. A window whose baseline is NaN is judged by neither. Raises InputRefused E3304 for a
    window that is not finite, ValueError for a baseline of another length.
    """
    if np.shape(baseline) != (len(validation),):
        raise ValueError(f"baseline: expected one score per validation window ({len(validation)},), "
                         f"got {np.shape(baseline)}")  # fmt: skip
    _refuse_non_finite(train, "training")
    _refuse_non_finite(validation, "validation")
    scored = np.isfinite(baseline)
    validation, baseline = validation.take(scored), np.asarray(baseline, np.float64)[scored]
    if reason := _too_little(train, validation, settings.least_events):
        return FineTuned(encoder, None, "frozen", 0.0, 0.0, 0.0, train.n_events, False, reason)
    chosen, head, stage = _best_stage(encoder, train, settings, metric, seed)
    found = head.log_odds(chosen.embed(validation.windows))
    gain, low, high = paired_gain(found, baseline, validation, metric, seed)
    # NaN, where a ranking is not defined, is above nothing: such a head is never used.
    used = bool(low > 0)
    return FineTuned(
        chosen, head, stage, gain, low, high, train.n_events, used, _in_words(stage, train.n_events, gain, low, high)
    )


def paired_gain(
    found: Floats, baseline: Floats, labelled: LabelledWindows, metric: Metric, seed: int
) -> tuple[float, float, float]:
    """How much better ``found`` ranks than ``baseline``, and its 95 % interval, over events.

    The spread comes from blocks drawn with replacement, the same ones for both; draws without an event, or with nothing
    else, are drawn again. It is widened to Student's t with one degree of freedom less than there are events: of few
    events the quantiles of the draws are far too near each other (measured on rankings that were equally good: above 0
    in 47 % of cases with one event, 25 % with two, 15 % with three, where 2.5 % were promised). One event gives an
    infinite interval. All NaN where ``metric`` is not defined, as for a constant score.
    """
    gain = metric(found, labelled.positive) - metric(baseline, labelled.positive)
    events = labelled.n_events
    if not np.isfinite(gain):
        return np.nan, np.nan, np.nan
    draws = _drawn_gains(found, baseline, labelled, metric, np.random.default_rng(seed))
    if events < 2 or len(draws) < 2:
        return float(gain), -np.inf, np.inf
    half = student.ppf(0.975, events - 1) * draws.std(ddof=1) * np.sqrt(events / (events - 1))
    return float(gain), float(gain - half), float(gain + half)


def verdict_labels(time: NDArray[np.int64], asset: NDArray[np.object_], verdicts: pd.DataFrame) -> NDArray[np.int8]:
    """Verdicts on alerts as labels of rows: EVENT for a true fault, NORMAL for a nuisance or known work, else UNKNOWN.

    ``time (n,)`` UTC microseconds and ``asset (n,)`` names of the rows. ``verdicts`` has the columns asset, start, end
    (half-open, UTC microseconds, or times with a zone) and verdict. Rows without a verdict are UNKNOWN, and so are rows
    that a sensor fault or a doubt covers, or that two verdicts disagree on. Verdicts on other assets change nothing.

    Raises InputRefused E3101 (column), E3112 (verdict of another name), E3201 (no zone), E3204 (no time), E3205.

    >>> alerts = pd.DataFrame({"asset": ["P-1", "P-1"], "start": [0, 3], "end": [2, 4], "verdict": ["true fault", "nuisance"]})
    >>> verdict_labels(np.arange(5), np.full(5, "P-1", dtype=object), alerts).tolist()
    [1, 1, -1, 0, -1]
    """
    intervals, meaning = _checked_verdicts(verdicts)
    named, label = verdicts["asset"].to_numpy(), np.full(len(time), UNKNOWN, np.int8)
    for name in np.unique(named.astype(str)):
        rows, own = np.flatnonzero(asset.astype(str) == name), named.astype(str) == name
        said = {kind: contains(intervals[own & (meaning == kind)], time[rows]) for kind in (EVENT, NORMAL, UNKNOWN)}
        label[rows[said[EVENT] & ~said[NORMAL] & ~said[UNKNOWN]]] = EVENT
        label[rows[said[NORMAL] & ~said[EVENT] & ~said[UNKNOWN]]] = NORMAL
    return label


def _checked_verdicts(verdicts: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intervals ``(m, 2)`` in microseconds and what each says; refuses a table that cannot be followed."""
    for column in ("asset", "start", "end", "verdict"):
        if column not in verdicts:
            raise InputRefused(Fault("E3101", f"the column {column} in the verdicts", ", ".join(map(str, verdicts))))
    faults = [
        Fault("E3112", f"a verdict: {', '.join(VERDICTS)}", word, column="verdict", row=k + 1)
        for k, word in enumerate(verdicts["verdict"])
        if word not in VERDICTS
    ]
    intervals = np.column_stack([_microseconds(verdicts[column]) for column in ("start", "end")])
    backwards = np.flatnonzero(intervals[:, 1] < intervals[:, 0])
    faults += [Fault("E3205", "an end at or after its start", verdicts["end"].iloc[k], column="end", row=int(k) + 1)
               for k in backwards]  # fmt: skip
    if faults:
        raise InputRefused(faults)
    return intervals, np.array([VERDICTS[word] for word in verdicts["verdict"]], dtype=np.int64)


def _microseconds(times: pd.Series[Any]) -> NDArray[np.int64]:
    """A column of the verdicts as UTC microseconds."""
    column = str(times.name)
    if missing := np.flatnonzero(times.isna()).tolist():
        raise InputRefused(Fault("E3204", "a time", "nothing", column=column, row=missing[0] + 1))
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    if pd.api.types.is_datetime64_dtype(times.dtype):
        raise InputRefused(Fault("E3201", "times with a zone", "times without one", "add the zone", column=column))
    if not len(times):
        return np.empty(0, np.int64)
    if not pd.api.types.is_integer_dtype(times.dtype):
        raise InputRefused(Fault("E3204", "UTC microseconds or times with a zone", times.iloc[0], column=column, row=1))
    return times.to_numpy(np.int64)


def _refuse_non_finite(part: LabelledWindows, name: str) -> None:
    """Refuse (InputRefused E3304) NaN or infinity, naming the first window that holds it."""
    bad = np.flatnonzero(~np.isfinite(part.windows).all(axis=(1, 2)))
    if len(bad):
        found = f"NaN or infinity in labelled {name} window {bad[0] + 1}"
        raise InputRefused(Fault("E3304", "finite numbers", found, "look for values of impossible size in the log"))


def _too_little(train: LabelledWindows, validation: LabelledWindows, least: int) -> str:
    """Why these labels cannot be learned from or judged by, or ""."""
    if train.n_events < least or not validation.n_events:
        return (
            f"few labels: {train.n_events} events to learn from and {validation.n_events} to be judged by; "
            f"at least {least} and 1 are needed"
        )
    for part, name in ((train, "training"), (validation, "validation")):
        if part.positive.all():
            return f"one class: no labelled normal window in the {name} part, so nothing to tell events from"
    return ""


def _in_words(stage: str, events: int, gain: float, low: float, high: float) -> str:
    """The outcome in words.

    >>> _in_words("head", 5, 0.2, 0.1, 0.3)
    'head with 5 events: validation ranked better than by the frozen model by 0.200 (0.100 to 0.300): used'
    """
    if np.isnan(gain):
        return f"{stage} with {events} events: not used, a ranking is not defined: one of the scores is constant"
    figures = f"validation ranked better than by the frozen model by {gain:.3f} ({low:.3f} to {high:.3f})"
    return f"{stage} with {events} events: {figures}: " + ("used" if low > 0 else "not used, not surely above 0")


def _drawn_gains(
    found: Floats, baseline: Floats, labelled: LabelledWindows, metric: Metric, rng: np.random.Generator
) -> Floats:
    """Gains over blocks drawn with replacement, ``(draws,)``, where both rankings are defined."""
    names, own = np.unique(labelled.block, return_inverse=True)
    members = [np.flatnonzero(own == k) for k in range(len(names))]
    gains: list[float] = []
    for _ in range(4 * _DRAWS):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(names), size=len(names))])
        positive = labelled.positive[rows]
        if positive.any() and not positive.all():
            gain = metric(found[rows], positive) - metric(baseline[rows], positive)
            gains += [gain] if np.isfinite(gain) else []
        if len(gains) == _DRAWS:
            break
    return np.array(gains)


def _best_stage(
    encoder: NeuralEncoder, train: LabelledWindows, settings: FineTuningSettings, metric: Metric, seed: int
) -> tuple[NeuralEncoder, Head, str]:
    """Head, then unfrozen; the second only where it ranks the held back events better. A head that stays alone is fitted
    again on all training events: it had no part in choosing itself, and labels are too few to leave any out."""
    whole_head = fit_head(encoder.embed(train.windows), train.positive, settings.strength)
    learn, held_back = _last_events_apart(train)
    if not _two_classes(learn) or not _two_classes(held_back):
        return encoder, whole_head, "head"
    head = fit_head(encoder.embed(learn.windows), learn.positive, settings.strength)
    tuned, tuned_head = _unfrozen(encoder, head, learn, held_back, settings, metric, seed)
    frozen = metric(head.log_odds(encoder.embed(held_back.windows)), held_back.positive)
    unfrozen = metric(tuned_head.log_odds(tuned.embed(held_back.windows)), held_back.positive)
    return (tuned, tuned_head, "unfrozen") if unfrozen > frozen else (encoder, whole_head, "head")


def _two_classes(part: LabelledWindows) -> bool:
    return bool(part.positive.any() and not part.positive.all())


def _last_events_apart(train: LabelledWindows) -> tuple[LabelledWindows, LabelledWindows]:
    """The training windows, and the last events of them held back, at least one. With a single event nothing is left to
    learn from: windows that were learned from must not choose the stage."""
    events = np.unique(train.block[train.positive])
    first_held = events[len(events) - max(1, round(_HELD_BACK * len(events)))]
    return train.take(train.block < first_held), train.take(train.block >= first_held)


def _unfrozen(
    encoder: NeuralEncoder,
    head: Head,
    learn: LabelledWindows,
    held_back: LabelledWindows,
    settings: FineTuningSettings,
    metric: Metric,
    seed: int,
) -> tuple[NeuralEncoder, Head]:
    """A copy of the encoder trained together with the head, which starts where the first stage ended."""
    copy = type(encoder).from_state(*encoder.to_state())
    keras.utils.set_random_seed(seed)
    embedder = copy.embedder
    answer = keras.layers.Dense(1, name="event_near")
    model = keras.Model(embedder.input, answer(embedder.output))
    answer.set_weights([head.weight[:, None].astype(np.float32), np.array([head.bias], np.float32)])
    model.compile(
        optimizer=keras.optimizers.Adam(settings.learning_rate, global_clipnorm=1.0),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    prepared, rng = copy.through_front(learn.windows), np.random.default_rng(seed)
    best, weights = -np.inf, model.get_weights()
    for _ in range(settings.epochs):
        for index in _balanced(learn.positive, rng):
            model.train_on_batch(prepared[index], learn.positive[index, None].astype(np.float32))
        now = metric(_head_of(answer).log_odds(copy.embed(held_back.windows)), held_back.positive)
        if now > best:
            best, weights = now, model.get_weights()
    model.set_weights(weights)
    return copy, _head_of(answer)


def _head_of(answer: Any) -> Head:
    weight, bias = (np.asarray(w, dtype=np.float64) for w in answer.get_weights())
    return Head(weight[:, 0], float(bias[0]))


def _balanced(positive: NDArray[np.bool_], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """An epoch of batches, half of each positive, drawn with replacement."""
    yes, no = np.flatnonzero(positive), np.flatnonzero(~positive)
    steps = min(max(len(positive) // _BATCH, 4), 100)
    half = _BATCH // 2
    return [np.concatenate((rng.choice(yes, half), rng.choice(no, half))) for _ in range(steps)]
