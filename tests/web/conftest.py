"""A site with three alerts and a user of each role."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient`")

from web_site import DAY, HOUR, T0, Site, alert_row  # noqa: E402


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Alerts 1 to 3 (new, acknowledged, closed) of two assets."""
    made = Site(tmp_path)
    made.put(
        alert_row(),
        alert_row(asset="pump", start_us=T0 - DAY, end_us=T0 - DAY + HOUR, state="acknowledged", priority=1),
        alert_row(start_us=T0 - 2 * DAY, end_us=T0 - 2 * DAY + HOUR, state="closed", verdict="nuisance"),
    )
    made.add_users()
    return made
