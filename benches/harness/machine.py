"""The machine: what it is, and the hugepages and interfaces that are borrowed from it."""

import contextlib
import hashlib
import os
import pathlib
import subprocess

from .figures import Failure, Skip

ROOT = pathlib.Path(__file__).resolve().parents[2]
HUGEPAGES = pathlib.Path("/proc/sys/vm/nr_hugepages")
HUGEPAGES_RECORD = pathlib.Path("/run/malakocut-hugepages")


def value_of(path, key):
    """What follows `key :` in a file such as /proc/meminfo."""
    for line in pathlib.Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == key:
            return rest.strip()
    return ""


def free_huge_mib():
    return int(value_of("/proc/meminfo", "HugePages_Free") or 0) * 2


def describe(binary):
    """The machine and the program, as far as a figure depends on them."""
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
    with open(binary, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    dpdk = ""
    if have("pkg-config"):
        command = ["pkg-config", "--modversion", "libdpdk"]
        dpdk = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": value_of("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_mib": int(value_of("/proc/meminfo", "MemTotal").split()[0]) >> 10,
        "kernel": os.uname().release,
        "dpdk": dpdk,
        "hugepages_2mib": int(HUGEPAGES.read_text()) if HUGEPAGES.exists() else 0,
        "load_at_start": os.getloadavg()[0],
        "version": f"{version} (sha256 {digest})",
    }


def have(tool):
    """Whether a program can be found, also where only root looks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return any(os.access(os.path.join(folder, tool), os.X_OK) for folder in path.split(":"))


def need(*tools, packages):
    missing = [tool for tool in tools if not have(tool)]
    if missing:
        raise Skip(f"{', '.join(missing)} not installed (apt-get install {packages})")


def is_root():
    return os.geteuid() == 0


def need_root(why):
    if not is_root():
        raise Skip(f"{why} needs root")


@contextlib.contextmanager
def hugepages(pages):
    """Has at least so many 2 MiB pages reserved if that can be done, and puts back what was there."""
    script = ROOT / "scripts/setup-hugepages.sh"
    if not is_root() or not HUGEPAGES.exists() or not os.access(HUGEPAGES, os.W_OK):
        yield "not root, or the kernel does not let them be reserved: what is there is used"
        return
    before = HUGEPAGES.read_text()
    record = HUGEPAGES_RECORD.read_bytes() if HUGEPAGES_RECORD.exists() else None
    done = subprocess.run([script, "--pages", str(pages)], capture_output=True, text=True)
    ours = HUGEPAGES.read_text()
    try:
        yield (done.stdout + done.stderr).strip()
    finally:
        # Who raised the number meanwhile, or before, keeps what he has.
        if ours != before and HUGEPAGES.read_text() == ours:
            if record is None:
                subprocess.run([script, "--undo"], stdout=subprocess.DEVNULL)
            else:
                HUGEPAGES.write_text(before)
                HUGEPAGES_RECORD.write_bytes(record)


class Pair:
    """A network namespace with the veth pair `sender`-`mirror`, in which nobody else sends."""

    def __init__(self):
        self.name = f"malakocut-bench-{os.getpid()}"

    def __enter__(self):
        if subprocess.run(["ip", "netns", "add", self.name], capture_output=True).returncode:
            raise Skip("network namespaces cannot be made here")
        try:
            self.inside(
                "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                "net.ipv6.conf.default.disable_ipv6=1",
            )
            self.inside(
                "ip", "link", "add", "name", "sender", "type", "veth", "peer", "name", "mirror"
            )
            self.inside("ip", "link", "set", "sender", "up")
            self.inside("ip", "link", "set", "mirror", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # The pair goes with its namespace.
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)

    def prefix(self):
        return ["ip", "netns", "exec", self.name]

    def inside(self, *command):
        done = subprocess.run([*self.prefix(), *command], capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout + done.stderr
