"""How good a score is: row and event figures, each with its count, its interval and baselines beside it (METHODS S61, S62).

``rows``: ranking and confusion of rows. ``events``: what was found, how early, how often in vain. ``figures``: a number
with its interval. ``evaluation``: all of it for one part of a log.
"""

from anomaly.metrics.evaluation import Evaluation, ScoredPart, evaluate
from anomaly.metrics.events import (
    EventOutcome,
    early_recall,
    event_outcomes,
    event_recall,
    false_episodes,
    false_episodes_per_day,
    flag_intervals,
    median_lead,
    operating_days,
)
from anomaly.metrics.figures import (
    Figure,
    Interval,
    bootstrap_interval,
    clopper_pearson,
    poisson_interval,
    wilson,
)
from anomaly.metrics.rows import (
    Confusion,
    average_precision,
    confusion,
    pr_curve,
    ranking_problem,
    recall_at_fpr,
    roc_auc,
    roc_curve,
    time_blocks,
)

__all__ = [
    "Confusion",
    "Evaluation",
    "EventOutcome",
    "Figure",
    "Interval",
    "ScoredPart",
    "average_precision",
    "bootstrap_interval",
    "clopper_pearson",
    "confusion",
    "early_recall",
    "evaluate",
    "event_outcomes",
    "event_recall",
    "false_episodes",
    "false_episodes_per_day",
    "flag_intervals",
    "median_lead",
    "operating_days",
    "poisson_interval",
    "pr_curve",
    "ranking_problem",
    "recall_at_fpr",
    "roc_auc",
    "roc_curve",
    "time_blocks",
    "wilson",
]
