"""A Debian guest under qemu: its image, its start and end, a shell in it, and frames into its card."""

import base64
import gzip
import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

# The guest's own; what the package needs comes on top.
BASE = (
    "systemd-sysv udev kmod iproute2 pciutils procps tcpdump systemd-timesyncd linux-image-cloud-amd64"
).split()

AGENT = """\
#!/bin/bash
# Runs what comes in base64, a line a command; answers with its status and output.
stty raw -echo
echo READY
while read -r line; do
    output=$(base64 -d <<<"$line" | bash 2>&1)
    printf '@%s %s\\n' "$?" "$(printf %s "$output" | base64 -w0)"
done
"""

UNIT = """\
[Unit]
Description=Shell for the test
After=basic.target systemd-udevd.service
[Service]
ExecStart=/bin/bash /usr/local/lib/agent
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/ttyS1
[Install]
WantedBy=multi-user.target
"""


class Failed(Exception):
    """The guest, or what runs in it, did not do as it should."""


def packages_of(deb):
    """The names of the packages that a package depends on, the first of alternatives."""
    text = subprocess.check_output(["dpkg-deb", "-f", deb, "Depends"], text=True)
    return sorted({re.split(r"[ (|:]", part.strip())[0] for part in text.split(",")})


def image(directory, deb):
    """The disk image with everything but the package itself; made once for a list of packages."""
    packages = sorted(set(BASE) | set(packages_of(deb)))
    key = hashlib.sha256("\n".join([*packages, AGENT, UNIT]).encode()).hexdigest()[:16]
    disk, kernel = directory / f"root-{key}.img", directory / f"vmlinuz-{key}"
    if disk.exists() and kernel.exists():
        return disk, kernel
    root = directory / f"root-{key}"
    shutil.rmtree(root, ignore_errors=True)
    mode = "root" if os.geteuid() == 0 else "unshare"
    print(f"making the guest's image ({len(packages)} packages; minutes)", flush=True)
    subprocess.run(
        ["mmdebstrap", f"--mode={mode}", "--variant=minbase", "--format=directory", "--quiet",
         "--include=" + ",".join(packages), "bookworm", str(root)],
        check=True,
    )
    (root / "usr/local/lib/agent").write_text(AGENT)
    (root / "etc/systemd/system/agent.service").write_text(UNIT)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "agent.service").symlink_to("/etc/systemd/system/agent.service")
    (root / "etc/fstab").write_text("/dev/nvme0n1 / ext4 defaults 0 1\n")
    (root / "etc/hostname").write_text("guest\n")
    # The management card has an address and the default route.
    network = root / "etc/systemd/network/10-manage.network"
    network.write_text(
        "[Match]\nMACAddress=52:54:00:00:00:01\n"
        "[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n"
    )
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    shutil.copy(next(root.glob("boot/vmlinuz-*")), kernel)
    partial = disk.with_suffix(".new")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(partial), "3G"], check=True)
    partial.rename(disk)
    shutil.rmtree(root)
    return disk, kernel


def accelerator():
    """Software emulation, which works everywhere, or what VM_ACCEL says (kvm)."""
    accel = os.environ.get("VM_ACCEL", "tcg")
    # The emulated IOMMU wants the interrupts of the emulated chipset.
    machine = "q35,kernel-irqchip=split" if accel == "kvm" else "q35"
    return ["-accel", accel, "-cpu", "max", "-M", machine]


