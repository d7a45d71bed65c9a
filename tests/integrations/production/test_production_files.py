"""The production files pass their own tools' checks, and name what the code has."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import typer
import yaml
from production_files import FILES, documents, exported, metrics_of, queries

from nae_monitor.cli import app
from nae_monitor.placement.outpost import unfit_actions
from nae_monitor.settings import Settings

HERE = Path(__file__).parent
ROOT = FILES.parent
CONFIGURATIONS = ("docker/monitor.yaml", "kubernetes/config.yaml")


def test_queries_name_only_metrics_and_labels_that_an_exporter_gives() -> None:
    known = exported()
    for place, query in queries().items():
        used = metrics_of(query)
        assert used, place
        for metric, labels in used.items():
            assert metric in known, f"{place}: {metric}"
            assert labels <= known[metric], f"{place}: {labels - known[metric]}"


def test_every_metric_has_a_panel() -> None:
    shown = {name for query in queries().values() for name in metrics_of(query)}
    assert shown == set(exported())


def test_silence_is_told_by_the_tokens_that_grow_at_serving_processes() -> None:
    told = queries()["alert NaeMonitorSilent"]
    used = re.findall(r"(\w+)\((nae_\w+)(\{[^}]*\})?", told)
    assert used == [("increase", "nae_tokens_total", '{nae_stage="seen"}')]


def test_frames_that_go_unread_fire_a_rule() -> None:
    told = queries()["alert NaeMonitorFramesUnread"]
    events = {
        name for names in re.findall(r'nae_event=~?"([^"]*)"', told) for name in names.split("|")
    }
    counted = {"frames_too_long", "malformed_frames", "refused_turns", "rows_of_unknown_turns"}
    assert events == counted
    sources = [path.read_text() for path in (ROOT / "nae_monitor/placement").glob("*.py")]
    for name in counted:
        assert any(f'.{name}"' in text for text in sources), name


def test_every_panel_reads_the_chosen_source_and_has_a_place_of_its_own() -> None:
    panels = json.loads((FILES / "grafana/nae-monitor.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        sources = {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])}
        assert sources == {"${datasource}"}
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", str(FILES / "prometheus/prometheus.yaml")],
        ["test", "rules", str(HERE / "alerts_promtool.yaml")],
    ],
    ids=["configuration", "rules"],
)
def test_promtool_takes_the_configuration_and_the_rules_fire_as_meant(
    arguments: list[str],
) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries().values())
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


MANIFESTS = sorted(path.name for path in (FILES / "kubernetes").glob("*.yaml"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_every_manifest(name: str) -> None:
    found = documents(f"kubernetes/{name}")
    assert found
    for document in found:
        kubernetes_validate.validate(document, "1.37", strict=True)


def containers() -> dict[str, Any]:
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for name in MANIFESTS
        for document in documents(f"kubernetes/{name}")
        if document["kind"] in ("Deployment", "StatefulSet")
    }


def test_every_volume_secret_and_configuration_that_a_pod_names_is_there() -> None:
    config, secret = (
        {**one.get("data", {}), **one.get("stringData", {})}
        for one in documents("kubernetes/config.yaml")
    )
    claims = {"state"}
    for pod in containers().values():
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            for variable in container.get("env", ()):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                assert reference is None or reference["key"] in secret
        for volume in pod["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                keys = config if "configMap" in source else secret
                items = next(iter(source.values()))["items"]
                assert {item["key"] for item in items} <= keys.keys()


def worker_arguments() -> dict[str, list[str]]:
    """How each of the files starts a worker, behind the program's name."""
    unit = RawConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FILES / "systemd/nae-monitor-worker.service")
    (command,) = re.findall(r"^CMD (\[.*\])$", (FILES / "docker/Dockerfile").read_text(), re.M)
    return {
        "systemd": unit["Service"]["ExecStart"].split()[1:],
        "docker": json.loads(command),
        "kubernetes": containers()["nae-worker"]["containers"][0]["args"],
    }


@pytest.mark.parametrize("where", ["systemd", "docker", "kubernetes"])
def test_workers_are_started_by_options_that_the_command_has(where: str) -> None:
    name, *arguments = worker_arguments()[where]
    group: Any = typer.main.get_command(app)
    command = group.commands[name]
    context = command.make_context(name, list(arguments), resilient_parsing=True)
    assert context.params["deadline_s"] == 20


def test_a_worker_is_given_longer_to_end_than_it_takes() -> None:
    compose = yaml.safe_load((FILES / "docker/compose.yaml").read_text())
    assert compose["services"]["worker"]["stop_grace_period"] == "40s"
    assert containers()["nae-worker"]["terminationGracePeriodSeconds"] == 40


