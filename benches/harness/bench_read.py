"""Reading capture files: the totals against the truth, and the CPU time against other programs."""

import json
import os
import re
import socket
import time

from . import machine
from .figures import Failure, Figure, Skip, pick, rounds, table
from .programs import Scratch, Testpmd, run

WORKLOADS = ("w1", "w2", "w3", "w4")
# Longer than this, and a program is not run in every round.
SLOW = 2.0
# Quick runs leave these out where they take 10 to 20 seconds.
SLOW_PEERS = {"argus", "ndpiReader"}
NUMBERS = re.compile(
    rb'"bytes":(\d+),"packets":(\d+),.*?"orig_ip_bytes":(\d+),.*?"resp_ip_bytes":(\d+),.*?"final":(t|f)'
)


WITH_LOG = ["--exporter", "file", "--flow-log", "/dev/null"]
WITHOUT_LOG = ["--exporter", "none"]


def malakocut(ctx, path, truth, output=WITH_LOG):
    """A timed run; its totals are compared with the truth."""
    usage = run(
        [ctx.binary, "--config", ctx.config, "--read", path, "--summary", "json",
         "--max-flows", "1000000", *output]
    )
    summary = json.loads(usage.out)
    expected = {
        "packets": truth["packets"],
        "bytes": truth["frame_bytes"],
        "decoded": truth["packets"],
        "flows": truth["biflows"],
        "evicted": 0,
    }
    for key, value in expected.items():
        if summary[key] != value:
            ctx.wrong(f"read {os.path.basename(path)}: {key} {summary[key]}, in truth {value}")
    packets = truth["packets"]
    return {
        "ns": usage.cpu * 1e9 / packets,
        "cpu": usage.cpu,
        "rss": usage.rss,
        "wall_rate": packets / usage.wall,
        "receive_rate": summary["packets_per_second"],
    }


def flow_log_totals(ctx, path):
    """What the flow events of a capture sum to."""

    def add_up(stream):
        totals = dict.fromkeys(("frame_bytes", "packets", "ip_bytes", "biflows", "events"), 0)
        for line in stream:
            if line.startswith(b'{"packets"'):
                continue  # the summary, after the events
            found = NUMBERS.search(line)
            if not found:
                raise Failure(f"a flow event has other fields than expected: {line[:300]!r}")
            frame_bytes, packets, orig, resp = map(int, found.groups()[:4])
            totals["frame_bytes"] += frame_bytes
            totals["packets"] += packets
            totals["ip_bytes"] += orig + resp
            totals["biflows"] += found[5] == b"t"
            totals["events"] += 1
        return totals

    return run(
        [ctx.binary, "--config", ctx.config, "--read", path, "--exporter", "file",
         "--flow-log", "-", "--summary", "json"],
        read=add_up,
    ).out


def check_totals(ctx):
    """Every flow event of every workload, added up; not timed."""
    out, rows = {}, []
    for name in WORKLOADS:
        truth = ctx.truth(name)
        totals = flow_log_totals(ctx, ctx.capture(name))
        keys = ("packets", "frame_bytes", "ip_bytes", "biflows")
        wrong = [key for key in keys if totals[key] != truth[key]]
        for key in wrong:
            ctx.wrong(f"flow log of {name}: {key} {totals[key]}, in truth {truth[key]}")
        shown = [f"{totals[key]:,}" for key in (*keys, "events")]
        rows.append([name, *shown, "differs: " + ", ".join(wrong) if wrong else "exact"])
        out[name] = {**totals, "exact": not wrong}
    table(
        "read: sums of the flow log",
        ["", "packets", "frame bytes", "IP bytes", "flows", "events", "against the truth"],
        rows,
    )
    return out


def testpmd(path, packets):
    """The driver reading the file once: ns of its lcore per packet."""
    with Testpmd(f"net_pcap0,rx_pcap={path}") as limit:
        limit.start()
        samples = [limit.sample()]
        while samples[-1][1] < packets:
            if samples[-1][0] - samples[0][0] > 30:
                raise Failure(f"dpdk-testpmd read {samples[-1][1]} of {packets} packets")
            time.sleep(0.004)
            samples.append(limit.sample())
    # Only what lies inside the file: before it and after its end the lcore spins.
    inside = [s for s in samples if 0 < s[1] < packets]
    if len(inside) < 2 or inside[-1][1] - inside[0][1] < packets // 4:
        raise Skip("the file was read faster than it could be watched")
    (at, first, cpu), (at2, last, cpu2) = inside[0], inside[-1]
    return {
        "ns": (cpu2 - cpu) * 1e9 / (last - first),
        "receive_rate": (last - first) / (at2 - at),
    }


