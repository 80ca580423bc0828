"""The files of `examples/deployment`: whole, of one mind, and nothing private where others read."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployment.example import (
    EXAMPLE,
    NODES,
    UNITS,
    compose,
    mounts,
    service,
    unit,
    unit_command,
)

SUPERLINK, SUPERNODE = "sfl-superlink.service", "sfl-supernode@.service"
NODE_SERVICES = [f"supernode-{node}" for node in range(NODES)]


def test_the_compose_file_has_a_superlink_and_three_supernodes_that_come_back() -> None:
    services = compose()["services"]
    assert list(services) == ["superlink", *NODE_SERVICES]
    for name, found in services.items():
        assert found["restart"] == "always" and found["healthcheck"]["test"][0] == "CMD"
        assert found["user"] == "1000:1000" and found["cap_drop"] == ["ALL"], name
        assert re.fullmatch(r"flwr/(superlink|supernode):[\d.]+", found["build"]["args"]["BASE"])
    for name in NODE_SERVICES:
        assert services[name]["depends_on"] == {"superlink": {"condition": "service_healthy"}}
    handshake = services["superlink"]["healthcheck"]["test"][-1]
    compile(handshake, "healthcheck", "exec")


@pytest.mark.parametrize("node", range(NODES))
def test_a_supernode_holds_its_own_key_alone(node: int) -> None:
    seen, command = mounts(f"supernode-{node}"), service(f"supernode-{node}")
    assert seen == {
        "/secrets/ca.pem": "./secrets/ca.pem",
        f"/secrets/node-{node}": f"./secrets/node-{node}",
        "/state": f"./state/node-{node}",
    }
    assert command.option("--auth-supernode-private-key") == f"/secrets/node-{node}"
    assert command.option("--node-config") == f"partition-id={node} num-partitions={NODES}"
    assert command.arguments[:3] == ["sfl", "warm", "flower-supernode"]
    assert command.environment["SFL_STATE_LIMIT"] == "0"  # or nothing is left of it after a kill


def test_the_key_of_the_authority_goes_nowhere() -> None:
    text = "".join(path.read_text() for path in [EXAMPLE / "compose.yaml", *UNITS.iterdir()])
    assert "ca.key" not in text
    kept_out = (EXAMPLE / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in kept_out and not any("examples" in line for line in kept_out if line[:1] == "!")


def test_units_and_containers_start_the_same() -> None:
    """But for places, for addresses, and for ports: of one machine each node needs its own."""

    def alike(arguments: list[str]) -> set[str]:
        own = ("--host=", "--port=", "--superlink=")
        moved = [re.sub(r"(?<==)/[\w/]*/(?=[\w.-]+$)", "", each) for each in arguments]
        return {each for each in moved if not each.startswith(own)}

    assert alike(service("superlink").arguments) == alike(unit_command(SUPERLINK).arguments)
    for node, name in enumerate(NODE_SERVICES):
        other = unit_command(SUPERNODE, str(node))
        assert alike(service(name).arguments) == alike(other.arguments)
        assert other.option("--port") == f"209{node}"


@pytest.mark.parametrize(("name", "instance"), [(SUPERLINK, ""), (SUPERNODE, "2")])
def test_what_a_unit_keeps_is_its_users_alone(name: str, instance: str) -> None:
    settings = unit(name, instance)
    assert settings["UMask"] == ["0077"] and settings["StateDirectoryMode"] == ["0700"]
    assert settings["Restart"] == ["always"] and settings["StartLimitIntervalSec"] == ["0"]
    (state,) = settings["StateDirectory"]
    environment = unit_command(name, instance).environment
    own = ("HOME", "FLWR_HOME", "SFL_STATE_DIR")
    assert all(
        environment[key].startswith(f"/var/lib/{state}") for key in own if key in environment
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        text = re.sub(r"(?<==)/srv/sfl_flower/bin/[\w-]+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