def probes() -> dict[str, list[str]]:
    worker = containers()["nae-worker"]["containers"][0]
    found = {
        kind: worker[kind]["exec"]["command"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    text = (FILES / "docker/Dockerfile").read_text()
    (check,) = re.findall(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", text, re.M)
    return {**found, "HEALTHCHECK": json.loads(check)}


@pytest.mark.parametrize("name", ["startupProbe", "readinessProbe", "livenessProbe", "HEALTHCHECK"])
def test_a_probe_tells_a_fresh_file_from_an_old_and_a_missing_one(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "alive"
    for arguments in worker_arguments().values():
        joined = " ".join(arguments)
        assert "--alive-file" not in joined or "/run/nae-monitor/alive" in joined
    command = [part.replace("/run/nae-monitor/alive", str(path)) for part in probes()[name]]

    def passes() -> bool:
        return subprocess.run(command, capture_output=True).returncode == 0

    assert not passes()
    path.touch()
    assert passes()
    old_s = path.stat().st_mtime - 60
    os.utime(path, (old_s, old_s))
    assert not passes()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_servers_and_workers_take_the_configuration(name: str, tmp_path: Path) -> None:
    document = documents(name)[0]
    text = document["data"]["monitor.yaml"] if "kind" in document else None
    path = tmp_path / "monitor.yaml"
    path.write_text(text or (FILES / name).read_text())
    settings = Settings.from_yaml(path)
    assert settings.capture.placement == "kafka"
    assert unfit_actions(settings) == []


def compose_file() -> tuple[Any, compose_spec.PyCompose]:
    plain = yaml.safe_load((FILES / "docker/compose.yaml").read_text())  # merges anchors
    return plain, compose_spec.PyCompose.from_yaml(yaml.safe_dump(plain))


def test_the_compose_file_is_one() -> None:
    _, compose = compose_file()
    compose.validate()


def test_workers_under_compose_are_told_apart_by_their_containers_names(tmp_path: Path) -> None:
    worker = compose_file()[0]["services"]["worker"]
    assert "OTEL_RESOURCE_ATTRIBUTES" not in worker["environment"]
    assert worker["command"] == worker_arguments()["docker"]
    told = tmp_path / "nae-monitor"
    told.write_text('#!/bin/sh\necho "$OTEL_RESOURCE_ATTRIBUTES"\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    line = [part.replace("$$", "$") for part in (*worker["entrypoint"], *worker["command"])]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(line, capture_output=True, text=True, env={"PATH": path}, check=True)
    instance, *arguments = done.stdout.splitlines()
    assert instance == f"service.instance.id={socket.gethostname()}"
    assert arguments == worker["command"]


def test_what_the_compose_file_mounts_and_builds_is_in_the_repository() -> None:
    plain, _ = compose_file()
    for service in plain["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FILES / "docker" / source).resolve().is_file(), source
            else:
                assert source in plain["volumes"]
        build = service.get("build")
        if build is not None:
            assert (FILES / "docker" / build["context"]).resolve() == ROOT
            stages = re.findall(
                r"^FROM \S+ AS (\w+)$", (ROOT / build["dockerfile"]).read_text(), re.M
            )
            assert build["target"] in stages


def test_nothing_is_published_beyond_the_loopback_interface() -> None:
    plain, _ = compose_file()
    ports = [port for service in plain["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, FILES / "docker/Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_in_the_repository() -> None:
    text = (FILES / "docker/Dockerfile").read_text()
    sources = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M)
        for name in line.split()[:-1]
    }
    assert sources
    assert all((ROOT / name).exists() for name in sources)


def test_the_collectors_pipelines_use_what_it_declares_and_nothing_is_left_over() -> None:
    (config,) = documents("collector/config.yaml")
    used: dict[str, set[str]] = {kind: set() for kind in ("receivers", "processors", "exporters")}
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            used[kind].update(names)
    used["exporters"].add("otlp/backend")  # kept ready for a backend of traces
    assert used == {kind: set(config[kind]) for kind in used}
    assert config["service"]["extensions"] == list(config["extensions"])


def test_each_side_of_a_port_names_the_same_one() -> None:
    (collector,), (scrape,) = (
        documents("collector/config.yaml"),
        documents("prometheus/prometheus.yaml"),
    )
    exports = collector["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"] == [f"collector:{exports}"]
    receives = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    for name in CONFIGURATIONS:
        assert f":{receives}" in (FILES / name).read_text()


def test_the_unit_keeps_its_sockets_private_and_outwaits_the_worker() -> None:
    unit = RawConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FILES / "systemd/nae-monitor-worker.service")
    service = unit["Service"]
    assert service["RuntimeDirectoryMode"] == "0700"
    assert int(service["TimeoutStopSec"]) > int(service["ExecStart"].split()[-1])
