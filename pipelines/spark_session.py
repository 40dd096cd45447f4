"""The Spark session of a command: what must be installed, how it is set, and how its failures are told."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.errors import AnomalyError, Fault, Unavailable, UsageError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOCAL = "local[2]"
_OLDEST_JAVA = 17
#: Attempts of a task in local mode, where Spark's own default is one.
_ATTEMPTS = 4
#: Settings of this process that the workers of a cluster need as well.
_HANDED_ON = ("ANOMALY_KILLPOINT", "KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "OMP_NUM_THREADS")


@contextmanager
def told_failures() -> Iterator[None]:
    """A failed job as Unavailable E5005: the first line of the cause that names one of ours or Python's errors."""
    try:
        yield
    except AnomalyError:
        raise
    except Exception as error:  # Py4J raises classes of its own for every kind of failure
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = next(
            (line for line in reversed(lines) if re.match(r"[\w.]*(Error|Refused|Exception)\b", line)), lines[0]
        )
        hint = "see the log of the workers; what was scored is kept, running the same command again goes on from there"
        raise Unavailable(Fault("E5005", "a Spark job that ends", cause, hint)) from error


@contextmanager
def session(master: str) -> Iterator[SparkSession]:
    """A Spark session on ``master``, stopped at the end; one that this process has already is used and left running.

    Raises UsageError E2001 where Java, pyspark or the master is missing, or the running session has another master.
    """
    check_installed()
    from pyspark.sql import SparkSession

    retried = re.fullmatch(r"local(?:\[(\d+|\*)\])?", master)
    own = f"local[{retried[1] or 1},{_ATTEMPTS}]" if retried else master
    running = SparkSession.getActiveSession()
    if running is not None:
        if running.sparkContext.master != own:
            found, hint = running.sparkContext.master, "give that one as --master, or stop the session"
            raise UsageError(Fault("E2001", f"no other Spark session than one on {master}", found, hint))
        yield running
        return
    if master.startswith("local") or "PYSPARK_PYTHON" not in os.environ:
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    path = os.pathsep.join(dict.fromkeys(p for p in (str(Path(__file__).resolve().parents[1]), *sys.path) if p))
    builder = SparkSession.builder.master(own).appName("anomaly").config(map=_settings(path))
    try:
        spark = builder.getOrCreate()
    except Exception as error:  # what a wrong address raises depends on how far Java came
        found = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "--master is local[N], spark://HOST:PORT, or what your cluster gives; Java 17 or 21 is needed"
        raise UsageError(Fault("E2001", f"a Spark session on {master}", found, hint)) from error
    try:
        spark.sparkContext.setLogLevel(os.environ.get("ANOMALY_SPARK_LOG_LEVEL", "ERROR"))
        yield spark
    finally:
        spark.stop()


def _settings(path: str) -> dict[str, str]:
    handed = {f"spark.executorEnv.{name}": os.environ[name] for name in _HANDED_ON if name in os.environ}
    return handed | {
        "spark.executorEnv.PYTHONPATH": path,
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.adaptive.skewJoin.enabled": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.python.worker.reuse": "true",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }


def check_installed() -> None:
    """Raise UsageError E2001 with the cure where pyspark or a Java that runs it is not there."""
    if importlib.util.find_spec("pyspark") is None:
        hint = "pip install 'plant-anomaly[spark]', or leave out --engine spark"
        raise UsageError(Fault("E2001", "pyspark for --engine spark", "not installed", hint))
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    hint = "install Java 17 or 21 (Debian: default-jre-headless), or point JAVA_HOME to one"
    if java is None:
        found = f"no java in JAVA_HOME={home}" if home else "no java on PATH and no JAVA_HOME"
        raise UsageError(Fault("E2001", "Java for --engine spark", found, hint))
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', told)
    if version and int(version[1]) < _OLDEST_JAVA:
        raise UsageError(Fault("E2001", f"Java {_OLDEST_JAVA} or newer for --engine spark", version[0], hint))
