"""Every bad log gets a coded refusal that names file, column and row: one table of recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly.config import LogSettings
from anomaly.data.contract import LogContract
from anomaly.data.readers import open_log
from anomaly.errors import InputRefused, UsageError

Recipe = bytes | str | Callable[[Path], None]

CONTRACT = LogContract("time", ("Pressure", "Flow"), 1_000_000, label="label")
INFER = LogSettings()
TIME_LABEL = LogSettings(time="time", label="label")


def rows(n: int, start: int = 0, tail: str = "1.0,2.0") -> str:
    """``n`` lines at one second from ``start``."""
    return "".join(f"2026-01-01 00:00:{i:02d},{tail}\n" for i in range(start, start + n))


GOOD = "time,Pressure,Flow\n" + rows(12)


def line(number: int, text: str, base: str = GOOD) -> str:
    """``base`` with its data row ``number`` (from 1) replaced."""
    lines = base.splitlines()
    lines[number] = text
    return "\n".join(lines) + "\n"


def long(*lines: str, head: str = "tag,time,value,quality") -> str:
    return "\n".join([head, *lines]) + "\n"


def parquet(**columns: pa.Array) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def damaged(how: str) -> Callable[[Path], None]:
    """A Parquet file cut short, or with bytes turned over inside a page that carries a checksum."""

    def write(path: Path) -> None:
        table = pa.table({"time": pa.array(range(4000), pa.timestamp("s")), "a": np.random.default_rng(0).random(4000)})
        pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
        data = bytearray(path.read_bytes())
        if how == "cut":
            data = data[: len(data) // 2]
        else:
            data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)

    return write


STAMPS = pa.array([i * 10**6 for i in range(12)], pa.timestamp("us"))
FLOATS = pa.array(np.arange(12.0))


@dataclass(frozen=True)
class Case:
    id: str
    file: Recipe
    code: str
    column: str | None = None
    row: int | None = None
    settings: LogSettings = INFER
    contract: LogContract | None = None
    name: str = "log.csv"
    hint: str = ""
    others: dict[str, Recipe] = field(default_factory=dict)


CASES = [
    # the container
    Case("empty", b"", "E3002"),
    Case("header only", "time,a\n", "E3003"),
    Case("header without line end", "time,a", "E3003"),
    Case("parquet without rows", parquet(time=STAMPS[:0], a=FLOATS[:0]), "E3003", name="log.parquet"),
    Case("utf-16", GOOD.encode("utf-16"), "E3005"),
    Case("latin-1", line(5, "2026-01-01 00:00:04,Überlast,2").encode("latin-1"), "E3005", row=5),
    Case("latin-1 far into the file", (GOOD + rows(40) * 1500 + "2026-01-01 00:00:59,\xe4,1\n").encode("latin-1"),
         "E3005", row=60013),
    Case("hdf5", b"\x89HDF\r\n\x1a\n" + b"\x00" * 600, "E3007", hint="window store"),
    Case("zip", b"PK\x03\x04" + b"\x00" * 100, "E3007", hint="CSV"),
    Case("binary", bytes(range(256)) * 4 + b"\x00" * 200, "E3007"),
    Case("parquet cut", damaged("cut"), "E3006", name="log.parquet"),
    Case("parquet flipped", damaged("flip"), "E3006", name="log.parquet"),
    Case("parquet by name only", GOOD, "E3006", name="log.parquet"),
    # lines
    Case("last line cut", GOOD + "2026-01-01 00:00:12,1.0", "E3004", row=13),
    Case("field missing", line(3, "2026-01-01 00:00:02,1.0"), "E3004", row=3),
    Case("field too many", line(3, "2026-01-01 00:00:02,1.0,2.0,3.0"), "E3004", row=3),
    Case("quote never closed", line(3, '2026-01-01 00:00:02,1.0,"2.0'), "E3004", column="Flow", row=3),
    Case("text below a cut line", line(5, "2026-01-01 00:00:04,x,2", line(3, "2026")), "E3107", "Pressure", 5),
    # names
    Case("column twice", "time,a,a\n" + rows(3), "E3103", "a"),
    Case("column twice but for case", "time,a,A\n" + rows(3), "E3103", "a", hint="case"),
    Case("column twice but for accents' form", "time,\u00e9,e\u0301\n" + rows(3), "E3103", "\u00e9"),
    Case("column twice in parquet", lambda p: pq.write_table(pa.Table.from_arrays([STAMPS, FLOATS, FLOATS],
         names=["time", "a", "a"]), p), "E3103", "a", name="log.parquet"),
    Case("control character", "time,a\x07,b\n" + rows(3), "E3104", "a\x07"),
    Case("very long name", f"time,{'a' * 201},b\n" + rows(3), "E3104", "a" * 201),
    # columns against declarations and contracts
    Case("time missing", "x,y,z\n1,2,3\n", "E3101"),
    Case("declared time missing", GOOD, "E3101", "tiem", settings=LogSettings(time="tiem"), hint="renamed? 'time'"),
    Case("declared tag missing", GOOD, "E3101", "Presure", settings=LogSettings(tags=("Presure",)),
         hint="'Pressure' is close to 'Presure'"),
    Case("declared category missing", GOOD, "E3101", "grade", settings=LogSettings(categories=("grade",))),
    Case("declared asset missing", GOOD, "E3101", "unit", settings=LogSettings(asset="unit")),
    Case("label missing", GOOD, "E3105", "label", settings=TIME_LABEL),
    Case("column missing for the model", "time,Flow\n" + rows(3, tail="1"), "E3101", "Pressure", contract=CONTRACT),
    Case("column renamed for the model", GOOD.replace("Pressure", "Presure"), "E3101", "Pressure", contract=CONTRACT,
         hint="renamed? 'Presure' is close to 'Pressure'"),
    Case("column extra for the model", GOOD.replace("Flow\n", "Flow,Level\n").replace("2.0\n", "2.0,3\n"), "E3102",
         "Level", contract=CONTRACT, hint="--drop Level"),
    Case("period differs", "time,Pressure,Flow\n" + "".join(f"2026-01-01 00:{i:02d}:00,1,2\n" for i in range(12)),
         "E3303", contract=CONTRACT),
    Case("asset empty", "time,unit,a\n2026-01-01,A,1\n2026-01-02,,2\n", "E3113", "unit", 2, LogSettings(asset="unit")),
    Case("asset not in the name", GOOD, "E3113", settings=LogSettings(asset_from_name=r"(WELL-\d+)")),
    # values
    Case("text in a number column", line(7, "2026-01-01 00:00:06,oops,2"), "E3107", "Pressure", 7),
    Case("text in a number column, scoring", line(7, "2026-01-01 00:00:06,Bad1,2"), "E3107", "Pressure", 7,
         contract=CONTRACT),
    Case("underscore", line(7, "2026-01-01 00:00:06,1_000,2"), "E3107", "Pressure", 7),
    Case("hexadecimal", line(7, "2026-01-01 00:00:06,0x10,2"), "E3107", "Pressure", 7),
    Case("full-width digits", line(7, "2026-01-01 00:00:06,\uff11,2"), "E3107", "Pressure", 7),
    Case("nan with payload", line(7, "2026-01-01 00:00:06,nan(1),2"), "E3107", "Pressure", 7),
    Case("true among numbers", line(7, "2026-01-01 00:00:06,true,2"), "E3107", "Pressure", 7),
    Case("repeated header", line(7, "time,Pressure,Flow"), "E3107", "Flow", 7),
    Case("thousands beside a decimal comma", "time;a\n2026-01-01;1,5\n2026-01-02;1.234,5\n", "E3107", "a", 2,
         LogSettings(decimal=",", tags=("a",))),
    Case("decimal comma where a point is declared", "time;a\n2026-01-01;1.5\n2026-01-02;2,5\n2026-01-03;3.5\n",
         "E3107", "a", 2, hint="--decimal ,"),
    Case("nested column declared", parquet(time=STAMPS, a=pa.array([[1.0]] * 12)), "E3107", "a",
         settings=LogSettings(tags=("a",)), name="log.parquet"),
    Case("infinite", line(4, "2026-01-01 00:00:03,inf,2"), "E3110", "Pressure", 4),
    Case("minus infinite beside a missing cell", line(4, "2026-01-01 00:00:03,-Infinity,NULL"), "E3110", "Pressure", 4),
    Case("1e400", line(4, "2026-01-01 00:00:03,1e400,2"), "E3110", "Pressure", 4),
    Case("infinite in parquet", parquet(time=STAMPS, a=pa.array([*np.arange(11.0), -np.inf])), "E3110", "a", 12,
         name="log.parquet"),
    Case("1e38", line(4, "2026-01-01 00:00:03,1e38,2"), "E3111", "Pressure", 4),
    Case("no numeric tag", "time,what\n2026-01-01,stop\n2026-01-02,go\n", "E3108"),
    Case("only time and label", "time,label\n2026-01-01,0\n2026-01-02,1\n", "E3108", settings=TIME_LABEL),
    Case("declared tag without values", line(1, "2026-01-01 00:00:00,1,", "time,Pressure,Flow\nx\n"), "E3109", "Flow",
         settings=LogSettings(tags=("Pressure", "Flow"))),
    Case("no tag has a value", "time,a\n2026-01-01,\n2026-01-02,NaN\n", "E3108"),
    # labels
    Case("label 2", "time,a,label\n2026-01-01,1,0\n2026-01-02,1,2\n", "E3112", "label", 2, TIME_LABEL,
         hint="--label-scheme fault-code"),
    Case("label text", "time,a,label\n2026-01-01,1,0\n2026-01-02,1,yes\n", "E3112", "label", 2, TIME_LABEL),
    Case("label half", "time,a,label\n2026-01-01,1,0\n2026-01-02,1,0.5\n", "E3112", "label", 2, TIME_LABEL),
    Case("label -1", "time,a,label\n2026-01-01,1,-1\n2026-01-02,1,1\n", "E3112", "label", 1, TIME_LABEL),
    Case("fault code 300", "time,a,label\n2026-01-01,1,0\n2026-01-02,1,300\n", "E3112", "label", 2,
         replace(TIME_LABEL, label_scheme="fault-code")),
    # times
    Case("times mixed", line(6, "2026-01-01 00:00:05Z,1,2"), "E3201", "time", 6),
    Case("zoned log, zoneless model", GOOD.replace(",1.0", "Z,1.0"), "E3201", "time", contract=CONTRACT),
    Case("zoneless log, zoned model", GOOD, "E3201", "time", contract=replace(CONTRACT, zoned=True)),
    Case("zoned in one file only", GOOD, "E3201", "time", others={"z.csv": GOOD.replace(",1.0", "Z,1.0")}, name="a.csv"),
    Case("day or month", "time,a\n01/02/2026,1\n02/02/2026,2\n", "E3202", "time", 1, hint="--time-format"),
    Case("day and month both above 12", "time,a\n13/02/2026,1\n02/13/2026,2\n", "E3202", "time", 1),
    Case("local time twice", "time,a\n2026-10-25 01:59:00,1\n2026-10-25 02:30:00,2\n", "E3203", "time", 2,
         LogSettings(timezone="Europe/Berlin")),
    Case("local time never", "time,a\n2026-03-29 01:59:00,1\n2026-03-29 02:30:00,2\n", "E3203", "time", 2,
         LogSettings(timezone="Europe/Berlin")),
    Case("time unreadable", line(8, "soon,1,2"), "E3204", "time", 8),
    Case("time empty", line(8, ",1,2"), "E3204", "time", 8),
    Case("30 February", line(8, "2026-02-30 00:00:00,1,2"), "E3204", "time", 8),
    Case("time null in parquet", parquet(time=pa.array([1, None, 3], pa.timestamp("s")), a=FLOATS[:3]), "E3204", "time",
         2, name="log.parquet"),
    Case("epoch undeclared", "time,a\n1767225600,1\n1767225601,2\n", "E3204", "time", 1, hint="--time-format"),
    Case("epoch in the wrong unit", "time,a\n1767225600000,1\n1767225601000,2\n", "E3207", "time", 1,
         LogSettings(time_format="epoch_s")),
    Case("year 30000 in parquet", parquet(time=pa.array([0, 2**60, 2**61], pa.timestamp("us")), a=FLOATS[:3]), "E3207",
         "time", 2, name="log.parquet"),
    Case("epoch with underscores", "time,a\n1767225600,1\n1767225601.5,2\n1_767_225_602,3\n", "E3204", "time", 3,
         LogSettings(time_format="epoch_s")),
    Case("asset column nested", parquet(time=STAMPS, unit=pa.array([["A"]] * 12), a=FLOATS), "E3107", "unit",
         settings=LogSettings(asset="unit"), name="log.parquet"),
    Case("year 1969", line(1, "1969-12-31 23:59:59,1,2"), "E3207", "time", 1),
    Case("declared form does not fit", line(8, "2026-01-01,1,2"), "E3204", "time", 8,
         LogSettings(time_format="%Y-%m-%d %H:%M:%S")),
    Case("time goes backwards", line(8, "2026-01-01 00:00:02,1,2"), "E3205", "time", 8),
    Case("time goes backwards for one asset", "time,unit,a\n2026-01-02,A,1\n2026-01-01,B,1\n2026-01-01,A,1\n", "E3205",
         "time", 3, LogSettings(asset="unit")),
    Case("same time, other values", line(8, "2026-01-01 00:00:06,1.0,9"), "E3206", "Flow", 8),
    Case("same time, other label", "time,a,label\n2026-01-01,1,0\n2026-01-01,1,1\n", "E3206", "label", 2, TIME_LABEL),
    Case("files overlap with other values", "time,Pressure,Flow\n" + rows(12, 6, "1.0,9"), "E3206", "time", 1,
         name="b.csv", others={"a.csv": GOOD}),
    Case("files interleave", "time,Pressure,Flow\n2026-01-01 00:00:05.5,1.0,2.0\n", "E3205", "time", 1,
         name="b.csv", others={"a.csv": GOOD}),
    # long form
    Case("long: text value", long("P,2026-01-01,1,192", "P,2026-01-02,x,192"), "E3107", "value", 2),
    Case("long: infinite", long("P,2026-01-01,1,192", "P,2026-01-02,inf,192"), "E3110", "value", 2),
    Case("long: 1e38", long("P,2026-01-01,1,192", "P,2026-01-02,1e38,192"), "E3111", "value", 2),
    Case("long: unknown quality word", long("P,2026-01-01,1,Good", "P,2026-01-02,1,Splendid"), "E3106", "quality", 2),
    Case("long: quality 150", long("P,2026-01-01,1,192", "P,2026-01-02,1,150"), "E3106", "quality", 2),
    Case("long: no tag name", long("P,2026-01-01,1,192", ",2026-01-02,1,192"), "E3104", "tag", 2),
    Case("long: time unreadable", long("P,2026-01-01,1,192", "P,soon,1,192"), "E3204", "time", 2),
    Case("long: same time, other value", long("P,2026-01-01,1,192", "F,2026-01-01,1,192", "P,2026-01-01,2,192"),
         "E3206", "value", 3),
    Case("long: label 2", long("P,2026-01-01,1,192", "fault,2026-01-01,2,192"), "E3112", "fault",
         settings=LogSettings(label="fault")),
    Case("long: label column holds text", "tag,time,value,broken\nP,2026-01-01,1,no\n", "E3112", "broken", 1,
         LogSettings(label="broken")),
    Case("long: tag unknown to the model", long("Pressure,2026-01-01,1,192", "Level,2026-01-01,1,192"), "E3102",
         "Level", contract=CONTRACT),
    Case("long: two tags alike", long("P,2026-01-01,1,192", "p,2026-01-01,1,192"), "E3103", "P"),
    Case("long: value column missing", GOOD, "E3101", settings=LogSettings(form="long", tag="Flow"), hint="--value"),
    Case("long: times mixed", long("P,2026-01-01,1,192", "P,2026-01-02Z,1,192"), "E3201", "time", 2),
    Case("long: zoned in one file only", long("P,2026-01-01,1,192"), "E3201", "time", name="a.csv",
         others={"b.csv": long("P,2026-01-02Z,1,192")}),
    Case("long: asset empty", long("P,A,2026-01-01,1", "P,,2026-01-02,1", head="tag,asset,time,value"), "E3113", "asset", 2),
    Case("same time, other category", "time,grade,a\n2026-01-01,A,1\n2026-01-01,B,1\n", "E3206", "grade", 2,
         LogSettings(categories=("grade",))),
    Case("one endless line", "x" * 3_000_000, "E3004"),
    Case("lines longer than a block", "time,a\n2026-01-01," + "1" * 9_000_000 + "\n2026-01-02,1\n", "E3004"),
    Case("long and wide mixed", long("P,2026-01-01,1,192"), "E3007", name="a.csv", others={"b.csv": GOOD}),
]  # fmt: skip


def write(folder: Path, name: str, recipe: Recipe) -> Path:
    path = folder / name
    if callable(recipe):
        recipe(path)
    else:
        path.write_bytes(recipe.encode() if isinstance(recipe, str) else recipe)
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_bad_log_is_refused(case: Case, tmp_path: Path) -> None:
    paths = [write(tmp_path, n, r) for n, r in {case.name: case.file, **case.others}.items()]
    with pytest.raises(InputRefused) as refused:
        open_log(paths, case.settings, case.contract)
    found = [(f.code, f.column, f.row) for f in refused.value.faults]
    matching = [
        f for f in refused.value.faults
        if f.code == case.code and case.column in (None, f.column) and case.row in (None, f.row)
    ]  # fmt: skip
    assert matching, f"wanted {(case.code, case.column, case.row)}, got {found}"
    assert matching[0].file is not None
    assert str(tmp_path) in matching[0].file
    assert any(case.hint in f.hint for f in matching), [f.hint for f in matching]
    assert refused.value.exit_code == 3


def test_the_table_covers_every_code_of_logs() -> None:
    """E3001 and E3008 need a missing or changing file: tests of their own below."""
    wanted = {f"E300{i}" for i in range(2, 8)} | {f"E31{i:02d}" for i in range(1, 14)}
    wanted |= {f"E320{i}" for i in range(1, 8)} | {"E3303"}
    assert wanted == {c.code for c in CASES}


def test_all_faults_of_all_files_in_one_go(tmp_path: Path) -> None:
    a = write(tmp_path, "a.csv", line(3, "2026-01-01 00:00:02,x,inf", line(9, "2026-01-01 00:00:01,1,2")))
    b = write(tmp_path, "b.csv", b"")
    c = write(tmp_path, "c.csv", "time,Pressure,Flow\n" + rows(3, 20, "y,2.0"))
    with pytest.raises(InputRefused) as refused:
        open_log([a, b, c, tmp_path / "absent.csv"])
    found = {(Path(str(f.file)).name, f.code, f.column, f.row) for f in refused.value.faults}
    assert {
        ("a.csv", "E3107", "Pressure", 3), ("a.csv", "E3110", "Flow", 3), ("a.csv", "E3205", "time", 9),
        ("b.csv", "E3002", None, None), ("absent.csv", "E3001", None, None), ("c.csv", "E3107", "Pressure", 1),
    } <= found  # fmt: skip


def test_at_most_ten_rows_of_a_column_and_a_hundred_faults_of_a_file(tmp_path: Path) -> None:
    names = ",".join(f"t{i}" for i in range(30))
    cells = ",".join("x" for _ in range(30))
    good = ",".join("1" for _ in range(30))
    text = f"time,{names}\n" + "".join(f"2026-01-01 00:{i // 60:02d}:{i % 60:02d},{good}\n" for i in range(200))
    text += "".join(f"2026-01-02 00:00:{i:02d},{cells}\n" for i in range(40))
    with pytest.raises(InputRefused) as refused:
        open_log([write(tmp_path, "log.csv", text)])
    assert len(refused.value.faults) == 100
    assert sum(f.column == "t0" for f in refused.value.faults) <= 10
    assert all(f.row is None or f.row >= 201 for f in refused.value.faults)


def test_missing_file_folder_and_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputRefused, match="E3001"):
            open_log([path])
    with pytest.raises(UsageError, match="E2001"):
        open_log([])


@pytest.mark.parametrize(
    "settings",
    [LogSettings(timezone="Mars/Olympus"), LogSettings(separator="ab"), LogSettings(decimal=";"),
     LogSettings(separator=",", decimal=","), LogSettings(asset_from_name="("), LogSettings(asset_from_name="log")],
)  # fmt: skip
def test_an_impossible_setting_is_a_usage_error(settings: LogSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E2001"):
        open_log([write(tmp_path, "log.csv", GOOD)], settings)


def test_a_file_that_changes_after_the_check_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", GOOD)
    log = open_log([path])
    assert sum(len(c) for c in log.chunks()) == 12
    path.write_text(GOOD + rows(1, 12))
    with pytest.raises(InputRefused, match="E3008"):
        list(log.chunks())


def test_a_parquet_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path, "whole.parquet", parquet(time=STAMPS, a=FLOATS))
    data = whole.read_bytes()
    path = tmp_path / "cut.parquet"
    for end in np.linspace(1, len(data) - 1, 40).astype(int):
        path.write_bytes(data[:end])
        with pytest.raises(InputRefused, match="E3006"):
            open_log([path])


def test_damaged_bytes_are_refused_or_read_and_never_crash(tmp_path: Path) -> None:
    """Bytes turned over, cut out or put in at random places of a CSV and of a Parquet file."""
    rng = np.random.default_rng(11)
    csv = write(tmp_path, "whole.csv", GOOD).read_bytes()
    whole = write(tmp_path, "whole.parquet", parquet(time=STAMPS, Pressure=FLOATS, Flow=FLOATS)).read_bytes()
    refused = 0
    for trial in range(160):
        data = bytearray(csv if trial % 2 else whole)
        place = int(rng.integers(len(data)))
        if trial % 3 == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            del data[place : place + int(rng.integers(1, 40))]
        else:
            data[place:place] = rng.choice([b'"', b",", b"\n", b"\x00", b"\xff", b"-", b"e9"])
        path = tmp_path / ("damaged.csv" if trial % 2 else "damaged.parquet")
        path.write_bytes(data)
        try:
            log = open_log([path])
            assert sum(len(c) for c in log.chunks()) == log.rows
        except InputRefused:
            refused += 1
    assert 80 < refused < 160