def peers(path, scratch, port):
    """Other programs and what makes each read a file: {name: (packages, command)}."""
    return {
        "tcpdump --count": ("tcpdump", ["tcpdump", "-r", path, "--count"]),
        "softflowd": (
            "softflowd",
            ["softflowd", "-r", path, "-d", "-n", f"127.0.0.1:{port}", "-v", "9", "-m", "2000000",
             "-p", f"{scratch}/softflowd.pid", "-c", "none"],
        ),
        "nfpcapd": ("nfdump", ["nfpcapd", "-r", path, "-w", scratch]),
        "argus": ("argus-server", ["argus", "-r", path, "-w", f"{scratch}/argus.out"]),
        "ndpiReader": ("libndpi-bin", ["ndpiReader", "-i", path]),
    }


def peer(ctx, name, path, packets):
    """A timed run of one of them, in a directory of its own, with somebody to send flows to."""
    with Scratch(ctx.data) as scratch, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        packages, command = peers(path, scratch, sink.getsockname()[1])[name]
        machine.need(command[0], packages=packages)
        usage = run(command)
    return {"ns": usage.cpu * 1e9 / packets, "rss": usage.rss, "wall_rate": packets / usage.wall}


def section(ctx):
    count, slow_count = (2, 1) if ctx.quick else (5, 2)
    out = {"totals": check_totals(ctx)}
    floor_rss = max(run(["true"]).rss for _ in range(3))
    small = ctx.truth("w1s")
    fixed = Figure(
        [malakocut(ctx, ctx.capture("w1s"), small)["cpu"] for _ in range(count)], "CPU seconds"
    )
    out["fixed"] = fixed
    skipped = set()
    for name in WORKLOADS:
        path, truth = ctx.capture(name), ctx.truth(name)
        packets = truth["packets"]
        jobs = {
            "malakocut": lambda: malakocut(ctx, path, truth),
            "malakocut, no flow log": lambda: malakocut(ctx, path, truth, WITHOUT_LOG),
            "testpmd rxonly": lambda: testpmd(path, packets),
        }
        for other in peers("", "", 0):
            if not (ctx.quick and other in SLOW_PEERS and name in ("w3", "w4")):
                jobs[other] = lambda other=other: peer(ctx, other, path, packets)
        results = rounds(count, jobs, SLOW, slow_count)
        floor = results["testpmd rxonly"]
        floor = None if isinstance(floor, Exception) else pick(floor, "ns", "ns/packet")
        rows, figures = [], {}
        for job, runs in results.items():
            if isinstance(runs, Exception):
                skipped.add(f"{job}: {ctx.word(runs)}")
                continue
            shown = {"ns": pick(runs, "ns", "CPU ns/packet")}
            if job.startswith("malakocut"):
                shown["marginal_ns"] = Figure(
                    [v - fixed.median * 1e9 / packets for v in shown["ns"].values], "CPU ns/packet"
                )
            for key, unit in (
                ("rss", "bytes"), ("wall_rate", "packets/s"), ("receive_rate", "packets/s")
            ):
                if key in runs[0]:
                    shown[key] = pick(runs, key, unit)
            if floor and job != "testpmd rxonly":
                for key in ("ns", "marginal_ns"):
                    if key in shown:
                        shown[key].against(floor, "testpmd rxonly")
            figures[job] = shown
            rss = shown.get("rss")
            low = rss and rss.median <= floor_rss * 1.02
            rows.append([
                job,
                shown["ns"].text(1, 0),
                shown["ns"].ratio.text(1, 2) if shown["ns"].ratio else "-",
                "-" if not rss else ("<= " if low else "") + f"{rss.median / 1e6:,.0f}",
                shown["receive_rate"].text(1e6) if "receive_rate" in shown else "-",
                str(len(runs)),
            ])
        notes = []
        for job, shown in figures.items():
            if "marginal_ns" in shown:
                text = f"{job}, without its start: {shown['marginal_ns'].text(1, 0)} ns/packet"
                ratio = shown["marginal_ns"].ratio
                notes.append(text + (f", {ratio.text(1, 2)} of the floor" if ratio else ""))
        table(
            f"read {name}: user and system CPU of the whole process",
            ["", "ns/packet", "of the floor", "peak RSS MB", "reads Mpps", "runs"],
            rows,
            notes,
        )
        out[name] = figures
    table(
        "read: notes", [], [],
        [f"start and end of malakocut alone: {fixed.text(0.001)} CPU ms",
         "testpmd rxonly on the file is the floor of DPDK's pcap driver; only its lcore is counted",
         *sorted(skipped)],
    )
    return out
