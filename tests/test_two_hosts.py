"""Training on two hosts, which are network namespaces joined by a cable that is cut. Needs root, as
making namespaces does.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.survival import BATCH, begin, end_all, final_state, torchrun, training, wait_for, workers
from tests.tiny import ROOT, differing, environment, write_dataset
from training.run.folder import STATS_FILE

MINUTE = 60.0
STEPS = 300
TICKS = ("--tick", "0.08")  # and a checkpoint, every ten steps


@dataclass
class Host:
    """A network namespace with one end of the cable."""

    name: str
    cable: str
    address: str


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if os.geteuid():
        pytest.skip("network namespaces need root")
    both = tuple(
        Host(f"eg3d-{os.getpid()}{end}", f"eg3d{os.getpid() % 10000}{end}", f"10.77.0.{end}")
        for end in (1, 2)
    )
    first, second = both
    try:
        for host in both:
            ip("netns", "add", host.name)
        ip(
            "link",
            "add",
            first.cable,
            "netns",
            first.name,
            "type",
            "veth",
            "peer",
            "name",
            second.cable,
            "netns",
            second.name,
        )
        for host in both:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "link", "set", host.cable, "up")
        yield first, second
    finally:
        for host in both:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", host.name)


def job(host: Host, first: Host, data: Path, outdir: Path) -> str:
    """What a batch system runs on each host: torchrun, again until it ends well."""
    options = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "10",
        "--local-addr",
        host.address,
    ]
    # Names of hosts mean nothing between namespaces, so that torchrun must be told who keeps the
    # rendezvous.
    options += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        "job",
        "--rdzv-endpoint",
        f"{first.address}:29400",
    ]
    options += ["--rdzv-conf", f"is_host={int(host == first)}", "--"]
    arguments = [sys.executable, *torchrun(*options), *training(outdir, data, STEPS, *TICKS)]
    return f"until {shlex.join(map(str, arguments))}; do sleep 2; done"


def start(host: Host, first: Host, data: Path, outdir: Path, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", host.name, "bash", "-c", job(host, first, data, outdir)],
            cwd=ROOT,
            env=environment(GLOO_SOCKET_IFNAME=host.cable),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def steps(outdir: Path) -> str:
    return "".join(path.read_text() for path in outdir.glob(f"*/{STATS_FILE}"))


def wait_for_steps(outdir: Path) -> None:
    before = steps(outdir)
    wait_for(lambda: steps(outdir) != before and steps(outdir).count("\n") > 0, "steps", 4 * MINUTE)


def has_lost_contact_again(log: Path, before: int) -> bool:
    return log.read_text().count("lost contact") > before


@pytest.mark.slow
def test_two_hosts_lose_a_process_and_their_cable(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    data, outdir = write_dataset(tmp_path / "blots.zip"), tmp_path / "runs"
    first, second = hosts
    logs = tmp_path / "first.log", tmp_path / "second.log"
    started = [start(host, first, data, outdir, log) for host, log in zip(hosts, logs, strict=True)]
    try:
        wait_for_steps(outdir)
        # A short cut is bridged by TCP: nobody ends, nothing is lost.
        ip("-n", first.name, "link", "set", first.cable, "down")
        time.sleep(10)
        ip("-n", first.name, "link", "set", first.cable, "up")
        wait_for_steps(outdir)
        assert not any("lost contact" in log.read_text() for log in logs)

        # A killed process: torchrun begins again on both hosts.
        (victim,) = workers(started[1])
        victim.kill()
        wait_for(lambda: "Going on from" in logs[0].read_text(), "a restart", 2 * MINUTE)
        wait_for_steps(outdir)

        # A long cut: both hosts' processes end with a reason within a minute, and begin again when
        # the cable is back.
        training_processes = [worker for process in started for worker in workers(process)]
        said = [log.read_text().count("lost contact") for log in logs]
        ip("-n", second.name, "link", "set", second.cable, "down")
        seconds = wait_for(
            lambda: (
                not any(
                    worker.is_running() and worker.status() != "zombie"
                    for worker in training_processes
                )
            ),
            "the end",
        )
        assert seconds < MINUTE
        for log, count in zip(logs, said, strict=True):
            wait_for(partial(has_lost_contact_again, log, count), "a reason")
        ip("-n", second.name, "link", "set", second.cable, "up")
        wait_for_steps(outdir)
        for process in started:
            assert process.wait(timeout=5 * MINUTE) == 0
    finally:
        for process in started:
            end_all(process)
    whole = begin(
        training(tmp_path / "whole", data, STEPS, *TICKS, "--procs", "2"), tmp_path / "whole.log"
    )
    assert whole.wait(timeout=5 * MINUTE) == 0
    assert final_state(outdir)["progress"]["images"] == STEPS * BATCH
    assert not differing(final_state(outdir), final_state(tmp_path / "whole"))
