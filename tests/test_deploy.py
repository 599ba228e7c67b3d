"""deploy/: files parse, name each other, and give commands and metrics that exist."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fourfold.cli.main import main
from fourfold.engine.engine import EngineStats
from fourfold.engine.limits import Counters
from fourfold.server.metrics import Metrics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[method-assign, assignment]
    found.read(DEPLOY / "fourfold.service", encoding="utf-8")
    return found


def dockerfile() -> dict[str, list[str]]:
    """The lists of the instructions that have one."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    return {name: json.loads(words) for name, words in re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", text, re.M)}


def commands() -> Iterator[list[str]]:
    """Every `fourfold serve` of these files and of their page."""
    yield shlex.split(unit()["Service"]["ExecStart"])[1:]
    image = dockerfile()
    yield [*image["ENTRYPOINT"], *image["CMD"]][1:]
    yield ["serve", *read_yaml("docker-compose.yml")["services"]["fourfold"]["command"]]
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    yield ["serve", *re.findall(r"--[a-z][a-z-]+", " ".join(re.findall(r"^OPTIONS=(.*)$", page, re.M)))]


def test_commands_have_options_that_exist(capfd):
    assert main(["serve", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capfd.readouterr().out))
    for command, *words in commands():
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert command == "serve" and used and used <= known, used - known


def test_all_who_listen_for_others_want_a_key():
    for _, *words in commands():
        line = " ".join(words)
        assert "0.0.0.0" not in line or "--api-key-file" in line, line


def test_grace_is_longer_than_draining():
    service = read_yaml("docker-compose.yml")["services"]["fourfold"]
    drain = int(re.findall(r"--drain-timeout[= ](\d+)", " ".join(service["command"]))[0])
    assert int(service["stop_grace_period"].rstrip("s")) > drain
    own = unit()["Service"]
    assert int(own["TimeoutStopSec"]) > int(re.findall(r"--drain-timeout (\d+)", own["ExecStart"])[0])


def test_files_that_are_named_are_there():
    compose = read_yaml("docker-compose.yml")
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file(), volume
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
    build = compose["services"]["fourfold"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    config = read_yaml("prometheus.yml")["scrape_configs"][0]
    assert Path(config["authorization"]["credentials_file"]).name in compose["secrets"]
    assert config["static_configs"][0]["targets"] == ["fourfold:8000"]
    mounted = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    folder = read_yaml("grafana/dashboards.yml")["providers"][0]["options"]["path"]
    assert f"{folder}/fourfold.json" in mounted
    assert "USER 10001" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def test_the_dashboard_shows_metrics_that_exist():
    class Engine:
        """What the metrics read of one."""

        restarts = 0

        def stats(self) -> EngineStats:
            return EngineStats(0, 0, 1, 1, 0, 0, 0, 0, Counters())

    text = Metrics("m", Engine()).text().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    known = {
        name + suffix
        for name, kind in kinds.items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    board = json.loads((DEPLOY / "grafana" / "fourfold.json").read_text(encoding="utf-8"))
    datasource = read_yaml("grafana/datasources.yml")["datasources"][0]["uid"]
    used = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == datasource
        for target in panel["targets"]:
            used |= set(re.findall(r"fourfold:\w+", target["expr"]))
            assert target["expr"].count("(") == target["expr"].count(")")
    assert used and used <= known, used - known
    boxes = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len({panel["id"] for panel in board["panels"]}) == len(set(boxes)) == len(boxes)


def test_systemd_takes_the_unit(tmp_path):
    if (analyze := shutil.which("systemd-analyze")) is None:
        assert unit()["Service"]["DynamicUser"] == "yes"
        return
    text = (DEPLOY / "fourfold.service").read_text(encoding="utf-8")
    (tmp_path / "fourfold.service").write_text(text.replace("/opt/fourfold/bin/fourfold", "/bin/true"))
    found = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "fourfold.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in found.stderr.splitlines() if "fourfold.service" in line]
    assert not told


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("**/*.yml")))
def test_yaml_is_yaml(name):
    (path,) = DEPLOY.glob(f"**/{name}")
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
