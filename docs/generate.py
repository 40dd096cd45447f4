"""Write the generated parts of the documents: ``python docs/generate.py``; with ``--check`` only say whether they are stale.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. What is generated comes from the code
(error codes, settings, commands); the words that the code does not hold are in ``docs/texts.toml``.
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typer

from anomaly import errors
from anomaly.config import Settings
from anomaly.detectors import DETECTORS, detector_class
from anomaly.encoders import ENCODERS, encoder_class
from anomaly.encoders.base import Option
from pipelines.cli import app

DOCS = Path(__file__).resolve().parent
TEXTS: dict[str, dict[str, str]] = tomllib.loads((DOCS / "texts.toml").read_text(encoding="utf-8"))

#: The class of each family of codes, by the code's first digit.
FAMILIES: dict[str, type[errors.AnomalyError]] = {
    "2": errors.UsageError,
    "3": errors.InputRefused,
    "4": errors.ModelRefused,
    "5": errors.Unavailable,
    "7": errors.AnomalyError,
}

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HELP_WIDTH = 100

#: Settings whose flag has another name than the key.
_OTHER_FLAGS = {
    "encoder.name": "encoder",
    "encoder.front": "front",
    "detection.detectors": "detectors",
    "detection.fusion": "fusion",
    "fine_tuning.enabled": "fine_tune",
    "fine_tuning.verdicts": "verdicts",
    "threshold.value": "threshold",
}
_TABLES_WITH_FLAGS = ("name", "log", "window", "training", "threshold")


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def error_tables() -> str:
    """A table of codes for each class of error."""
    lines = []
    for digit, own in FAMILIES.items():
        codes = [c for c in errors.CODES if c[1] == digit]
        lines += [f"## Exit status {own.exit_code}: {own.__name__}", ""]
        lines += ["| code | what is wrong | what to do |", "|---|---|---|"]
        lines += [_row(c, errors.CODES[c], TEXTS["cures"][c]) for c in codes] + [""]
    return "\n".join(lines)


def setting_keys() -> Iterator[tuple[str, str, Any, Any]]:
    """Every key as table, key, type, default."""
    defaults, hints = Settings(), get_type_hints(Settings)
    for top in fields(Settings):
        value = getattr(defaults, top.name)
        if not is_dataclass(value):
            yield "", top.name, hints[top.name], value
            continue
        own = get_type_hints(type(value))
        for f in fields(value):
            yield top.name, f.name, own[f.name], getattr(value, f.name)


def _kind(hint: Any) -> str:
    names = {
        "bool": "true or false",
        "str": "text",
        "int": "whole number",
        "float": "number",
        "tuple": "list of texts",
        "dict": "table",
    }
    return next(word for name, word in names.items() if str(hint).removeprefix("<class '").startswith(name))


def _default(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, tuple | dict):
        return f"`{list(value)}`".replace("'", '"') if value else "empty"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def flag_of(table: str, key: str) -> str:
    """The flag of ``anomaly train`` that sets a key, or a dash."""
    flags = {p.name: p.opts[0] for p in commands()["anomaly train"].params if p.opts[0].startswith("--")}
    name = f"{table}.{key}".lstrip(".")
    direct = key if name.split(".", maxsplit=1)[0] in _TABLES_WITH_FLAGS else None
    flag = flags.get(_OTHER_FLAGS.get(name, direct))
    return f"`{flag}`" if flag else "–"


def setting_tables() -> str:
    """A table of keys for each table of the TOML."""
    lines, before = [], None
    for table, key, hint, default in setting_keys():
        if table != before:
            lines += ["", f"### `[{table}]`" if table else "### The file", "", TEXTS["tables"][table], ""]
            lines += ["| key | type | default | flag | meaning |", "|---|---|---|---|---|"]
            before = table
        meaning = TEXTS["keys"][f"{table}.{key}".lstrip(".")]
        lines.append(_row(f"`{key}`", _kind(hint), _default(default), flag_of(table, key), meaning))
    return "\n".join(lines[1:]) + "\n"


def commands() -> dict[str, Any]:
    """Every command and group of the command line under its full name, in the order of ``--help``."""
    found: dict[str, Any] = {}

    def visit(name: str, command: Any) -> None:
        found[name] = command
        for key, own in getattr(command, "commands", {}).items():
            visit(f"{name} {key}", own)

    visit("anomaly", typer.main.get_command(app))
    return found


def help_text(name: str, command: Any) -> str:
    """What ``--help`` says, without a frame and at a fixed width."""
    command.rich_markup_mode = None
    context = command.context_class(command, info_name=name, terminal_width=_HELP_WIDTH, max_content_width=_HELP_WIDTH)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def command_sections() -> str:
    """A section for each command: its help."""
    return "\n".join(f"## {name}\n\n```text\n{help_text(name, own)}\n```\n" for name, own in commands().items())


def encoder_list() -> str:
    """Every encoder: what it is, what it can, its options."""
    lines = ["| encoder | what it is | reconstructs | trained | shortest window |", "|---|---|---|---|---|"]
    kinds = {name: encoder_class(name) for name in ENCODERS}
    for name, kind in kinds.items():
        reconstructs, trained = ("yes" if flag else "no" for flag in (kind.can_reconstruct, kind.trained))
        lines.append(_row(f"[`{name}`](#{name})", kind.summary, reconstructs, trained, kind.shortest))
    for name, kind in kinds.items():
        lines += ["", f"## {name}", "", kind.summary[0].upper() + kind.summary[1:] + ".", ""]
        lines += ["| option | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [_row(f"`{o}`", _default(d.default), _allowed(d), d.meaning) for o, d in kind.option_list.items()]
    return "\n".join(lines)


def detector_list() -> str:
    """Every detector: what it measures, what it reads, its options with their defaults."""
    lines = ["| detector | what it measures | reads | sensors named for | options |", "|---|---|---|---|---|"]
    for name in DETECTORS:
        kind = detector_class(name)
        options = [
            f"`{p.name}` = {p.default!r}"
            for p in inspect.signature(kind).parameters.values()
            if p.default is not p.empty
        ]
        named = "scores of 1 and more" if kind.dear else "every row"
        lines.append(_row(f"`{name}`", kind.summary, kind.needs, named, ", ".join(options) or "–"))
    return "\n".join(lines)


def _allowed(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if isinstance(option.default, bool):
        return "`true`, `false`"
    bounds = [f"from {option.least:g}"] if option.least is not None else []
    bounds += [f"to {option.most:g}"] if option.most is not None else []
    return " ".join(bounds)


PARTS: dict[str, Callable[[], str]] = {
    "errors": error_tables,
    "settings": setting_tables,
    "commands": command_sections,
    "encoders": encoder_list,
    "detectors": detector_list,
}


def renewed(text: str) -> str:
    """``text`` with every generated part made anew."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", text)


def main(arguments: list[str]) -> int:
    """Rewrite stale documents; with ``--check`` name them and give 1."""
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (fresh := renewed(text)) != text:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(fresh, encoding="utf-8")
    verb = "stale" if "--check" in arguments else "rewritten"
    sys.stdout.write("".join(f"{verb}: {name}\n" for name in stale) or "nothing is stale\n")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
