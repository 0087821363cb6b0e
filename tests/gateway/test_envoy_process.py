"""Envoy as a child: it comes up, comes back, gives up with a reason, and never outlives its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs
from waiting import block_until

from headrace.envoy.descriptors import discover
from headrace.envoy.options import BootstrapOptions
from headrace.server.proxy import EnvoyError, EnvoyProcess

SECONDS = 20.0


def gone(pid: int) -> bool:
    """Whether the process has ended; one that its own parent has not asked about yet has ended too."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def envoy_process(folder: Path, failures: list[str], **options: Any) -> EnvoyProcess:
    chosen = {"upstream_socket": str(folder / "grpc.sock"), "listen_port": 0, **options}
    return EnvoyProcess(
        BootstrapOptions(**chosen), discover(), runtime_dir=folder / "run", on_failure=failures.append
    )


async def test_start_and_stop_leave_nothing(tmp_path: Path) -> None:
    envoy = envoy_process(tmp_path, [])
    assert envoy.pid == 0
    await envoy.start()
    pid, port = envoy.pid, envoy.port
    assert pid
    assert port
    assert not gone(pid)
    assert psutil.Process(pid).name() == "envoy"
    config = tmp_path / "run" / "envoy.json"
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    await envoy.stop()
    await envoy.stop()
    assert gone(pid)
    assert envoy.pid == 0
    assert not config.exists()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


async def test_stop_kills_an_envoy_that_does_not_react(tmp_path: Path) -> None:
    envoy = envoy_process(tmp_path, [])
    await envoy.start()
    pid = envoy.pid
    os.kill(pid, signal.SIGSTOP)
    await envoy.stop(grace_s=0.2)
    assert gone(pid)


async def test_killed_envoy_is_started_again(tmp_path: Path) -> None:
    failures: list[str] = []
    envoy = envoy_process(tmp_path, failures)
    await envoy.start()
    first, port = envoy.pid, envoy.port
    _, held = await asyncio.open_connection("127.0.0.1", port)  # keeps the old port busy for a while
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        while envoy.pid in {0, first}:
            await asyncio.sleep(0.02)
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                break
    writer.close()
    held.close()
    assert gone(first)
    second = envoy.pid
    await envoy.stop()
    assert gone(second)
    assert not failures


async def test_stop_while_envoy_is_being_started_again(tmp_path: Path) -> None:
    envoy = envoy_process(tmp_path, [])
    await envoy.start()
    first = envoy.pid
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        while envoy.pid in {0, first}:
            await asyncio.sleep(0)
    second = envoy.pid  # spawned, most likely not yet listening
    await envoy.stop()
    assert gone(second)
    assert envoy.pid == 0


async def test_envoy_that_cannot_be_started_again_is_given_up(tmp_path: Path) -> None:
    failures: list[str] = []
    envoy = envoy_process(tmp_path, failures)
    await envoy.start()
    (tmp_path / "run" / "envoy.json").write_text('{"nonsense": 1}')
    with capture_logs() as logs:
        os.kill(envoy.pid, signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            while not failures:
                await asyncio.sleep(0.02)
    (failure,) = failures
    assert failure.startswith("Envoy failed 5 times within 60 s, at last: Envoy ended with status 1")
    assert "nonsense" in failure
    delays = [entry["delay_s"] for entry in logs if "delay_s" in entry]
    assert delays == [0.1, 0.2, 0.4, 0.8]
    assert envoy.pid == 0
    await envoy.stop()
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("option", "flag"), [("listen_port", "--http-port"), ("metrics_port", "--metrics-port")]
)
async def test_taken_port_is_named(tmp_path: Path, option: str, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        envoy = envoy_process(tmp_path, [], **{option: port})
        with pytest.raises(
            EnvoyError, match=rf"port {port} for HTTP: Address already in use; {flag} chooses"
        ):
            await envoy.start()
        assert envoy.pid == 0
        await envoy.stop()


async def test_two_envoys_do_not_share_a_port(tmp_path: Path) -> None:
    first = envoy_process(tmp_path / "1", [])
    await first.start()
    try:
        second = envoy_process(tmp_path / "2", [], listen_port=first.port)
        with pytest.raises(EnvoyError, match=f"port {first.port} "):
            await second.start()
    finally:
        await first.stop()


async def test_configuration_that_envoy_refuses_fails_the_start(tmp_path: Path) -> None:
    envoy = envoy_process(tmp_path, [], admin_socket=str(tmp_path / "missing" / "admin.sock"))
    with pytest.raises(EnvoyError, match=r"Envoy ended with status 1; .*admin"):
        await envoy.start()
    assert envoy.pid == 0
    await envoy.stop()


async def test_access_log_reaches_the_servers_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        envoy = envoy_process(tmp_path, [], access_log=True)
        await envoy.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
        writer.write(b"GET /models/m/proxy/nope?x=1 HTTP/1.1\r\nhost: h\r\nx-request-id: r1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await envoy.stop()
    (line,) = [entry for entry in logs if entry["event"] == "http request"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/nope?x=1", 404)
    assert (line["request_id"], line["model"]) == ("r1", "m")


PARENT = """
import asyncio, sys
from pathlib import Path
{imports}
from headrace.envoy.descriptors import discover
from headrace.envoy.options import BootstrapOptions
from headrace.server.proxy import EnvoyProcess

async def main(folder):
    options = BootstrapOptions(upstream_socket=str(folder / "grpc.sock"), listen_port=0)
    envoy = EnvoyProcess(options, discover(), runtime_dir=folder / "run", on_failure=print)
    await envoy.start()
    print(envoy.pid, flush=True)
    await asyncio.sleep(60)

{run}(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("imports", "run"),
    [("import asyncio", "asyncio.run"), ("import uvloop", "uvloop.run")],
    ids=["asyncio", "uvloop"],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_envoy_dies_with_its_parent(tmp_path: Path, imports: str, run: str, number: signal.Signals) -> None:
    script = PARENT.format(imports=imports, run=run)
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = json.loads(parent.stdout.readline())
        assert not gone(pid)
        parent.send_signal(number)
        block_until(lambda: gone(pid))
        assert parent.wait(SECONDS) == -number
