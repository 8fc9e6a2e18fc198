"""Receiving as fast as one worker lcore can, against DPDK's own receive-and-drop."""

import os
import shutil
import time

from . import machine
from .figures import Failure, Skip, pick, rounds, table
from .programs import Scratch, Sensor, Testpmd, Trim, cpu_of

SLICES, WHOLE = ("w1s", "w2s"), ("w3", "w4")
MBUFS = 1_100_000  # as many as the largest whole file has packets, and some to receive with
WHOLE_MIB = 2_560  # hugepages that the sensor's buffers for such a file take
SHM = "/dev/shm"


def source(path):
    return f"net_pcap0,rx_pcap={path},infinite_rx=1"


def malakocut(ctx, path, seconds, journal=None, names=True):
    """One run; `journal` is a directory to journal to, on an lcore of its own; without `names` no
    payload is read."""
    args = ["--vdev", source(path)]
    if not names:
        args += ["--inspect-packets", "0"]
    if journal:
        args += ["--lcores", "0@0,1@1", "--journal", "on", "--data-dir", journal]
        args += ["--rotate-size", "64MB", "--pcap-filter", ""]
    else:
        args += ["--lcores", "1@1", "--journal", "off"]
    with Sensor(ctx.binary, ctx.config, args) as sensor:
        sensor.wait_for("lcore-1")
        begun = time.monotonic()
        time.sleep(seconds)
        cpu = cpu_of(sensor.process.pid, "lcore-1")
        share = cpu / (time.monotonic() - begun)
        summary = sensor.stop()
        ordinary = "ordinary pages" in sensor.said()
    rate, packets = summary["packets_per_second"], summary["packets"]
    accounted = summary["decoded"] + sum(summary["not_ip"].values())
    accounted += sum(summary["malformed"].values()) + summary["drops"].get("worker_ring_full", 0)
    kept = summary["journal"]
    lost = sum(n for name, n in summary["drops"].items() if name.startswith("journal_"))
    return {
        "rate": rate,
        "cpu_rate": rate / share,
        "ordinary_pages": ordinary,
        "unaccounted": packets - accounted,
        "journaled": kept.get("packets", 0) / summary["seconds"],
        "journal_bytes": kept.get("bytes", 0) / summary["seconds"],
        "journal_lost": lost / packets if packets else 0.0,
        "journal_unaccounted": summary["decoded"] - kept.get("packets", 0) - lost if journal else 0,
    }


def malakocut_journaling(ctx, path, seconds):
    """The same with the journal on, to memory."""
    if not os.path.isdir(SHM) or shutil.disk_usage(SHM).free < 1 << 30:
        raise Skip(f"the journal wants 1 GiB free on {SHM}")
    with Scratch(SHM) as directory, Trim(directory):
        return malakocut(ctx, path, seconds, journal=directory)


def testpmd(path, seconds, whole):
    """One run of the limit."""
    sizes = {"mbufs": MBUFS, "mbuf_size": 256, "mib": 768} if whole else {}
    with Testpmd(source(path), **sizes) as limit:
        limit.start()
        time.sleep(0.3)
        at, packets, cpu = limit.sample()
        time.sleep(seconds)
        at2, packets2, cpu2 = limit.sample()
    if packets2 == packets:
        raise Failure("dpdk-testpmd received nothing")
    received = packets2 - packets
    return {"rate": received / (at2 - at), "cpu_rate": received / (cpu2 - cpu)}


