"""Files that deploy a server: what they say of it is true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bellm.cli import app
from bellm.serve import ServeConfig
from bellm.serve.api import ENDPOINTS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
SERVE: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Instructions of the Dockerfile, each in one line."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and line[0] != "#"]


def check_options(arguments: list[str]) -> None:
    known = {name for parameter in SERVE.params for name in parameter.opts}
    assert {each for each in arguments if each.startswith("--")} <= known


def test_the_image_runs_the_command_itself_as_nobody_special(lines: list[str]) -> None:
    entry = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2])
    assert entry[:2] == ["bellm", "serve"]
    check_options(entry)
    assert entry[entry.index("--port") + 1] in next(line for line in lines if line.startswith("EXPOSE"))
    assert lines.index("USER 10001") < [line.startswith("ENTRYPOINT") for line in lines].index(True)
    assert "HF_HUB_OFFLINE=1" in next(line for line in lines if line.startswith("ENV"))
    copied = " ".join(line.partition(" ")[2] for line in lines if line.startswith("COPY") and "--from" not in line)
    assert all((ROOT / name).exists() for name in copied.split() if name != "./")
    health = next(line for line in lines if line.startswith("HEALTHCHECK"))
    assert "/health" in health
    compile(json.loads(health.partition("CMD ")[2])[2], "health", "exec")


def test_containers_have_time_to_drain() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["bellm"]
    check_options(service["command"])
    pod = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))["spec"]["template"]["spec"]
    [container] = pod["containers"]
    check_options(container["args"])
    for given, grace in (
        (service["command"], service["stop_grace_period"]),
        (container["args"], pod["terminationGracePeriodSeconds"]),
    ):
        drain = float(given[given.index("--drain-seconds") + 1])
        assert drain == ServeConfig().drain_seconds
        assert int(re.sub(r"\D", "", str(grace))) > drain
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert "BELLM_API_KEY" in service["environment"]


def test_probes_ask_what_there_is() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    open_paths = {endpoint.path for endpoint in ENDPOINTS if endpoint.is_open}
    assert {probe["path"] for probe in probes.values()} <= open_paths
    assert (probes["readiness"]["path"], probes["liveness"]["path"]) == ("/health", "/live")
    assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]} == {"http"}
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
