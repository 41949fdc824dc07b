"""The files in deploy/: they can be read, and what they name is what the code has."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("fastapi")

from fastapi import FastAPI  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import paligemma  # noqa: E402
from paligemma.cli.app import app as program  # noqa: E402
from paligemma.cli.serve import ServeOptions  # noqa: E402
from paligemma.server.app import create_app  # noqa: E402
from paligemma.server.service import Service  # noqa: E402
from paligemma.server.settings import KEYS_VARIABLE, KeyRing, Limits, Settings  # noqa: E402

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PORT = 8000


def read(file: str) -> str:
    return (DEPLOY / file).read_text(encoding="utf-8")


def documents(file: str) -> list[Any]:
    return [document for document in yaml.safe_load_all(read(file)) if document]


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    [deployment] = documents("kubernetes/deployment.yaml")
    [found] = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    """Path -> what it answers, of a server that has no model."""
    application = create_app(Service(lambda: pytest.fail("nothing loads"), name="x"), Settings())
    inner: Any = application
    while not isinstance(inner, FastAPI):
        inner = inner.app
    return dict(inner.openapi()["paths"])


@pytest.mark.parametrize(
    "file", sorted(path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*.y*ml"))
)
def test_every_yaml_file_can_be_read(file: str) -> None:
    assert documents(file)


def test_the_port_is_the_commands_own_everywhere(container: dict[str, Any]) -> None:
    assert ServeOptions.port == PORT
    dockerfile = read("Dockerfile")
    assert f"EXPOSE {PORT}" in dockerfile
    assert f"127.0.0.1:{PORT}/" in dockerfile
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    [compose] = documents("compose.yaml")
    assert compose["services"]["paligemma"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    [prometheus] = documents("prometheus.yml")
    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": [f"paligemma:{PORT}"]}]


def test_probes_and_checks_ask_routes_that_exist(
    container: dict[str, Any], served: dict[str, Any]
) -> None:
    for probe, path in (
        ("startupProbe", "/health/ready"),
        ("readinessProbe", "/health/ready"),
        ("livenessProbe", "/health/live"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert path in served
    asked = re.findall(r"http://127\.0\.0\.1:8000(/[a-z/]*)", read("Dockerfile"))
    assert asked == ["/health/live"]
    [prometheus] = documents("prometheus.yml")
    assert prometheus["scrape_configs"][0]["metrics_path"] == "/metrics"
    assert "/metrics" in served


def test_options_and_variables_are_those_of_the_command(container: dict[str, Any]) -> None:
    shown = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(program, ["serve", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", shown.output))
    [compose] = documents("compose.yaml")
    used = [
        *container["args"],
        *compose["services"]["paligemma"]["command"],
        *json.loads(re.findall(r"^CMD (\[\"serve.*)$", read("Dockerfile"), re.MULTILINE)[0]),
    ]
    options = {word.partition("=")[0] for word in used if word.startswith("--")}
    assert options
    assert options <= known
    names = {variable["name"] for variable in container["env"]}
    assert names == {"PALIGEMMA_MODEL", KEYS_VARIABLE, "POD_IP"}
    assert names - {"POD_IP"} <= set(compose["services"]["paligemma"]["environment"])
    assert "PALIGEMMA_MODEL" in shown.output


def test_scrapers_call_each_pod_by_its_address_and_bring_a_key(container: dict[str, Any]) -> None:
    from tests.server.asgi import call

    [address] = [variable for variable in container["env"] if variable["name"] == "POD_IP"]
    assert address["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert "--allow-host=$(POD_IP)" in container["args"]
    key = "0123456789abcdef"
    service = Service(lambda: pytest.fail("nothing loads"), name="x")
    app = create_app(service, Settings(keys=KeyRing([key]), hosts=("10.1.2.3",)))
    headers = {"host": f"10.1.2.3:{PORT}", "authorization": f"Bearer {key}"}
    assert asyncio.run(call(app, "GET", "/metrics", headers=headers)).status == 200
    del headers["authorization"]
    assert asyncio.run(call(app, "GET", "/metrics", headers=headers)).status == 401


def test_d5_there_is_time_to_drain_before_the_process_is_killed(container: dict[str, Any]) -> None:
    drain_seconds = Limits().drain_seconds
    [deployment] = documents("kubernetes/deployment.yaml")
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace >= waits + drain_seconds + 5
    # Who routes requests must have noticed before the server refuses them.
    readiness = container["readinessProbe"]
    assert waits >= readiness["periodSeconds"] * readiness["failureThreshold"]
    [compose] = documents("compose.yaml")
    compose_grace = compose["services"]["paligemma"]["stop_grace_period"]
    assert float(compose_grace.removesuffix("s")) >= drain_seconds + 5


def test_containers_run_with_no_rights_that_they_do_not_need(container: dict[str, Any]) -> None:
    [user] = re.findall(r"^USER (\d+)$", read("Dockerfile"), re.MULTILINE)
    assert int(user) > 0
    [deployment] = documents("kubernetes/deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    [compose] = documents("compose.yaml")
    for name in ("paligemma", "paligemma-cuda"):
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    [policy] = documents("kubernetes/network-policy.yaml")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy["spec"]


def test_no_key_stands_in_any_file(container: dict[str, Any]) -> None:
    [keys] = [variable for variable in container["env"] if variable["name"] == KEYS_VARIABLE]
    assert "value" not in keys
    [compose] = documents("compose.yaml")
    assert compose["services"]["paligemma"]["environment"][KEYS_VARIABLE] == (
        "${PALIGEMMA_API_KEYS:-}"
    )


def test_the_image_is_built_of_files_that_are_there_and_let_in() -> None:
    let_in = {line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line[0] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names == let_in
    assert all((ROOT / name).exists() for name in names)
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_all_manifests_speak_of_the_same_pods() -> None:
    labels = {"app": "paligemma"}
    [deployment] = documents("kubernetes/deployment.yaml")
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert deployment["spec"]["template"]["metadata"]["labels"] == labels
    [service] = documents("kubernetes/service.yaml")
    assert service["spec"]["selector"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    [policy] = documents("kubernetes/network-policy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    [budget] = documents("kubernetes/disruption-budget.yaml")
    assert budget["spec"]["selector"]["matchLabels"] == labels
    # Clients in the cluster call it by the service's name.
    name = service["metadata"]["name"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert f"--allow-host={name}" in container["args"]


def test_the_dashboard_asks_for_numbers_that_the_server_has() -> None:
    service = Service(lambda: pytest.fail("nothing loads"), name="x")
    text = _metrics_of(service)
    has = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    has |= {f"{name}_bucket" for name in has}
    dashboard = json.loads(read("grafana/paligemma.json"))
    asked: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"paligemma_[a-z_]+", target["expr"]))
    assert asked
    assert asked <= has, asked - has
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    # All that there is to see is shown somewhere, but what panels would say twice.
    ours = {name for name in has if name.startswith("paligemma_")}
    plain = {name for name in ours if not name.endswith(("_bucket", "_created"))}
    missing = plain - {name.removesuffix("_bucket") for name in asked}
    assert missing <= {"paligemma_accepted_total"}


def _metrics_of(service: Service) -> str:
    from tests.server.asgi import call

    answer = asyncio.run(call(create_app(service, Settings()), "GET", "/metrics"))
    assert answer.status == 200
    return answer.body.decode()


@pytest.fixture(scope="module")
def ray_serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_serve", DEPLOY / "ray_serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ray_file_can_be_read_without_ray() -> None:
    tree = ast.parse(read("ray_serve.py"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "ray" for name in names)


def test_a_ray_replica_loads_before_it_is_ready_and_drains_before_it_ends(
    ray_serve: ModuleType, tmp_path: Path
) -> None:
    import paligemma
    from tests.server.asgi import call

    mini = Path(paligemma.__file__).parent / "mini" / "model"
    if not (mini / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    folder = tmp_path / "model-2"
    folder.symlink_to(mini)

    async def live() -> None:
        server = ray_serve.ServerApp(str(folder), ("example.com",))
        told = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        said: list[str] = []
        end = asyncio.Event()

        async def receive() -> Any:
            if len(told) == 1:
                await end.wait()
            return told.pop(0)

        async def send(message: Any) -> None:
            said.append(message["type"])

        living = asyncio.create_task(server({"type": "lifespan"}, receive, send))
        while not said:
            await asyncio.sleep(0.02)
        assert said == ["lifespan.startup.complete"]
        ready = await call(server, "GET", "/health/ready", headers={"host": "example.com"})
        assert ready.status == 200
        listed = await call(server, "GET", "/v1/models")
        assert [model["id"] for model in listed.json()["data"]] == ["model-2"]
        # All come through Ray's proxy, so to the replica they are one client.
        limits = ray_serve.ServerApp.running.limits
        assert limits.streams_per_client == limits.max_running + limits.max_queued
        end.set()
        await living
        assert said[-1] == "lifespan.shutdown.complete"
        assert not ray_serve.ServerApp.running.is_alive()

    asyncio.run(live())


def test_local_ray_serves_it() -> None:
    pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = f"""
import base64, json, urllib.request
import ray, ray_serve
from ray import serve

ray.init(num_cpus=2, include_dashboard=False)
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
serve.run(ray_serve.build({{"model": "mini", "cpus": "0.5", "replicas": "2"}}), route_prefix="/")
picture = base64.b64encode(open({str(ROOT / "examples" / "scene.png")!r}, "rb").read()).decode()
request = urllib.request.Request(
    "http://localhost:{port}/v1/caption",
    json.dumps({{"image": picture}}).encode(),
    {{"content-type": "application/json"}},
)
print("said:", json.load(urllib.request.urlopen(request))["result"]["text"])
serve.shutdown()
"""
    # Paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray") as home:
        ran = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=240,
            env={
                "PATH": os.environ["PATH"],
                "HOME": home,
                "PYTHONPATH": f"{ROOT / 'src'}:{DEPLOY}",
                "OMP_NUM_THREADS": "1",
                "RAY_TMPDIR": home,
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
    expected = paligemma.load("mini").caption(ROOT / "examples" / "scene.png")
    assert f"said: {expected.text}\n" in ran.stdout, ran.stderr
