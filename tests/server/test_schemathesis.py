"""C7: requests made up from our own OpenAPI document, right and wrong, never break the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from paligemma.predictor import Predictor
from paligemma.server.app import create_app
from paligemma.server.service import Service
from paligemma.server.settings import LOOPBACK_HOSTS, Limits, Settings
from tests.server.conftest import ready_service

# Answers are short, so that many requests fit into seconds.
LIMITS = Limits(max_tokens=4)


@pytest.fixture(scope="module")
def short_service(mini: Predictor) -> Iterator[Service]:
    with ready_service(mini, LIMITS) as service:
        yield service


@pytest.fixture(scope="module")
def api(short_service: Service) -> schemathesis.BaseSchema:
    """The document as the server itself serves it."""
    # The name by which starlette's client calls.
    settings = Settings(limits=LIMITS, hosts=(*LOOPBACK_HOSTS, "testserver"))
    app = create_app(short_service, settings)
    # The one route whose bodies are no JSON, but lines of it: schemathesis cannot write them.
    return schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path_regex="batch")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_c7_no_request_is_a_server_error(
    api: schemathesis.BaseSchema, short_service: Service, mode: schemathesis.GenerationMode
) -> None:
    seen: Counter[str] = Counter()

    def check(case: schemathesis.Case[Any]) -> None:
        response = case.call()
        case.validate_response(response, checks=[not_a_server_error])
        assert response.status_code != 421
        if response.status_code >= 400:
            assert set(response.json()) == {"error"}
        seen[case.operation.label] += 1

    for found in api.get_all_operations():
        assert isinstance(found, Ok)
        try:
            cases = found.ok().as_strategy(generation_mode=mode)
            run = hypothesis.given(cases)(check)
            hypothesis.settings(
                max_examples=10,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )(run)()
        except hypothesis.errors.Unsatisfiable:
            continue  # a route without parameters cannot be asked wrongly
    assert short_service.state() == "ready"
    assert {"POST /v1/detect", "POST /v1/chat/completions", "POST /v1/completions"} <= set(seen)
    assert min(seen.values()) >= 10 or mode is schemathesis.GenerationMode.POSITIVE
