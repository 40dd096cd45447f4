"""The states of an alert, in the words of ISA-18.2, and which action leads from which to which. Nothing here knows a database."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from anomaly.errors import Fault, UsageError

NEW, ACKNOWLEDGED, IN_WORK = "new", "acknowledged", "in_work"
SHELVED, RETURNED, CLOSED = "shelved", "returned", "closed"

#: Every state and its words.
STATES: Mapping[str, str] = {
    NEW: "new",
    ACKNOWLEDGED: "acknowledged",
    IN_WORK: "in work",
    SHELVED: "shelved",
    RETURNED: "returned to normal",
    CLOSED: "closed",
}
#: States of an alert that still wants something of somebody.
OPEN = (NEW, ACKNOWLEDGED, IN_WORK, SHELVED, RETURNED)

TRUE_FAULT, NUISANCE, KNOWN_WORK = "true_fault", "nuisance", "known_work"
SENSOR_FAULT, UNSURE = "sensor_fault", "unsure"
#: Every verdict and its words.
VERDICTS: Mapping[str, str] = {
    TRUE_FAULT: "true fault",
    NUISANCE: "nuisance",
    KNOWN_WORK: "known work",
    SENSOR_FAULT: "sensor fault",
    UNSURE: "unsure",
}

ANOMALY, FLOOD = "anomaly", "flood"
#: Findings on the data or the service, kept apart from anomalies of the process.
QUALITY_KINDS = ("flat_line", "gap", "unit", "swap", "no_data", "stale_scorer", "unscorable")
KINDS = (ANOMALY, FLOOD, *QUALITY_KINDS)

#: The actor of what nobody did: an expiry, a later log.
SYSTEM = "system"


@dataclass(frozen=True)
class Action:
    """From which states, to which (None: it stays), and the least role that may do it."""

    sources: Collection[str]
    to: str | None
    role: str = "operator"


ACTIONS: Mapping[str, Action] = {
    "acknowledge": Action((NEW,), ACKNOWLEDGED),
    "start": Action((NEW, ACKNOWLEDGED, RETURNED), IN_WORK),
    "shelve": Action((NEW, ACKNOWLEDGED, IN_WORK, RETURNED), SHELVED),
    "unshelve": Action((SHELVED,), ACKNOWLEDGED),
    "return": Action((NEW, ACKNOWLEDGED, IN_WORK), RETURNED),
    "verdict": Action(tuple(STATES), CLOSED, "reviewer"),
    "reopen": Action((RETURNED, CLOSED), NEW),
    "assign": Action(OPEN, None),
    "note": Action(tuple(STATES), None, "reviewer"),
}


def next_state(state: str, action: str, *, acknowledged: bool = True) -> str:
    """The state after ``action``. Ending a shelf leads back to new where nobody had ``acknowledged`` before.

    Raises UsageError E2001 for an unknown action, or one that is not allowed in ``state``, saying what is.

    >>> next_state("new", "acknowledge"), next_state("closed", "note"), next_state("shelved", "unshelve", acknowledged=False)
    ('acknowledged', 'closed', 'new')
    """
    if action not in ACTIONS:
        raise UsageError(Fault("E2001", f"an action: {', '.join(ACTIONS)}", action))
    rule = ACTIONS[action]
    if state not in rule.sources:
        found = f"{action} of an alert that is {STATES.get(state, state)}"
        raise UsageError(Fault("E2001", f"an action allowed here: {', '.join(allowed(state))}", found))
    if action == "unshelve" and not acknowledged:
        return NEW
    return rule.to or state


def allowed(state: str) -> tuple[str, ...]:
    """The actions that an alert in ``state`` takes, in the order of ``ACTIONS``.

    >>> allowed("closed")
    ('verdict', 'reopen', 'note')
    """
    return tuple(name for name, action in ACTIONS.items() if state in action.sources)


def checked_verdict(verdict: str) -> str:
    """``verdict``, or UsageError E2001 with the verdicts there are."""
    if verdict not in VERDICTS:
        raise UsageError(Fault("E2001", f"a verdict: {', '.join(VERDICTS)}", verdict))
    return verdict
