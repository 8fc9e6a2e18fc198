"""Shared memory from another process: more load than a kernel interface carries, and none of it lost
unseen."""

import os
import time

from . import machine
from .bench_rx import source
from .figures import Failure, Skip, pick, rounds, table
from .programs import Scratch, Sender, Sensor, Trim, cpu_of

SHM = "/dev/shm"


def run(ctx, path, seconds, journaling):
    """One run: the sender has core 0, the worker core 1, the journal what is left of core 0."""
    with Scratch(SHM) as directory, Trim(directory):
        socket = os.path.join(directory, "memif.sock")
        args = ["--vdev", f"net_memif0,role=server,socket={socket},socket-abstract=no"]
        if journaling:
            args += ["--lcores", "0@0,1@1", "--journal", "on", "--data-dir", directory]
            args += ["--pcap-filter", ""]
            args += ["--rotate-size", "64MB"]
        else:
            args += ["--lcores", "1@1", "--journal", "off"]
        with Sensor(ctx.binary, ctx.config, args) as sensor:
            sensor.wait_for("lcore-1")
            link = f"net_memif0,role=client,socket={socket},socket-abstract=no"
            with Sender(source(path), link) as sender:
                sender.start()
                begun, before = time.monotonic(), cpu_of(sensor.process.pid, "lcore-1")
                time.sleep(seconds)
                sent = sender.stop()
                took = time.monotonic() - begun
                cpu = cpu_of(sensor.process.pid, "lcore-1") - before
                time.sleep(0.2)
            summary = sensor.stop()
    if not sent:
        raise Failure("dpdk-testpmd sent nothing")
    drops, kept = summary["drops"], summary["journal"]
    lost = sum(n for name, n in drops.items() if name.startswith("journal_"))
    return {
        "rate": sent / took,
        "cpu": cpu * 1e9 / sent,
        "unaccounted": sent - summary["packets"] - drops["nic_missed"] - drops["no_buffer"],
        "unaccounted_inside": summary["packets"] - summary["decoded"]
        - sum(summary["not_ip"].values()) - sum(summary["malformed"].values()),
        "journal_lost": lost / sent,
        "journal_unaccounted": summary["decoded"] - kept["packets"] - lost if journaling else 0,
    }


def section(ctx):
    if os.cpu_count() < 2:
        raise Skip("sender and receiver want a core each")
    machine.need_root("DPDK with its memory locked")
    seconds, count = (1.0, 1) if ctx.quick else (3.0, 3)
    out, rows, notes = {}, [], []
    for name in ("w1s", "w2s"):
        path = ctx.capture(name)
        jobs = {
            "no journal": lambda: run(ctx, path, seconds, False),
            "journal": lambda: run(ctx, path, seconds, True),
        }
        for job, runs in rounds(count, jobs).items():
            if isinstance(runs, Exception):
                notes.append(f"{name}, {job}: {ctx.word(runs)}")
                continue
            rate, cpu = pick(runs, "rate", "packets/s"), pick(runs, "cpu", "CPU ns/packet")
            lost = pick(runs, "journal_lost", "share")
            figures = {"rate": rate, "cpu": cpu, "journal_lost": lost}
            wrong = 0
            for key in ("unaccounted", "unaccounted_inside", "journal_unaccounted"):
                figures[key] = sum(r[key] for r in runs)
                wrong += figures[key]
                if figures[key]:
                    ctx.wrong(f"memif {name}, {job}: {key} packets: {[r[key] for r in runs]}")
            out[f"{name}, {job}"] = figures
            rows.append([f"{name} {job}", rate.text(1e6), cpu.text(1, 0), str(wrong),
                         lost.text(0.01) if job == "journal" else "-"])
    table(
        f"memif: dpdk-testpmd sends on one core, malakocut receives on the other; {count} round(s)",
        ["", "sent Mpps", "worker CPU ns/packet", "unaccounted", "not journaled %"],
        rows,
        notes,
    )
    return out
