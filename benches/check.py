#!/usr/bin/env python3
"""Instructions per packet of each stage of the packet path, against the committed figures.

usage: check.py PACKET_PATH_BINARY CAPTURE [--bless]

Counts with callgrind, so that neither clock nor neighbours matter: each stage is run for two and for
three rounds, and the difference is one round. Exit 1 if a stage takes over 3 % more (or less: then
bless the new figure) than benches/instructions.json says; --bless writes it.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

STAGES = ["iterate", "decode", "key", "table"]
TOLERANCE = 0.03
FIGURES = pathlib.Path(__file__).parent / "instructions.json"


def collected(binary, capture, stage, rounds):
    """Instructions of a whole run."""
    with tempfile.TemporaryDirectory() as scratch:
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch}/out",
             binary, capture, "--stage", stage, "--rounds", str(rounds)],
            capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode != 0 or not found:
        sys.exit(f"callgrind failed on stage {stage}:\n{run.stderr[-800:]}")
    return int(found.group(1))


def packets_of(capture):
    """Packets of the capture, from its generator's truth file."""
    truth = pathlib.Path(capture.replace(".pcap.gz", ".truth.json"))
    return json.loads(truth.read_text())["packets"]


def measure(binary, capture):
    """Instructions per packet by stage."""
    packets = packets_of(capture)
    out = {}
    for stage in STAGES:
        round_ = collected(binary, capture, stage, 3) - collected(binary, capture, stage, 2)
        out[stage] = round(round_ / packets, 1)
    return out


def main():
    """Measures, prints a table, compares or blesses."""
    args = [a for a in sys.argv[1:] if a != "--bless"]
    if len(args) != 2:
        sys.exit(__doc__)
    compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    now = measure(*args)
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
    if failed:
        sys.exit("a stage is more than 3 % off; if that is meant, make bench-check BLESS=--bless")


if __name__ == "__main__":
    main()
