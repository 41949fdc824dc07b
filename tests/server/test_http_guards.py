"""What stands before the routes: keys, hosts, origins, headers, bodies, ids, log lines."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Mount
from starlette.types import ASGIApp

import paligemma
from paligemma.errors import OptionError
from paligemma.server.app import create_app
from paligemma.server.logs import JsonFormatter, log, logger
from paligemma.server.service import Service
from paligemma.server.settings import KEYS_VARIABLE, KeyRing, Limits, Settings, read_keys
from tests.server.asgi import Answer, call

KEY = "canary-7f3a-0123456789"
OTHER = "0123456789abcdef-other"
PACKAGE = Path(paligemma.__file__).parent
JSON = {"content-type": "application/json"}


@pytest.fixture
def keyed(mini_service: Service) -> ASGIApp:
    """An application that asks for one of two keys."""
    return create_app(mini_service, Settings(keys=KeyRing([KEY, OTHER])))


def small(service: Service, **limits: Any) -> ASGIApp:
    """An application whose guards have other limits than its service."""
    return create_app(service, Settings(limits=Limits(**limits)))


def get(app: ASGIApp, path: str, headers: Any = (), method: str = "GET") -> Answer:
    return asyncio.run(call(app, method, path, headers=headers))


def routes(app: ASGIApp) -> Iterator[tuple[str, str]]:
    """Method and path of every route, from inside of the guards."""
    inner: Any = app
    while not hasattr(inner, "openapi"):
        inner = inner.app
    document = inner.openapi()
    for path, operations in document["paths"].items():
        for method in operations:
            yield method.upper(), path.replace("{", "x").replace("}", "x").replace(":path", "")
    yield "GET", "/openapi.json"


# C1: keys


def test_c1_every_route_but_liveness_asks_for_a_key(keyed: ASGIApp) -> None:
    found = list(routes(keyed))
    assert len(found) > 12
    for method, path in found:
        answer = get(keyed, path, method=method)
        expected = 200 if path == "/health/live" else 401
        assert answer.status == expected, path
        if expected == 401:
            assert answer.error["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/none", "/docs", "/redoc", "/v1", "/health/live/", "/health/live/x"):
        assert get(keyed, path).status == 401


def test_c1_readiness_is_open_to_probes_only_when_that_is_asked_for(mini_service: Service) -> None:
    for is_open, statuses in ((False, (401, 401)), (True, (200, 401))):
        keys = KeyRing([KEY])
        app = create_app(mini_service, Settings(keys=keys, open_readiness=is_open))
        probe = {"host": "10.1.2.3:8000"}
        found = tuple(get(app, path, probe).status for path in ("/health/ready", "/v1/limits"))
        assert found == statuses


def test_c1_the_page_alone_is_open_beside_liveness(keyed: ASGIApp) -> None:
    inner: Any = keyed
    while not hasattr(inner, "routes"):
        inner = inner.app
    mounted = [route.path for route in inner.routes if isinstance(route, Mount)]
    assert mounted in ([], ["/page"])
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/.."):
        answer = get(keyed, path)
        assert answer.status in (401, 404)
        assert b"import" not in answer.body


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_c1_each_of_several_keys_opens(key: str, keyed: ASGIApp) -> None:
    assert get(keyed, "/health/ready", {"authorization": f"Bearer {key}"}).status == 200
    assert get(keyed, "/health/ready", {"authorization": f"bearer  {key} "}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {KEY[:-1]}")],
        [("authorization", f"Bearer {KEY}x")],
        [("authorization", f"Bearer {KEY.upper()}")],
        [("authorization", f"Bearer {KEY},{KEY}")],
        [("authorization", f"Basic {KEY}")],
        [("authorization", KEY)],
        [("authorization", "Bearer \xe9\xff\x80" + KEY)],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer wrong")],
        [("x-api-key", KEY)],
        [("authorization", "Bearer " + "a" * 8000)],
    ],
    ids=range(15),
)
def test_c1_no_other_key_opens(headers: list[tuple[str, str]], keyed: ASGIApp) -> None:
    answer = get(keyed, "/v1/limits", headers)
    assert answer.status == 401
    assert "canary" not in answer.body.decode()


def test_c1_a_key_in_the_address_does_not_open(keyed: ASGIApp) -> None:
    assert get(keyed, f"/v1/limits?api_key={KEY}&key={KEY}").status == 401


def test_c1_digests_of_keys_are_compared_in_constant_time() -> None:
    tree = ast.parse((PACKAGE / "server" / "settings.py").read_text())
    ring = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "KeyRing")
    method = next(n for n in ring.body if isinstance(n, ast.FunctionDef) and n.name == "name_of")
    calls = {ast.unparse(node.func) for node in ast.walk(method) if isinstance(node, ast.Call)}
    assert {"hmac.compare_digest", "hashlib.sha256"} <= calls
    assert not [node for node in ast.walk(method) if isinstance(node, ast.Compare)]
    kept = vars(KeyRing([KEY])).values()
    assert KEY not in repr(list(kept))


def test_c1_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}  # the first\n\n{OTHER}\n")
    for ring in (read_keys(file, {}), read_keys(None, {KEYS_VARIABLE: f"{KEY}, {OTHER},"})):
        assert ring is not None
        names = {ring.name_of(KEY.encode()), ring.name_of(OTHER.encode())}
        assert len(names) == 2
        assert ring.name_of(b"another") is None
        assert not any(KEY[:8] in (name or "") for name in names)
    assert read_keys(None, {}) is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "short", "a" * 600, "ééééééééééééééééééé"])
def test_c1_unusable_keys_are_refused_without_being_shown(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_keys(file, {})
    assert not text.strip() or text.strip() not in str(caught.value)
    with pytest.raises(OptionError, match="Cannot read the key file"):
        read_keys(tmp_path / "none", {})


# C2, C3: hosts and origins


@pytest.mark.parametrize(
    "host", ["a/?x=", "localhost/health/live", "localhost@evil", "", "localhost:8000:1", "[::1"]
)
def test_c2_odd_host_headers_change_nothing_about_the_key(host: str, keyed: ASGIApp) -> None:
    for path in ("/v1/limits", "//v1/limits", "/v1/../health/live", "/health%2flive"):
        assert get(keyed, path, {"host": host}).status == 401
        opened = get(keyed, path, {"host": host, "authorization": f"Bearer {KEY}"})
        assert opened.status == 421


@pytest.mark.parametrize(
    "path",
    ["//v1/limits", "/v1//limits", "/v1/../v1/limits", "/V1/limits", "/v1/limits//", "http://a/b"],
)
def test_c2_only_the_very_path_is_a_route(path: str, mini_app: ASGIApp) -> None:
    assert get(mini_app, path).status == 404


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_c3_loopback_names_are_known(host: str, mini_app: ASGIApp) -> None:
    assert get(mini_app, "/v1/limits", {"host": host}).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io"])
def test_c3_other_names_are_refused(host: str, mini_app: ASGIApp) -> None:
    answer = get(mini_app, "/v1/limits", {"host": host})
    assert (answer.status, answer.error["code"]) == (421, "unknown_host")
    assert host not in answer.error["message"]
    assert get(mini_app, "/health/live", {"host": host}).status == 200


def test_c3_a_name_can_be_allowed(mini_service: Service) -> None:
    app = create_app(mini_service, Settings(hosts=("pali.example",)))
    assert get(app, "/v1/limits", {"host": "Pali.Example.:443"}).status == 200
    assert get(app, "/v1/limits", {"host": "localhost"}).status == 421


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:9000", "http://localhost:8000.evil.example"],
)
def test_c3_pages_of_other_sites_may_not_call(origin: str, mini_app: ASGIApp) -> None:
    headers = {"host": "localhost:8000", "origin": origin}
    for method in ("GET", "POST", "OPTIONS"):
        answer = get(mini_app, "/v1/caption", headers, method)
        assert (answer.status, answer.error["code"]) == (403, "foreign_origin")
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_c3_the_own_page_may_call(mini_app: ASGIApp) -> None:
    headers = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    assert get(mini_app, "/v1/limits", headers).status == 200


# C4, C5, C6: sizes and times


def test_c4_headers_are_bounded_in_number_and_size(mini_service: Service) -> None:
    app = small(mini_service, max_headers=10, max_header_bytes=500)
    nine = [(f"x-{number}", "a") for number in range(9)]
    assert get(app, "/v1/limits", nine).status == 200
    for headers in ([*nine, ("x-9", "a")], [("x-0", "a" * 500)]):
        answer = get(app, "/v1/limits", headers)
        assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert get(app, "/v1/limits?" + "a" * 500).status == 431


async def pieces(number: int, size: int, seconds: float = 0) -> AsyncIterator[bytes]:
    for _ in range(number):
        await asyncio.sleep(seconds)
        yield b" " * size


def test_c5_bodies_are_counted_while_they_come(mini_service: Service) -> None:
    app = small(mini_service, max_body_bytes=1000)

    def send(number: int, **headers: str) -> Answer:
        return asyncio.run(
            call(app, "POST", "/v1/caption", pieces(number, 100), {**JSON, **headers})
        )

    assert send(10).status == 400  # whole, and no JSON
    for answer in (send(11), send(5000), send(11, **{"content-length": "10"})):
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"


def test_c5_an_announced_size_is_believed_when_it_is_too_large(mini_service: Service) -> None:
    app = small(mini_service, max_body_bytes=1000)
    headers = {**JSON, "content-length": "1001"}
    answer = asyncio.run(call(app, "POST", "/v1/caption", pieces(1, 1), headers))
    assert answer.status == 413


def test_c5_bodies_of_all_requests_together_are_bounded(mini_service: Service) -> None:
    app = small(mini_service, max_body_bytes=1000, idle_seconds=0.3)

    async def run() -> list[Answer]:
        async def slow() -> AsyncIterator[bytes]:
            yield b" " * 1000
            await asyncio.sleep(60)

        calls = [call(app, "POST", "/v1/caption", slow(), JSON) for _ in range(9)]
        return await asyncio.gather(*calls)

    statuses = sorted(answer.status for answer in asyncio.run(run()))
    assert statuses == [408] * 8 + [429]
    assert asyncio.run(call(app, "POST", "/v1/caption", b"{", JSON)).status == 400


@pytest.mark.parametrize(("number", "seconds"), [(1, 5.0), (100, 0.1)])
def test_c6_slow_bodies_are_given_up(number: int, seconds: float, mini_service: Service) -> None:
    app = small(mini_service, idle_seconds=0.3, body_seconds=0.6)
    started = time.monotonic()
    body = pieces(number, 1, seconds)
    answer = asyncio.run(call(app, "POST", "/v1/caption", body, JSON))
    assert (answer.status, answer.error["code"]) == (408, "body_timeout")
    assert answer.headers["connection"] == "close"
    assert time.monotonic() - started < 4


# I: logs, ids, defaults


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, as text."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_i1_a_log_line_has_sizes_and_codes_and_nothing_that_was_sent(
    mini_app: ASGIApp, lines: io.StringIO
) -> None:
    document = {"prompt": "canary-prompt", "max_tokens": 2, "seed": 1}
    headers = {**JSON, "authorization": "Bearer canary-key", "user-agent": "canary-agent"}
    body = json.dumps(document).encode()
    answer = asyncio.run(call(mini_app, "POST", "/v1/generate?canary=1", body, headers))
    assert answer.status == 200
    get(mini_app, "/canary/path")
    get(mini_app, "/v1/limits", method="CANARY"[:3])
    text = lines.getvalue()
    assert "canary" not in text.lower()
    assert not {"text", "prompt", "result"} & set(json.loads(text.splitlines()[0]))
    first = json.loads(text.splitlines()[0])
    assert first["route"] == "/v1/generate"
    assert first["status"] == 200
    assert first["received_bytes"] == len(body)
    assert json.loads(text.splitlines()[1])["route"] == "other"


def test_i1_an_exception_is_logged_without_its_words(lines: io.StringIO) -> None:
    try:
        raise KeyError("canary prompt")
    except KeyError:
        logger.exception("request_failed")
        logging.getLogger("some.library").propagate = False
    line = json.loads(lines.getvalue())
    assert line["error"] == "KeyError"
    assert "canary" not in lines.getvalue()
    record = logging.LogRecord("asyncio", 40, "/a/b/c.py", 7, "canary %s", ("x",), None)
    assert "canary" not in JsonFormatter().format(record)


def test_i1_unforeseen_errors_say_nothing_of_themselves(
    mini_service: Service, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(jobs: Any) -> Any:
        raise ZeroDivisionError("canary /etc/passwd")

    monkeypatch.setattr(mini_service, "submit_all", broken)
    app = create_app(mini_service, Settings())
    answer = asyncio.run(call(app, "POST", "/v1/generate", b'{"prompt": "a"}', JSON))
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "canary" not in answer.body.decode() + lines.getvalue()
    assert "ZeroDivisionError" in lines.getvalue()
    assert answer.headers["x-request-id"] in lines.getvalue()


@pytest.mark.parametrize("given", ["abc-123", "A.b_c" + "x" * 50])
def test_i2_a_plain_request_id_comes_back(given: str, mini_app: ASGIApp) -> None:
    assert get(mini_app, "/v1/limits", {"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a\x1b[2J", "a\nb", "x" * 65, "é", "<b>", "a" * 9000])
def test_i2_other_request_ids_are_replaced(
    given: str, mini_app: ASGIApp, lines: io.StringIO
) -> None:
    found = get(mini_app, "/v1/limits", {"x-request-id": given}).headers["x-request-id"]
    assert found.startswith("req-")
    assert len(found) == 36
    assert not given or given not in lines.getvalue()


def test_i2_logged_values_are_escaped_and_cut(lines: io.StringIO) -> None:
    log("test", value="a\nb\x1b[31m\u2028" + "x" * 1_000_000)
    text = lines.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    assert len(text) < 1000
    assert "\x1b" not in text


def test_i4_answers_carry_the_headers_that_keep_browsers_safe(mini_app: ASGIApp) -> None:
    for path in ("/v1/limits", "/none", "/health/live"):
        headers = get(mini_app, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


def test_i6_the_packages_that_read_input_are_recent_enough() -> None:
    least = {
        "starlette": (1, 0, 1),
        "python-multipart": (0, 0, 27),
        "pillow": (12, 3),
        "torch": (2, 10),
        "h11": (0, 16),
    }
    for name, wanted in least.items():
        parts = version(name).partition("+")[0].split(".")
        assert tuple(int(part) for part in parts if part.isdigit())[: len(wanted)] >= wanted, name


def test_b8_requests_reach_the_network_through_the_one_fetcher() -> None:
    users = []
    for file in (PACKAGE / "server").glob("*.py"):
        text = file.read_text()
        if "fetch_image_bytes" in text:
            users.append(file.name)
        assert "allow_urls=True" not in text
    assert users == ["images.py"]


def test_d13_metrics_agree_with_what_was_sent_and_have_few_labels(mini_service: Service) -> None:
    app = create_app(mini_service, Settings())

    def values() -> dict[str, float]:
        text = get(app, "/metrics").body.decode()
        rows = [line for line in text.splitlines() if not line.startswith("#")]
        return {row.rpartition(" ")[0]: float(row.rpartition(" ")[2]) for row in rows}

    before = values()
    for _ in range(3):
        asyncio.run(call(app, "POST", "/v1/generate", b'{"prompt":"canary","max_tokens":2}', JSON))
    get(app, "/canary/1")
    get(app, "/canary/2")
    after = values()
    name = 'paligemma_http_requests_total{method="POST",route="/v1/generate",status="200"}'
    assert after[name] == 3
    assert after['paligemma_http_requests_total{method="GET",route="other",status="404"}'] == 2
    assert after['paligemma_first_token_seconds_count{task="prompt"}'] == 3
    for row, growth in (
        ('paligemma_answers_total{outcome="answered"}', 3),
        ("paligemma_accepted_total", 3),
    ):
        assert after[row] - before[row] == growth
    assert after['paligemma_state{state="ready"}'] == 1
    assert not any("canary" in row for row in after)
