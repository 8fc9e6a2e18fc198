#!/usr/bin/env python3
"""Measures the malakocut binary as a whole and compares it with what the machine can do.

Sections: rx (one worker against dpdk-testpmd), read (capture files against other programs and the
truth), live (a veth pair: losses, accounting, idling), memif (from another process), memory,
gomon (one host's windows against tcpdump). What cannot be measured here is skipped and said so. Run
as root for rx and live. Exit status: 0, or 1 if a total was wrong, a
packet unaccounted for, or a section failed.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True

from harness import (
    bench_gomon, bench_live, bench_memif, bench_memory, bench_read, bench_rx, machine,
)
from harness.figures import Failure, Skip, plain
from harness.programs import Scratch

SECTIONS = {
    "rx": bench_rx.section,
    "read": bench_read.section,
    "live": bench_live.section,
    "memif": bench_memif.section,
    "memory": bench_memory.section,
    "gomon": bench_gomon.section,
}
# Buffers for a whole capture of a million packets, and for anything else.
PAGES_RX, PAGES = 1_400, 256


class Context:
    """What every section needs to know."""

    def __init__(self, binary, data, config, quick):
        self.binary, self.data, self.config, self.quick = str(binary), str(data), str(config), quick
        self.wrongs = []

    def capture(self, name):
        return f"{self.data}/{name}.pcap"

    def truth(self, name):
        return json.loads(pathlib.Path(f"{self.data}/{name}.truth.json").read_text())

    def wrong(self, what):
        """Something that must not be; shown at the end."""
        self.wrongs.append(what)

    def word(self, problem):
        """A problem in a few words; a failure is also something that must not be."""
        if isinstance(problem, Failure):
            self.wrong(str(problem))
            return f"failed: {problem}"
        return f"skipped: {problem}"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--only", metavar="NAME,..", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--json", type=pathlib.Path, default=machine.ROOT / "target/bench.json",
                        metavar="FILE", help="where the figures go (default: target/bench.json)")
    parser.add_argument("--data", type=pathlib.Path, default="/tmp/malakocut-bench", metavar="DIR",
                        help="where the captures are kept (default: %(default)s; 0.8 GB)")
    parser.add_argument("--binary", type=pathlib.Path,
                        default=machine.ROOT / "target/release/malakocut", metavar="FILE",
                        help="what is measured (default: target/release/malakocut)")
    args = parser.parse_args()
    args.names = args.only.split(",") if args.only else list(SECTIONS)
    unknown = [name for name in args.names if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}")
    if not os.access(args.binary, os.X_OK):
        parser.error(f"{args.binary} is not there: make build")
    return args


def measure(ctx, names):
    """Runs the sections; what cannot be is skipped."""
    out = {}
    for name in names:
        begun = time.monotonic()
        try:
            out[name] = SECTIONS[name](ctx)
        except (Skip, Failure) as problem:
            out[name] = ctx.word(problem)
            print(f"\n{name}: {out[name]}", flush=True)
        out[name + "_seconds"] = time.monotonic() - begun
    return out


def main():
    args = arguments()
    # Ending by a signal also ends what was started and puts everything back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = args.data.resolve()
    # In a process of its own: what this one has used counts as used by those it starts.
    subprocess.run([sys.executable, pathlib.Path(__file__).with_name("workloads.py"), data], check=True)
    begun = time.monotonic()
    with Scratch(data) as scratch, machine.hugepages(
        PAGES_RX if "rx" in args.names else PAGES
    ) as pages:
        config = pathlib.Path(scratch, "empty.toml")  # the machine's own configuration does not count
        config.touch()
        # A copy, since a build may replace the original half-way.
        binary = shutil.copy(args.binary, scratch)
        ctx = Context(binary, data, config, args.quick)
        about = machine.describe(ctx.binary)
        print(
            f"{about['version']}\n{about['cpu']}, {about['cores']} cores, {about['memory_mib']} MiB,"
            f" Linux {about['kernel']}, DPDK {about['dpdk'] or 'unknown'},"
            f" load {about['load_at_start']:.1f}\n{pages}",
            flush=True,
        )
        sections = measure(ctx, args.names)
    about["load_at_end"] = os.getloadavg()[0]
    report = {
        "machine": about,
        "quick": args.quick,
        "seconds": time.monotonic() - begun,
        "wrong": ctx.wrongs,
        "sections": plain(sections),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['seconds']:.0f} s; figures in {args.json}")
    for what in ctx.wrongs:
        print(f"WRONG: {what}")
    return 1 if ctx.wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
