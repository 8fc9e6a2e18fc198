#!/usr/bin/env python3
"""Instructions per packet of each stage of the packet path, against the committed figures.

usage: check.py PACKET_PATH_BINARY CAPTURE [--bless]

Counts with callgrind, so that neither clock nor neighbours matter: each stage is run for two and for
three rounds, and the difference is one round. The last stage is also shown by the source files its
instructions come from. Exit 1 if a stage takes over 3 %
more (or less: then bless the new figure) than benches/instructions.json says; --bless writes it.
"""
import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

STAGES = ["iterate", "decode", "hash", "table", "state", "inspect", "blocklist", "filter"]
TOLERANCE = 0.03
FIGURES = pathlib.Path(__file__).parent / "instructions.json"


def collected(binary, capture, stage, rounds):
    """Instructions of a whole run, by source file."""
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch, "out")
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
             binary, capture, "--stage", stage, "--rounds", str(rounds)],
            capture_output=True, text=True)
        if run.returncode != 0 or not out.exists():
            sys.exit(f"callgrind failed on stage {stage}:\n{run.stderr[-800:]}")
        return by_file(out.read_text())


def by_file(profile):
    """A callgrind profile's own costs, summed by source file (its file format: valgrind's manual)."""
    names, costs, file, skip = {}, collections.Counter(), "", False
    for line in profile.splitlines():
        if named := re.match(r"(c?)f[lie]=(\(\d+\))(?: (.*))?", line):
            name = names.setdefault(named[2], named[3] or "")
            file = file if named[1] else name  # of a called function only the name counts
        elif line.startswith("calls="):
            skip = True  # the next line is what the called function cost
        elif cost := re.match(r"[+*-]?\d* (\d+)$", line):
            costs[file] += 0 if skip else int(cost[1])
            skip = False
    return costs


def packets_of(capture):
    """Packets of the capture, from its generator's truth file."""
    truth = pathlib.Path(capture.replace(".pcap.gz", ".truth.json"))
    return json.loads(truth.read_text())["packets"]


def measure(binary, capture):
    """Instructions per packet by stage."""
    packets = packets_of(capture)
    out, files = {}, {}
    for stage in STAGES:
        three, two = (collected(binary, capture, stage, n) for n in (3, 2))
        out[stage] = round((three.total() - two.total()) / packets, 1)
        files = {name: (three[name] - two[name]) / packets for name in three}
    return out, files


def main():
    """Measures, prints a table, compares or blesses."""
    args = [a for a in sys.argv[1:] if a != "--bless"]
    if len(args) != 2:
        sys.exit(__doc__)
    compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    now, files = measure(*args)
    if "--bless" in sys.argv:
        FIGURES.write_text(json.dumps({"compiler": compiler, "instructions_per_packet": now}, indent=2) + "\n")
    committed = json.loads(FIGURES.read_text())
    if committed["compiler"] != compiler:
        print(f"note: the figures are of {committed['compiler']}, this is {compiler}")
    failed = False
    print(f"{'stage':8} {'committed':>10} {'now':>10} {'change':>8}   instructions per packet, cumulative")
    for stage in STAGES:
        before, after = committed["instructions_per_packet"][stage], now[stage]
        change = after / before - 1
        failed |= abs(change) > TOLERANCE
        print(f"{stage:8} {before:10.1f} {after:10.1f} {change:+8.1%}")
    print("\nthe last stage by source file:")
    ours = {n: c for n, c in files.items() if "/src/flow/" in n or "/src/packet/" in n or n.startswith("src/")}
    for name, cost in sorted(ours.items(), key=lambda item: -item[1]):
        if cost >= 0.5:
            print(f"  {name[name.rfind('src/'):]:28} {cost:7.1f}")
    print(f"  {'libraries and the benchmark':28} {sum(files.values()) - sum(ours.values()):7.1f}")
    if failed:
        sys.exit("a stage is more than 3 % off; if that is meant, make bench-check BLESS=--bless")


if __name__ == "__main__":
    main()
