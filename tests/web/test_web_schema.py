"""The API against its own schema, by schemathesis: whatever is sent, no server error, no status that the schema does not name,
and nothing for whom nobody knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient
from web_site import ADDRESS, Site

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is one of the packages for tests")

CALM = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.function_scoped_fixture,
]


def operations(site: Site) -> list[Any]:
    """Every operation of the schema that the application gives."""
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(site.app.openapi())))
    found = [result.ok() for result in schema.get_all_operations()]
    routes = [route for route in site.app.routes if getattr(route, "include_in_schema", False)]
    assert len(found) == len(routes) > 15, [o.label for o in found]
    return found


def tried(site: Site, operation: Any, headers: dict[str, str], examples: int) -> list[Any]:
    """Answers to made-up calls of one operation; their status is checked against the schema."""
    client, answers = TestClient(site.app, base_url=ADDRESS, follow_redirects=False), list[Any]()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=CALM)  # fmt: skip
    @given(case=operation.as_strategy())
    def attempt(case: Any) -> None:
        kwargs = case.as_transport_kwargs(base_url=ADDRESS)
        kwargs["headers"] = {
            k: v for k, v in dict(kwargs.get("headers") or {}).items() if k.lower() != "authorization"
        } | headers
        try:
            request = client.build_request(**{k: v for k, v in kwargs.items() if k != "cookies"})
        except (UnicodeEncodeError, TypeError, ValueError):
            return  # no client can send this
        answer = client.send(request)
        answers.append(answer)
        documented = {str(code) for code in operation.definition.raw["responses"]}
        assert answer.status_code < 500 or answer.status_code == 503, (operation.label, answer.text)
        assert str(answer.status_code) in documented, (operation.label, answer.status_code, answer.text[:300])

    attempt()
    return answers


@pytest.mark.slow
def test_signed_in_nothing_breaks_and_every_status_is_documented(site: Site) -> None:
    head = {"authorization": "Bearer " + site.services.users.add_token("fuzz", "operator", by="test")}
    good = 0
    for operation in operations(site):
        good += sum(a.status_code == 200 for a in tried(site, operation, head, 12))
    assert good > 50, "too few of the made-up calls were good ones: nothing was tested"


@pytest.mark.slow
def test_signed_out_nobody_learns_anything(site: Site) -> None:
    before = site.services.store.dump()
    for operation in operations(site):
        for head in ({}, {"authorization": "Bearer pa_guess"}):
            for answer in tried(site, operation, head, 3):
                assert answer.status_code in (401, 403, 422), (operation.label, answer.status_code)
                assert "press" not in answer.text and "pump" not in answer.text and "demo" not in answer.text
    assert site.services.store.dump() == before
