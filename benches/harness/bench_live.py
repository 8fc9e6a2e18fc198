"""A kernel interface: nothing may be lost or unaccounted; and what waiting for packets costs."""

import os
import re
import time

from . import machine
from .figures import Failure, Figure, Skip, pick, rounds, table
from .machine import Pair
from .programs import Scratch, Sensor

SENT = re.compile(r"Actual: (\d+) packets \(\d+ bytes\) sent in ([0-9.]+) seconds")


def send(ctx, pair, path):
    """Sends a capture as fast as it goes from core 0: (packets, packets/s)."""
    limit = ["--limit=200000"] if ctx.quick else []
    said = pair.inside(
        "taskset", "-c", "0", "tcpreplay", "--topspeed", "-K", *limit, "-i", "sender", path
    )
    found = SENT.search(said)
    if not found:
        raise Failure(f"tcpreplay said nothing of what it sent: {said.strip()}")
    return int(found[1]), int(found[1]) / float(found[2])


def listen(ctx, pair, journal):
    """A sensor on the other end; `journal` is a directory, or None.

    The sender has core 0, as if it were another machine, and the worker core 1. With two cores the
    journal's lcore has to share them.
    """
    scribe = "0@0-1" if os.cpu_count() < 3 else "0@2"
    where = ["--lcores", f"{scribe},1@1", "--journal", "on", "--data-dir", journal,
             "--pcap-filter", ""]
    where = where if journal else ["--lcores", "1@1", "--journal", "off"]
    return Sensor(ctx.binary, ctx.config, ["--interface", "mirror", *where], pair.prefix())


def receive(ctx, pair, path, journaling):
    """One run: what was sent, what became of it, and what it cost."""
    with Scratch(ctx.data) as directory:
        with listen(ctx, pair, directory if journaling else None) as sensor:
            sensor.wait_for("lcore-1")
            time.sleep(0.3)
            before = sum(sensor.threads().values())
            sent, rate = send(ctx, pair, path)
            time.sleep(0.3)
            cpu = sum(sensor.threads().values()) - before
            summary = sensor.stop()
    drops, kept = summary["drops"], summary["journal"]
    accounted = summary["packets"] + drops["kernel"] + drops["left_in_ring"]
    inside = summary["decoded"] + sum(summary["not_ip"].values())
    inside += sum(summary["malformed"].values()) + drops.get("worker_ring_full", 0)
    lost = sum(n for name, n in drops.items() if name.startswith("journal_"))
    return {
        "rate": rate,
        "sent": sent,
        "received": summary["packets"],
        "unaccounted": sent - accounted,
        "unaccounted_inside": summary["packets"] - inside,
        "journal_lost": lost,
        "journal_unaccounted": summary["decoded"] - kept["packets"] - lost if journaling else 0,
        "us": cpu * 1e6 / summary["packets"] if summary["packets"] else 0.0,
        "drops": {name: n for name, n in drops.items() if n},
    }


def idle(ctx, pair):
    """Per cent of a core that each thread takes while nothing arrives."""
    seconds = 2.0 if ctx.quick else 5.0
    with Scratch(ctx.data) as directory, listen(ctx, pair, directory) as sensor:
        sensor.wait_for("lcore-1")
        time.sleep(2.0)  # it backs off step by step
        begun, before = time.monotonic(), sensor.threads()
        time.sleep(seconds)
        after, took = sensor.threads(), time.monotonic() - begun
        summary = sensor.stop()
    out = {}
    for key, cpu in after.items():
        name = key[0] if key[0].startswith("lcore-") else "other threads"
        out[name] = out.get(name, 0.0) + (cpu - before.get(key, 0.0)) * 100 / took
    if summary["packets"]:
        raise Failure(f"{summary['packets']} packets arrived though nothing was sent")
    return {name: Figure([share], "% of a core") for name, share in sorted(out.items())}


def section(ctx):
    machine.need_root("a network namespace")
    machine.need("ip", "ethtool", "tcpreplay", "taskset",
                 packages="iproute2 ethtool tcpreplay util-linux")
    if (os.cpu_count() or 1) < 2:
        raise Skip("sender and receiver want a core each")
    count = 1 if ctx.quick else 3
    out, rows, notes = {}, [], []
    with Pair() as pair:
        for name in ("w1", "w2"):
            path = ctx.capture(name)
            jobs = {
                "nobody listens": lambda: {"rate": send(ctx, pair, path)[1]},
                "no journal": lambda: receive(ctx, pair, path, False),
                "journal": lambda: receive(ctx, pair, path, True),
            }
            results = rounds(count, jobs)
            alone = results["nobody listens"]
            figures = out[name] = {}
            if not isinstance(alone, Exception):
                alone = figures["sender_alone"] = pick(alone, "rate", "packets/s")
                rows.append([f"{name} nobody listens", alone.text(1e3, 0), *["-"] * 7])
            for job in ("no journal", "journal"):
                runs = results[job]
                if isinstance(runs, Exception):
                    notes.append(f"{name}, {job}: {ctx.word(runs)}")
                    figures[job] = ctx.word(runs)
                    continue
                total = lambda key: sum(run[key] for run in runs)
                rate = pick(runs, "rate", "packets/s")
                if isinstance(alone, Figure):
                    rate.against(alone, "the sender alone")
                cost = pick(runs, "us", "CPU us/packet")
                drops = {}
                for one in runs:
                    for reason, n in one["drops"].items():
                        drops[reason] = drops.get(reason, 0) + n
                figures[job] = {
                    "rate": rate, "cpu": cost, "drops": drops,
                    **{key: total(key) for key in ("sent", "received", "unaccounted",
                       "unaccounted_inside", "journal_lost", "journal_unaccounted")},
                }
                rows.append([
                    f"{name} {job}", rate.text(1e3, 0), f"{total('sent'):,}",
                    f"{total('received'):,}",
                    ", ".join(f"{reason} {n:,}" for reason, n in drops.items()) or "0",
                    str(total("unaccounted")),
                    f"{total('journal_lost'):,}" if job == "journal" else "-",
                    cost.text(1, 2),
                    rate.ratio.text(1, 2) if rate.ratio else "-",
                ])
                for key in ("unaccounted", "unaccounted_inside", "journal_unaccounted"):
                    if total(key):
                        ctx.wrong(f"live {name}, {job}: {key} packets: {[r[key] for r in runs]}")
        table(
            f"live: veth, tcpreplay on one core, malakocut --interface on the other; {count} round(s)",
            ["", "sent kpps", "sent", "received", "drops", "unaccounted", "not journaled",
             "CPU us/packet", "rate of the sender alone"],
            rows,
            notes if os.cpu_count() > 2 else [
                *notes, "with two cores the journal has none of its own: it shares those of the others"
            ],
        )
        try:
            shares = out["idle"] = idle(ctx, pair)
            table("live: nothing arrives (% of a core, journal on)", ["thread", "%"],
                  [[name, share.text(1, 2)] for name, share in shares.items()])
        except Failure as problem:
            out["idle"] = ctx.word(problem)
            ctx.wrong(f"live, idle: {problem}")
    return out
