#!/usr/bin/env python3
"""The appliance as a whole: the package in a Debian guest, with a card that DPDK takes over.

usage: run.py BIN_DIR    (QEMU="command ..." names another qemu; VM_KEEP=1 keeps the disk)

Installs the package, binds the card, starts the service by systemd, sends a capture into the card from
outside, asks for flows and packets, reloads, stops, pulls the plug while packets come, boots again,
stops an lcore, and takes everything away. Skipped, with a message, where qemu or mmdebstrap is missing.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guest import Failed, Guest, frames_of, image

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CARD = "0000:00:05.0"
RATE = 2000
SCANNER = "--ip 192.168.1.41"

CONFIG = """\
interface = "{card}"
lcores = "0@0,1@0"
pcap_filter = ""
exporter = ["file"]
flow_log = "/var/log/malakocut/flows.json"
eve_log = "/var/log/malakocut/eve.json"
sensor = "guest"
idle = "interrupt"
"""


def said(text):
    print(text, flush=True)


def check(what, holds, shown=""):
    """One thing that has to be so."""
    if not holds:
        raise Failed(f"not so: {what}\n{shown}")
    said(f"ok   {what}")


def health(guest):
    """Packets seen by the running sensor."""
    status, text = guest.run("cat /var/lib/malakocut/health.json")
    return json.loads(text)["packets"] if status == 0 and text else -1


def wait_for_packets(guest, wanted):
    deadline = time.monotonic() + 300
    while (seen := health(guest)) != wanted:
        if time.monotonic() > deadline:
            raise Failed(f"{seen} packets were seen, not {wanted}\n" + guest.run("journalctl -u malakocut -n 30")[1])
        time.sleep(0.5)


def count(guest, terms):
    """Packets that the journal has of these terms."""
    return number(guest.ok(f"malakocut-cli extract {terms} --count"))


def number(text):
    """The first word, if it is one; else -1."""
    words = text.split()
    return int(words[0]) if words and words[0].isdigit() else -1


def expected_of(programs, capture, work):
    """Packets of the host by the same programs here, from the file instead of the wire."""
    data = str(work / "expected")
    subprocess.run(
        [f"{programs}/malakocut", "--read", capture, "--journal", "on", "--pcap-filter", "",
         "--min-free", "0", "--data-dir", data, "--config", os.devnull],
        check=True, stdout=subprocess.DEVNULL,
    )
    extract = [f"{programs}/malakocut-cli", "extract", *SCANNER.split(), "--count", "--data-dir", data,
               "--config", os.devnull]
    return number(subprocess.check_output(extract, text=True))


def install(guest):
    guest.ok("mkdir -p /job && tar -xf /dev/nvme0n2 -C /job")
    said(guest.ok("dpkg -i /job/malakocut.deb 2>&1 | tail -1", 300))
    check("the units are in order", guest.ok("systemd-analyze verify --man=no malakocut.service malakocut-setup.service") == "")
    score = guest.ok("systemd-analyze security --no-pager malakocut.service | tail -1")
    check(f"the service is hardened: {score.strip()}", "OK" in score, score)
    check("it waits to be configured", guest.run("systemctl is-enabled malakocut")[1].strip() == "disabled")


def cards(guest):
    said(guest.ok("malakocut-cli nic list"))
    listed = [json.loads(line) for line in guest.ok("malakocut-cli nic list --json").splitlines()]
    by = {card["card"]: card for card in listed}
    mirror = by[CARD]
    check("the mirror's card can be bound", (mirror["pmd"], mirror["state"]) == ("net_e1000_em", "bindable"), mirror)
    manage = next(c for c in listed if any(i["mac"].endswith(":01") for i in c["interfaces"]))
    name = manage["interfaces"][0]["name"]
    status, text = guest.run(f"malakocut-cli nic bind {name}")
    check("the card of the default route is refused", status == 2 and "default route" in text, text)
    spare = next(c for c in listed if any(i["mac"].endswith(":03") for i in c["interfaces"]))
    name = spare["interfaces"][0]["name"]
    guest.ok(f"malakocut-cli nic bind {name}")
    check("another is bound by its name", guest.run(f"ip link show {name}")[0] != 0)
    guest.ok(f"malakocut-cli nic unbind {name}")
    guest.until(f"ip link show {name}", lambda text: "52:54:00:00:00:03" in text)
    check("and given back under the same name", True)
    said(guest.ok(f"malakocut-cli nic bind {CARD}").strip())


def start(guest):
    guest.ok(f"cat > /etc/malakocut/malakocut.toml <<'E'\n{CONFIG.format(card=CARD)}E")
    check("the configuration is checked", "good" in guest.ok("malakocut --check-config"))
    status, text = guest.run("systemctl enable --now malakocut 2>&1")
    check("the service starts", status == 0, text + guest.run("journalctl -o cat -u malakocut | tail -30")[1])
    log = guest.until("journalctl -o cat -u malakocut", lambda text: "receive queue" in text)
    for line in log.splitlines():
        if "port " in line or "capabilities" in line or "interface " in line:
            said("     " + line)
    check("DPDK's own driver reads the card", "driver net_e1000_em" in log, log)
    check("on hugepages", "ordinary pages" not in log, log)
    check("capabilities are given up", "capabilities given up" in log, log)
    threads = guest.ok(
        "for t in /proc/$(systemctl show -P MainPID malakocut)/task/*; do "
        "echo $(cat $t/comm) $(grep CapEff $t/status); done"
    )
    lines = [line.split() for line in threads.splitlines()]
    held = [words[0] for words in lines if len(words) == 3 and int(words[2], 16) != 0]
    ours = [name for name in held if name.startswith(("lcore", "journal", "control", "export", "tokio"))]
    check(f"no thread that touches packets has any (still: {', '.join(held)})", not ours, threads)


def capture(guest, frames, truth, expected):
    guest.send(frames, RATE)
    wait_for_packets(guest, len(frames))
    check(f"{len(frames)} frames were sent and seen", True)
    # The journal follows the wire by about a second.
    guest.until(f"malakocut-cli extract {SCANNER} --count", lambda text: number(text) == expected)
    shown = guest.ok(f"malakocut-cli extract {SCANNER} -w /tmp/x.pcap && tcpdump -nr /tmp/x.pcap 2>/dev/null | wc -l")
    check(f"{expected} packets of one host are extracted, and tcpdump reads them", number(shown) == expected, shown)
    said("     " + guest.run("malakocut-cli doctor")[1].strip().replace("\n", "\n     "))
    found = {json.loads(line)["name"] for line in guest.run("malakocut-cli doctor --json")[1].splitlines()}
    check("the doctor sees that nobody sets the clock", "clock_unsynchronised" in found, found)
    check("and no fault in card and memory", not found & {"hugepages", "driver", "iommu", "link_down", "drops"}, found)
    guest.ok("systemctl reload malakocut")
    guest.until("journalctl -o cat -u malakocut", lambda text: "reloaded" in text)
    check("it reloads", guest.ok("systemctl is-active malakocut").strip() == "active")
    begun = time.monotonic()
    guest.ok("systemctl stop malakocut")
    took = time.monotonic() - begun
    check(f"SIGTERM: it ended in {took:.1f} s", took < 5)
    lines = guest.ok("cat /var/log/malakocut/flows.json").splitlines()
    packets = sum(json.loads(line)["packets"] for line in lines)
    check(f"{len(lines)} events hold all {packets} packets of flows", packets == truth["ip_packets"], truth["ip_packets"])
    check("EVE has flows too", '"event_type":"flow"' in guest.ok("head -c 200000 /var/log/malakocut/eve.json"))
    guest.ok("malakocut-cli journal verify")
    check("the journal is whole", True)


def power_cut(guest, frames):
    guest.ok("systemctl start malakocut")
    guest.send(frames, RATE)
    wait_for_packets(guest, len(frames))
    # All of these are safe once the watermark has followed.
    time.sleep(5)
    safe = count(guest, SCANNER)
    guest.send(frames[:4000], RATE)
    guest.cut_power()
    said(f"ok   the power was cut while packets came; {safe} of its packets were safe")
    return safe


def after(guest, frames, safe):
    guest.until("systemctl is-active malakocut", lambda text: text.strip() == "active")
    log = guest.ok("journalctl -b -o cat -u malakocut -u malakocut-setup")
    check("after the boot it runs by itself, on the card bound again", "driver net_e1000_em" in log, log)
    for line in log.splitlines():
        if "repair" in line or "segment" in line:
            said("     " + line)
    guest.until("malakocut-cli journal verify && echo whole", lambda text: "whole" in text)
    found = count(guest, SCANNER)
    check(f"nothing that was safe is lost: {found} of {safe} and what came behind", found >= safe)
    guest.send(frames, RATE)
    wait_for_packets(guest, len(frames))
    check("and it goes on capturing", True)


def stuck_lcore(guest):
    guest.ok(
        "pid=$(systemctl show -P MainPID malakocut); "
        "for t in /proc/$pid/task/*; do [ $(cat $t/comm) = lcore-1 ] && tid=${t##*/}; done; "
        # PTRACE_SEIZE and PTRACE_INTERRUPT: one thread stops, the others go on. Its end is waited for
        # (__WALL), or the process could not be reaped.
        "setsid perl -e 'my $t = $ARGV[0] + 0; syscall(101, 0x4206, $t, 0, 0) == 0 or die; "
        "syscall(101, 0x4207, $t, 0, 0) == 0 or die; 1 while waitpid(-1, 0x40000000) > 0' $tid >/dev/null 2>&1 </dev/null &"
    )
    guest.until("systemctl show -P NRestarts malakocut", lambda text: text.strip() not in ("", "0"), 90)
    log = guest.ok("journalctl -b -o cat -u malakocut")
    check("a stuck lcore is said", "lcore 1 has made no progress" in log, log)
    check("and the watchdog restarts the service", "Watchdog timeout" in log, log[-3000:])
    guest.until("systemctl is-active malakocut", lambda text: text.strip() == "active")


def undo(guest):
    guest.ok("dpkg -r malakocut 2>&1", 120)
    driver = guest.run(f"readlink /sys/bus/pci/devices/{CARD}/driver")[1]
    check("the card is given back", "vfio" not in driver, driver)
    check("hugepages are given back", guest.ok("cat /proc/sys/vm/nr_hugepages").strip() == "0")
    check("programs and units are gone", guest.run("ls /usr/bin/malakocut* /usr/lib/systemd/system/malakocut*")[0] != 0)
    check("configuration and data are kept", guest.run("ls /etc/malakocut/malakocut.toml /var/lib/malakocut/pcap")[0] == 0)
    guest.ok("dpkg -P malakocut 2>&1")
    check("a purge takes the configuration", guest.run("ls /etc/malakocut/malakocut.toml")[0] != 0)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    qemu = shlex.split(os.environ.get("QEMU", "qemu-system-x86_64"))
    for tool in (qemu[0], "mmdebstrap", "mke2fs", "dpkg-deb"):
        if shutil.which(tool) is None:
            said(f"skipped: {tool} is not installed")
            return
    cache = PROJECT / "target" / "vm"
    cache.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
    guest = None
    # However we are ended, the guest ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        deb = subprocess.check_output(
            [PROJECT / "scripts/package-deb.sh", sys.argv[1], work, "none"], text=True
        ).strip()
        base, kernel = image(cache, deb)
        disk = work / "root.img"
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", base, disk], check=True)
        job = work / "job.tar"
        shutil.move(deb, work / "malakocut.deb")
        subprocess.run(["tar", "-cf", job, "-C", work, "malakocut.deb"], check=True)
        home = PROJECT / "tests/captures/home.pcap.gz"
        truth = json.loads(home.with_name("home.truth.json").read_text())
        frames = frames_of(home)
        guest = Guest(qemu, work, disk, kernel, job)
        said(f"     booted after {time.monotonic() - begun:.0f} s")
        install(guest)
        cards(guest)
        start(guest)
        capture(guest, frames, truth, expected_of(sys.argv[1], home, work))
        safe = power_cut(guest, frames)
        guest = Guest(qemu, work, disk, kernel, job)
        after(guest, frames, safe)
        stuck_lcore(guest)
        undo(guest)
        guest.ok("sync")
        said(f"the appliance works; {time.monotonic() - begun:.0f} s")
    except Failed as failure:
        said(f"FAIL {failure}")
        sys.exit(1)
    finally:
        if guest is not None:
            guest.close()
        if not os.environ.get("VM_KEEP"):
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