def section(ctx):
    if os.cpu_count() < 2:
        raise Skip("a worker wants a core of its own: two cores are needed")
    machine.need_root("DPDK with its memory locked")
    seconds = 1.2 if ctx.quick else 3.0
    count = 2 if ctx.quick else 5
    out, plain_rows, journal_rows, unread_rows, notes = {}, [], [], [], set()
    for name in SLICES + WHOLE:
        path, whole = ctx.capture(name), name in WHOLE
        if whole and machine.free_huge_mib() < WHOLE_MIB:
            out[name] = f"skipped: needs {WHOLE_MIB} MiB of free hugepages"
            notes.add(f"{name}: {out[name]}, there are {machine.free_huge_mib()}")
            continue
        jobs = {
            "malakocut": lambda: malakocut(ctx, path, seconds),
            "unread": lambda: malakocut(ctx, path, seconds, names=False),
            "journal": lambda: malakocut_journaling(ctx, path, seconds),
            "testpmd": lambda: testpmd(path, seconds, whole),
        }
        results = rounds(count, jobs)
        limit = results["testpmd"]
        figures = out[name] = {}
        if isinstance(limit, Exception):
            notes.add(f"testpmd on {name} {ctx.word(limit)}")
            limit = None
        else:
            figures["testpmd"] = pick(limit, "rate", "packets/s")
            figures["testpmd_cpu"] = pick(limit, "cpu_rate", "packets/CPU-s")
        kinds = (("malakocut", plain_rows), ("unread", unread_rows), ("journal", journal_rows))
        for job, rows in kinds:
            runs = results[job]
            if isinstance(runs, Exception):
                notes.add(f"{job} on {name} {ctx.word(runs)}")
                figures[job] = ctx.word(runs)
                continue
            rate = pick(runs, "rate", "packets/s")
            cpu = pick(runs, "cpu_rate", "packets/CPU-s")
            if job == "journal" and "malakocut_cpu" in figures:
                rate.against(figures["malakocut"], "malakocut without journal")
                cpu.against(figures["malakocut_cpu"], "malakocut without journal")
            elif job == "unread" and "malakocut_cpu" in figures:
                rate.against(figures["malakocut"], "malakocut with names")
                cpu.against(figures["malakocut_cpu"], "malakocut with names")
            elif limit:
                rate.against(figures["testpmd"], "testpmd")
                cpu.against(figures["testpmd_cpu"], "testpmd")
            figures[job], figures[job + "_cpu"] = rate, cpu
            row = [name, rate.text(1e6), cpu.text(1e6)]
            if job == "journal":
                for key, unit in (
                    ("journaled", "packets/s"), ("journal_bytes", "bytes/s"), ("journal_lost", "share")
                ):
                    figures[key] = pick(runs, key, unit)
                row += [
                    figures["journaled"].text(1e6),
                    figures["journal_bytes"].text(1e9, 2),
                    figures["journal_lost"].text(0.01),
                ]
            elif job == "unread":
                pass
            elif limit:
                row += [figures["testpmd"].text(1e6), figures["testpmd_cpu"].text(1e6)]
            else:
                row += ["-", "-"]
            row.append(cpu.ratio.text(1, 2) if cpu.ratio else "-")
            rows.append(row)
            if any(run["ordinary_pages"] for run in runs):
                notes.add(f"{name}: not enough hugepages were free, so malakocut ran on ordinary pages")
            for key in ("unaccounted", "journal_unaccounted"):
                if any(run[key] for run in runs):
                    ctx.wrong(f"rx {name}: {key} packets {[run[key] for run in runs]}")
    table(
        f"rx: one worker, net_pcap infinite_rx, no journal (Mpps; median [min..max] of {count})",
        ["", "malakocut", "per CPU-s", "testpmd", "per CPU-s", "ratio per CPU-s"],
        plain_rows,
        ["testpmd receives and drops: the limit of the machine and of DPDK's pcap driver"],
    )
    table(
        "rx: the same without reading payloads (--inspect-packets 0)",
        ["", "worker Mpps", "per CPU-s", "of it with names, per CPU-s"],
        unread_rows,
    )
    table(
        f"rx: the same with the journal on {SHM}, on an lcore of its own",
        ["", "worker Mpps", "per CPU-s", "journaled Mpps", "GB/s", "not journaled %",
         "of it without journal, per CPU-s"],
        journal_rows,
        sorted(notes),
    )
    return out
