"""Promotion by evidence, and the way back: the champion changes only here.

``candidate`` says what would be promoted and over whom, somebody collects gates (``registry.comparison``), ``promote``
commits or refuses. Our table decides, MLflow's aliases follow it. Every decision, a refusal too, is in the audit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.errors import Fault, ModelRefused
from anomaly.faults import killpoint
from registry.bundle import refused
from registry.catalogue import ResolvedModel, resolve_model
from registry.comparison import Gate
from registry.promotion_table import CHAMPION, Champion, Entry, PromotionTable, mirror, now, user
from registry.state import connection, find_state
from registry.tracking import CHALLENGER, DIGEST_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

_LONGEST_TAG = 4000


@dataclass(frozen=True)
class Candidate:
    """What would be promoted: verified bundles of the version and of the champion, and the row it is decided against."""

    name: str
    version: int
    model: ResolvedModel
    champion: ResolvedModel | None
    row: Champion | None


@dataclass(frozen=True)
class Promotion:
    """A champion that changed; ``gates`` are empty after a rollback."""

    name: str
    version: int
    before: int | None
    who: str
    why: str
    at: str
    gates: tuple[Gate, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {**self.__dict__, "gates": [g.to_dict() for g in self.gates]}


def candidate(reference: str, home: Path | None = None) -> Candidate:
    """The version that ``reference`` (NAME: its challenger; NAME/VERSION; NAME@ALIAS; or as models:/…) names, and its champion.

    Raises ModelRefused: E4001 unknown, E4002 to E4005 bad bytes, E4101 it is the champion already; Unavailable E5003.
    """
    state = find_state(home)
    text = reference if reference.startswith("models:/") else f"models:/{reference}"
    plain = text.removeprefix("models:/")
    model = resolve_model(text if "@" in plain or "/" in plain else f"{text}@{CHALLENGER}", home)
    if model.name is None or model.version is None:
        raise refused("E4001", "a registered model", reference, "register it first: `anomaly train --name`")
    row = PromotionTable(state).champion(
        model.name
    )  # before the aliases: what changes from here on is noticed at the end
    with connection(state) as client:
        aliases = dict(client.get_registered_model(model.name).aliases)
    held = row.version if row else int(aliases[CHAMPION]) if CHAMPION in aliases else None
    if held == model.version:
        hint = "name another version; `anomaly models list` shows them"
        raise refused("E4101", f"a version of {model.name} other than its champion", f"version {held}", hint)
    over = resolve_model(f"models:/{model.name}/{held}", home) if held is not None else None
    return Candidate(model.name, model.version, model, over, row)


def promote(
    wanted: Candidate,
    gates: Sequence[Gate],
    *,
    who: str = "",
    why: str = "",
    evidence: dict[str, Any] | None = None,
    home: Path | None = None,
) -> Promotion:
    """Make the candidate champion if every gate is passed; the evidence is kept either way.

    ``who`` is the user of this process if empty. ``evidence`` is any JSON-ready addition to the gates (rows, digests). Raises
    ModelRefused E4101 (one line for each gate that is not passed; nothing changes) or E4102 (somebody else changed the
    champion since ``candidate``); Unavailable E5003. Killed at any moment, the old or the new version is champion, never none.
    """
    if not gates:
        raise ValueError("gates: expected at least one, got none")
    state, who = find_state(home), who or user()
    table, before = PromotionTable(state), wanted.champion.version if wanted.champion else None
    kept = {"gates": [g.to_dict() for g in gates], **(evidence or {})}
    failed = [g for g in gates if not g.passed]
    entry = Entry(
        now(),
        who,
        "refused" if failed else "promoted",
        wanted.name,
        before,
        wanted.version,
        why,
        wanted.model.digest,
        kept,
    )
    with connection(state) as client:
        _tag(client, wanted, {f"promotion.{g.name}": f"{'passed' if g.passed else 'FAILED'}: {g.words}" for g in gates})
        if failed:
            table.note(entry)
            _tag(client, wanted, _summary(entry))
            raise ModelRefused([_fault(wanted, g) for g in failed])
        killpoint("promotion.before_table")
        previous_digest = wanted.champion.digest if wanted.champion else None
        new = Champion(wanted.name, wanted.version, wanted.model.digest, before, previous_digest)
        table.change(wanted.row, new, entry)
        killpoint("promotion.before_alias")
        mirror(client, table, wanted.name, client.get_registered_model(wanted.name).aliases)
        killpoint("promotion.after_alias")
        _tag(client, wanted, _summary(entry))
    return Promotion(wanted.name, wanted.version, before, who, why, entry.at, tuple(gates))


def rollback(name: str, *, who: str = "", why: str = "", home: Path | None = None) -> Promotion:
    """Make the version that was champion before champion again; a second rollback takes the first one back.

    The bytes of that version are verified first. Raises ModelRefused E4103 (there was none before), E4102 (somebody else
    changed the champion meanwhile), E4001 to E4005 (the version is gone or damaged); Unavailable E5003.
    """
    state, who, name = find_state(home), who or user(), name.removeprefix("models:/").partition("@")[0]
    table = PromotionTable(state)
    row = table.champion(name)
    if row is None or row.previous is None:
        hint = "see `anomaly models show`; promote another version instead"
        raise refused("E4103", f"an earlier champion of {name}", "none on record", hint)
    model = resolve_model(f"models:/{name}/{row.previous}", home)
    if row.previous_digest and model.digest != row.previous_digest:
        raise refused(
            "E4002", f"digest {row.previous_digest}", model.digest, "the version was changed since it was champion"
        )
    entry = Entry(now(), who, "rolled back", name, row.version, row.previous, why, model.digest)
    new = replace(row, version=row.previous, digest=model.digest, previous=row.version, previous_digest=row.digest)
    table.change(row, new, entry)
    killpoint("promotion.before_alias")
    with connection(state) as client:
        mirror(client, table, name, client.get_registered_model(name).aliases)
    return Promotion(name, row.previous, row.version, who, why, entry.at)


def history(name: str, home: Path | None = None) -> tuple[Entry, ...]:
    """The audit of a name, oldest first; empty where nothing was decided yet."""
    return PromotionTable(find_state(home)).history(name)


def _fault(wanted: Candidate, gate: Gate) -> Fault:
    over = f" over version {wanted.champion.version}" if wanted.champion else ""
    return Fault(
        "E4101", f"gate {gate.name} for {wanted.name} version {wanted.version}{over}", "not passed", gate.words
    )


def _summary(entry: Entry) -> dict[str, str]:
    said = {"verdict": entry.action, "at": entry.at, "who": entry.who, "why": entry.why, "against": entry.from_version}
    return {"promotion": json.dumps(said)}


def _tag(client: MlflowClient, wanted: Candidate, tags: dict[str, str]) -> None:
    """Evidence as tags of the version, for whoever looks with MLflow's own tools."""
    version = str(wanted.version)
    if client.get_model_version(wanted.name, version).tags.get(DIGEST_TAG) != wanted.model.digest:
        raise refused("E4002", f"digest {wanted.model.digest}", "another", "the version changed while it was judged")
    for key, value in tags.items():
        client.set_model_version_tag(wanted.name, version, key, value[:_LONGEST_TAG])