class Guest:
    """A running guest. Its disk is written to, and outlives it."""

    def __init__(self, qemu, directory, disk, kernel, job):
        self.directory = directory
        for name in ("net.sock", "shell.sock"):
            (directory / name).unlink(missing_ok=True)
        self.net = self.shell = None
        command = [
            *qemu, *accelerator(), "-m", "1024", "-smp", "1", "-device", "intel-iommu,aw-bits=48",
            "-display", "none", "-nodefaults", "-no-reboot",
            "-kernel", str(kernel), "-append",
            "root=/dev/nvme0n1 rw console=ttyS0 intel_iommu=on iommu=pt net.ifnames=1 quiet "
            # A host that is busy elsewhere does not fail the timer test.
            "no_timer_check panic=-1 systemd.mask=serial-getty@ttyS0.service "
            "systemd.default_timeout_start_sec=600",
            "-drive", f"file={disk},if=none,id=root,format=raw,cache=writeback",
            # One controller, so that nothing depends on which is found first.
            "-device", "nvme,serial=disk,id=disk", "-device", "nvme-ns,drive=root,bus=disk,nsid=1",
            "-drive", f"file={job},if=none,id=job,format=raw,readonly=on",
            "-device", "nvme-ns,drive=job,bus=disk,nsid=2",
            "-netdev", "user,id=manage,restrict=on",
            "-device", "virtio-net-pci,netdev=manage,mac=52:54:00:00:00:01,addr=0x4",
            "-netdev", f"stream,id=mirror,server=on,addr.type=unix,addr.path={directory}/net.sock",
            "-device", "e1000e,netdev=mirror,mac=52:54:00:00:00:02,addr=0x5",
            "-netdev", "user,id=spare,restrict=on",
            "-device", "virtio-net-pci,netdev=spare,mac=52:54:00:00:00:03,"
                       "disable-legacy=on,iommu_platform=on,addr=0x6",
            "-serial", f"file:{directory}/console.log",
            "-serial", f"unix:{directory}/shell.sock,server=on,wait=off",
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=open(directory / "qemu.log", "a")
        )
        self.read = b""
        try:
            self.shell = self._connect("shell.sock")
            self.net = self._connect("net.sock")
            self._line(b"READY", 900)
        except BaseException:
            self.close()
            raise

    def _connect(self, name):
        deadline = time.monotonic() + 30
        while True:
            try:
                end = socket.socket(socket.AF_UNIX)
                end.connect(str(self.directory / name))
                return end
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise Failed((self.directory / "qemu.log").read_text()[-2000:]) from None
                time.sleep(0.1)

    def _line(self, prefix, seconds):
        """The next line of the shell that begins so."""
        deadline = time.monotonic() + seconds
        while True:
            line, end, rest = self.read.partition(b"\n")
            if end:
                self.read = rest
                line = line.strip(b"\r\n\0")
                if line.startswith(prefix):
                    return line
                continue
            console = (self.directory / "console.log").read_text(errors="replace")[-2000:]
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed(f"no answer in {seconds} s\n{console}")
            self.shell.settimeout(left)
            try:
                more = self.shell.recv(1 << 16)
            except TimeoutError:
                continue
            if not more:
                raise Failed(f"the guest is gone\n{console}")
            self.read += more

    def run(self, command, seconds=180):
        """Runs a command in the guest; its status and output."""
        self.shell.settimeout(seconds)
        self.shell.sendall(base64.b64encode(command.encode()) + b"\n")
        status, _, output = self._line(b"@", seconds).partition(b" ")
        return int(status[1:]), base64.b64decode(output).decode(errors="replace")

    def ok(self, command, seconds=180):
        """Runs a command that has to go well; its output."""
        status, output = self.run(command, seconds)
        if status != 0:
            raise Failed(f"{command}: status {status}\n{output}")
        return output

    def until(self, command, holds, seconds=120):
        """Runs a command again and again until its output is right."""
        deadline = time.monotonic() + seconds
        while True:
            output = self.run(command)[1]
            if holds(output):
                return output
            if time.monotonic() > deadline:
                raise Failed(f"{command}: after {seconds} s still\n{output}")
            time.sleep(0.5)

    def send(self, frames, rate):
        """Sends frames into the mirror's card, so many a second."""
        begun = time.monotonic()
        for number, frame in enumerate(frames):
            self.net.sendall(struct.pack(">I", len(frame)) + frame)
            ahead = number / rate - (time.monotonic() - begun)
            if ahead > 0.01:
                time.sleep(ahead)

    def cut_power(self):
        """What pulling the plug does: nothing is told, nothing is written any more."""
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def frames_of(capture):
    """The frames of a gzipped pcap file."""
    data = gzip.open(capture).read()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at, out = 24, []
    while at + 16 <= len(data):
        length = struct.unpack_from(order + "I", data, at + 8)[0]
        out.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return out
