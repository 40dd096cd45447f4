"""The documents say what the code does: generated parts are fresh, links resolve, quoted commands and formats exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alerts.notification_settings import NotifySettings
from anomaly import errors
from anomaly.config import Settings
from anomaly.encoders import ENCODERS, encoder_class

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PACKAGES = ("anomaly", "registry", "alerts", "pipelines")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()
COMMANDS: dict[str, Any] = generate.commands()
LEAVES = {name: own for name, own in COMMANDS.items() if not getattr(own, "commands", {})}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _table_cells(text: str) -> set[str]:
    """Every code word in the first column of the tables of ``text``."""
    return {word for cell in re.findall(r"^\| (`[^|]*`) \|", text, re.M) for word in re.findall(r"`([^`]+)`", cell)}


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


# -- generated parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_generated_parts_are_fresh(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert generate.renewed(text) == text, "run: python docs/generate.py"


def test_a_stale_part_is_noticed_and_renewed() -> None:
    text = _text("docs/errors.md")
    stale = text.replace(errors.CODES["E3107"], "something else")
    assert stale != text
    assert generate.renewed(stale) == text


def test_every_part_that_can_be_generated_is_in_a_document() -> None:
    used = [name for path in DOCS for name in re.findall(r"<!-- generated: (\w+) -->", path.read_text("utf-8"))]
    assert sorted(used) == sorted(generate.PARTS)


def test_check_gives_one_for_a_stale_document_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: errors -->\nold\n<!-- end -->\n", encoding="utf-8")
    assert generate.main(["--check"]) == 1
    assert "old" in page.read_text(encoding="utf-8")
    assert generate.main([]) == 0
    assert "E3107" in page.read_text(encoding="utf-8")
    assert generate.main(["--check"]) == 0


def test_every_word_of_the_texts_is_used_and_none_is_missing() -> None:
    keys = {f"{table}.{key}".lstrip(".") for table, key, _, _ in generate.setting_keys()}
    assert set(generate.TEXTS["cures"]) == set(errors.CODES)
    assert set(generate.TEXTS["keys"]) == keys
    assert set(generate.TEXTS["tables"]) == {table for table, *_ in generate.setting_keys()}


# -- errors ----------------------------------------------------------------------------------------------------------


def _raised() -> Iterator[tuple[str, str, str]]:
    """(error class, code, place) of every refusal that is built with its code in place."""
    names = {own.__name__ for own in generate.FAMILIES.values()}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                for inner in ast.walk(node.args[0]):
                    if isinstance(inner, ast.Constant) and re.fullmatch(r"E\d{4}", str(inner.value)):
                        yield node.func.id, str(inner.value), f"{_name(path)}:{inner.lineno}"


def test_a_code_belongs_to_the_class_that_raises_it() -> None:
    raised = list(_raised())
    assert len(raised) > 30
    wrong = [entry for entry in raised if generate.FAMILIES[entry[1][1]].__name__ != entry[0]]
    assert not wrong


def test_every_code_is_used_somewhere() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "errors.py")
    assert [c for c in errors.CODES if c not in code] == []


def test_exit_statuses_agree_with_the_promises() -> None:
    promised = {int(c) for c in re.findall(r"^\| (\d+) \|", _text("docs/promises.md"), re.M)}
    assert promised == {0, 130, *(own.exit_code for own in generate.FAMILIES.values())}


# -- settings --------------------------------------------------------------------------------------------------------


def _toml_blocks() -> list[tuple[str, str]]:
    return [
        (_name(path), block)
        for path in DOCS
        for block in re.findall(r"^```toml\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    ]


def test_every_settings_example_loads(tmp_path: Path) -> None:
    blocks = _toml_blocks()
    assert "docs/configuration.md" in {place for place, _ in blocks}
    for _, block in blocks:
        (tmp_path / "example.toml").write_text(block, encoding="utf-8")
        if block.startswith("[notify]"):
            assert NotifySettings.from_toml(tmp_path / "example.toml").targets
            continue
        assert Settings.from_toml(tmp_path / "example.toml") != Settings()


def test_every_key_stands_with_its_default() -> None:
    text = _text("docs/configuration.md")
    for _, key, _, default in generate.setting_keys():
        assert re.search(rf"^\| `{key}` \| [^|]+ \| {re.escape(generate._default(default))} \|", text, re.M), key


def test_flags_named_beside_keys_set_those_keys() -> None:
    assert generate.flag_of("log", "categories") == "`--category`"
    assert generate.flag_of("threshold", "value") == "`--threshold`"
    assert generate.flag_of("encoder", "name") == "`--encoder`"
    assert generate.flag_of("", "name") == "`--name`"
    assert generate.flag_of("log", "quality") == "`--quality-column`"
    assert generate.flag_of("window", "max_gap") == "–"


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_and_its_options_are_listed(name: str) -> None:
    section = _text("docs/encoders.md").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    options = encoder_class(name).option_list
    assert options
    assert _table_cells(section) == set(options)


def test_every_environment_variable_is_listed() -> None:
    used = {v for path in SOURCES for v in re.findall(r"\bANOMALY_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    listed = _table_cells(_text("docs/configuration.md").partition("## Environment")[2])
    assert used
    assert used <= listed


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_section_with_every_flag(name: str) -> None:
    section = re.search(rf"^## {name}\n\n```text\n(.*?)^```", _text("docs/command-line.md"), re.M | re.S)
    assert section is not None
    flags = [flag for p in COMMANDS[name].params for flag in p.opts if flag.startswith("--")]
    assert [f for f in [*flags, "--help"] if f not in section[1]] == []
    if name in LEAVES:
        assert f"Example: `{name}" in section[1]


@pytest.mark.parametrize("name", LEAVES)
def test_every_flag_and_argument_says_what_it_is(name: str) -> None:
    assert [p.name for p in LEAVES[name].params if not p.help] == []
    assert LEAVES[name].help


def _quoted() -> Iterator[tuple[str, str, bool]]:
    """(place, command line, whether it stands in a block and so must be complete)."""
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(anomaly .+)", line.strip()):
                    yield _name(path), found[1], True
        for span in re.findall(r"`(anomaly [^`\n]+)`", _without_code(text)):
            yield _name(path), span, False
    for path in SOURCES:
        for span in re.findall(r"`(anomaly [^`\n{]+)`", path.read_text(encoding="utf-8")):
            yield _name(path), span, False


def _check_line(line: str, complete: bool) -> str | None:
    """What is wrong with a quoted command line; None if nothing is."""
    words = shlex.split(line, comments=True)
    cut = next((i for i, w in enumerate(words) if w in ("|", "&&", ">", ";", "→")), len(words))
    words, name = [w for w in words[1:cut] if "…" not in w], "anomaly"
    if words[:1] == ["COMMAND"]:
        words, name = words[1:], "anomaly train"
    while words and f"{name} {words[0]}" in COMMANDS:
        name = f"{name} {words.pop(0)}"
    if name not in LEAVES:
        return None if words in ([], ["--help"]) else f"no command {name} {words[0]}"
    command = LEAVES[name]
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    known = {flag for p in command.params for flag in p.opts} | {"--help"}
    if unknown := [flag for flag in given if flag not in known]:
        return f"no flag {', '.join(unknown)}"
    if complete and "--help" not in given:
        try:
            command.make_context(name, list(words))
        except Exception as error:  # noqa: BLE001 - which class depends on typer's version
            return f"{type(error).__name__}: {error}"
    return None


def test_every_quoted_command_line_is_one_that_runs() -> None:
    lines = [*_quoted(), *(("epilog", own.epilog.partition("`")[2].rstrip("`"), True) for own in LEAVES.values())]
    assert len(lines) > 25
    wrong = [(place, line, found) for place, line, complete in lines if (found := _check_line(line, complete))]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "anomaly trane plant.csv",
        "anomaly train plant.csv --labels label",
        "anomaly ingest plant.csv",
        "anomaly alerts show twelve",
        "anomaly alerts drop",
        "anomaly score a.csv --model",
    ],
)
def test_a_wrong_command_line_is_noticed(line: str) -> None:
    assert _check_line(line, True) is not None


def test_flags_named_in_the_cures_exist() -> None:
    known = {flag for own in LEAVES.values() for p in own.params for flag in p.opts} | {"--help"}
    named = {f for text in generate.TEXTS["cures"].values() for f in re.findall(r"`[^`]*?(--[a-z][a-z-]+)[^`]*`", text)}
    assert "--drop" in named
    assert named <= known


# -- formats ---------------------------------------------------------------------------------------------------------


def _section(title: str) -> set[str]:
    text = _text("docs/how-it-works.md").partition("## Formats")[2]
    return _table_cells(text.partition(f"**{title}")[2].partition("\n**")[0].partition("\n## ")[0])


def test_the_window_store_is_as_described(store_path: Path) -> None:
    import h5py

    found: set[str] = set()
    with h5py.File(store_path, "r") as file:
        file.visititems(lambda name, item: found.add(name) if isinstance(item, h5py.Dataset) else None)
        assets = list(file["series"])
    for asset in assets:
        found = {name.replace(f"series/{asset}/", "series/ASSET/") for name in found}
    assert found | {"series/ASSET/categories"} == _section("Window store")


def test_the_score_file_is_as_described() -> None:
    from pipelines.score import SCORES_SCHEMA

    assert set(SCORES_SCHEMA.names) == _section("SCORES.parquet")
    text = _text("docs/how-it-works.md")
    for field in SCORES_SCHEMA:
        kind = "list" if field.name == "top_tags" else str(field.type)
        assert f"| `{field.name}` | {kind}" in text


def test_the_bundle_is_as_described() -> None:
    from registry.bundle import MEMBERS

    assert set(MEMBERS) == _section("Model bundle")


def test_the_alert_database_is_as_described() -> None:
    from alerts import tables

    assert {*tables.metadata.tables, tables.version.name} == _section("Alert database")


# -- links -----------------------------------------------------------------------------------------------------------


def _anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _without_code(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_links_resolve(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_source_files_named_in_the_text_exist(path: Path) -> None:
    named = re.findall(r"`((?:anomaly|registry|alerts|pipelines|docs|tests|benchmarks)/[\w/.-]+\.(?:py|toml))`",
                       path.read_text(encoding="utf-8"))  # fmt: skip
    assert [n for n in named if not (ROOT / n).is_file()] == []


def test_every_page_can_be_reached_from_the_readme_or_the_overview() -> None:
    linked = re.findall(r"\]\((?:docs/)?([\w-]+\.md)", _text("README.md") + _text("docs/how-it-works.md"))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"how-it-works.md"}
    assert pages <= set(linked)


def test_the_changelog_has_an_unreleased_part_with_something_in_it() -> None:
    part = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", _text("CHANGELOG.md"), re.M | re.S)
    assert part is not None
    assert re.search(r"^- \S", part[1], re.M)
