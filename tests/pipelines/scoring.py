"""Asking the scoring service inside this process."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
from fastapi.testclient import TestClient

from pipelines.scoring_service import CSV, PARQUET, Holder, Service, create_app

HOST = "http://127.0.0.1"


def client_of(holder: Holder, **service: Any) -> TestClient:
    return TestClient(create_app(Service(holder, **service)), base_url=HOST, raise_server_exceptions=False)


def as_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    values = frame.astype(object).where(frame.notna(), None)
    return [{**row, "time": row["time"].isoformat()} for row in values.to_dict(orient="records")]


def as_parquet(frame: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False)
    return stream.getvalue()


def posted(client: TestClient, form: str, frame: pd.DataFrame) -> Any:
    if form == "json":
        return client.post("/score", json=as_rows(frame))
    kind, body = (CSV, frame.to_csv(index=False).encode()) if form == "csv" else (PARQUET, as_parquet(frame))
    return client.post("/score", content=body, headers={"Content-Type": kind})
