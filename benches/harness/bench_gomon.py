"""gomon on captures of one host that knocks at 1,000 and at 150,000 others within one window."""

import json
import os

from . import machine
from .figures import Failure, Skip, pick, rounds, table
from .programs import run

# Packets a second of the Go program of the same name, measured on another machine.
ORIGINAL = {"h1k": 310_000, "h150k": 22_000}
WINDOW = 30
TRACKED = 1024  # --max-destinations by default


def gomon(ctx, binary, name, tracked):
    """A timed run, from its start to its end; its scan is compared with the truth."""
    truth = ctx.truth(name)
    # Only the events are on standard output.
    usage = run([binary, ctx.capture(name), "10.0.0.5", "--window", str(WINDOW),
                 "--max-destinations", str(tracked)])
    found = json.loads(usage.out)["metadata"]["gomon"]
    expected = {
        "packet_rate": truth["packets"] / WINDOW,
        "destination_rate": min(truth["hosts"], tracked) / WINDOW,
    }
    for key, value in expected.items():
        if abs(found[key] - value) > 1e-6 * value:
            ctx.wrong(f"gomon {name}: {key} {found[key]}, in truth {value}")
    return result(truth, usage)


def tcpdump(ctx, name):
    machine.need("tcpdump", packages="tcpdump")
    return result(ctx.truth(name), run(["tcpdump", "-r", ctx.capture(name), "--count"]))


def result(truth, usage):
    return {"rate": truth["packets"] / usage.wall, "rss": usage.rss}


def section(ctx):
    binary = os.path.join(machine.ROOT, "target/release/gomon")
    if not os.access(binary, os.X_OK):
        raise Skip(f"{binary} is not there: make build")
    out, rows = {}, []
    for name, original in ORIGINAL.items():
        results = rounds(
            3 if ctx.quick else 9,
            {
                "gomon": lambda: gomon(ctx, binary, name, TRACKED),
                "gomon, every host tracked": lambda: gomon(ctx, binary, name, 200_000),
                "tcpdump --count": lambda: tcpdump(ctx, name),
            },
        )
        limit = results["tcpdump --count"]
        limit = None if isinstance(limit, Exception) else pick(limit, "rate", "packets/s")
        out[name] = {}
        for job, runs in results.items():
            if isinstance(runs, (Skip, Failure)):
                rows.append([f"{name}: {job}", ctx.word(runs), "", "", ""])
                continue
            rate, rss = pick(runs, "rate", "packets/s"), pick(runs, "rss", "bytes")
            ours = job.startswith("gomon")
            if limit and ours:
                rate.against(limit, "tcpdump --count")
            out[name][job] = {"rate": rate, "rss": rss}
            rows.append([
                f"{name}: {job}",
                rate.text(1e6),
                rate.ratio.text(1, 2) if rate.ratio else "-",
                f"{rate.median / original:,.0f}" if ours else "-",
                f"{rss.median / 1e6:,.0f}",
            ])
    table(
        "gomon: a million packets to 1,000 and to 150,000 hosts in one window, start to end",
        ["", "Mpps", "of tcpdump --count", "times the original", "RSS MB"],
        rows,
        ["The original, as measured on another machine: 310,000 and 22,000 packets/s."],
    )
    return out
