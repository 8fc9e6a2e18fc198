"""The programs that are measured: started, watched and always ended."""

import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from . import machine
from .figures import Failure, Skip

Usage = collections.namedtuple("Usage", "cpu wall rss out")
"""CPU and wall seconds, peak resident bytes, and what was printed."""


def environment():
    """The environment without anything that configures the sensor."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MALAKO", "CHRONICLE_", "GOOGLE_APPLICATION"))
    }
    env["PATH"] = env.get("PATH", "") + ":/usr/sbin:/sbin"
    env["LC_ALL"] = "C"
    return env


def end(process):
    """Ends a process of ours, whatever state it is in."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            try:
                stream.close()
            except BrokenPipeError:
                pass


def run(command, timeout=180, read=None):
    """Runs a program to its end and returns its Usage.

    `read`, if given, is called with the program's output while it runs; its result is kept.
    """
    begun = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            env=environment(),
        )
        timer = threading.Timer(timeout, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            out = read(process.stdout) if read else process.stdout.read().decode("utf-8", "replace")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            timer.cancel()
            end(process)
        wall = time.monotonic() - begun
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if process.returncode:
        last = (said.strip().splitlines() or ["nothing said"])[-1]
        raise Failure(f"{os.path.basename(command[0])} ended with {process.returncode}: {last}")
    return Usage(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss << 10, out or said)


def thread_cpu(pid):
    """CPU seconds of each thread of a process, {(name, id): seconds}."""
    out = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            try:
                seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
            except OSError:
                # A kernel without it counts in ticks.
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue  # the thread has just ended
        out[name, task.name] = seconds
    return out


def cpu_of(pid, name):
    """CPU seconds of the threads with this name; None if there is none."""
    found = [s for (comm, _), s in thread_cpu(pid).items() if comm == name]
    return sum(found) if found else None


class Sensor:
    """A malakocut that runs until it is stopped."""

    def __init__(self, binary, config, args, prefix=()):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*prefix, binary, "--config", config, "--summary", "json", *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, env=environment(),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)
        self.errors.close()

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")

    def wait_for(self, thread, timeout=60):
        """Waits until this thread runs: then everything is open and receiving begins."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            if cpu_of(self.process.pid, thread) is not None:
                return
            time.sleep(0.002)
        raise Failure(f"malakocut did not start: {(self.said().strip().splitlines() or [''])[-1]}")

    def threads(self):
        return thread_cpu(self.process.pid)

    def stop(self, timeout=60):
        """Ends it as Ctrl-C does and returns its summary."""
        self.process.send_signal(signal.SIGINT)
        try:
            out, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failure("malakocut did not end") from None
        if self.process.returncode:
            raise Failure(f"malakocut ended with {self.process.returncode}: {self.said().strip()}")
        return json.loads(out)


class Testpmd:
    """DPDK's own test program, which receives and drops: what the machine can do at most."""

    COUNTER = re.compile(rb"RX-packets: (\d+)\s+RX-missed")
    MODE, LCORES = "rxonly", "0@0,1@1"

    def __init__(self, *vdevs, mbufs=16_384, mbuf_size=None, mib=512):
        machine.need("dpdk-testpmd", "stdbuf", packages="dpdk-dev coreutils")
        if os.cpu_count() < 2:
            raise Skip("dpdk-testpmd needs two cores")
        if machine.free_huge_mib() >= mib:
            memory = ["--in-memory", "--file-prefix", f"bench{os.getpid()}"]
        else:
            memory = ["--no-huge", "--no-shconf", "-m", str(mib)]
        options = [f"--forward-mode={self.MODE}", f"--total-num-mbufs={mbufs}"]
        if mbuf_size:
            options.append(f"--mbuf-size={mbuf_size}")
        self.process = subprocess.Popen(
            ["stdbuf", "-oL", "dpdk-testpmd", "--lcores", self.LCORES, *memory, "--no-pci",
             "--no-telemetry", *(f"--vdev={vdev}" for vdev in vdevs), "--", "-i", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment(), bufsize=0,
        )
        self.last = b""
        self.count = None
        self.asked = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def _read(self):
        for line in iter(self.process.stdout.readline, b""):
            self.last = line.strip() or self.last
            found = self.COUNTER.search(line)
            if found:
                with self.asked:
                    self.count = int(found[1])
                    self.asked.notify()
        with self.asked:
            self.asked.notify()

    def say(self, text):
        try:
            self.process.stdin.write(text.encode() + b"\n")
        except BrokenPipeError:
            raise Failure(f"dpdk-testpmd ended: {self.last.decode(errors='replace')}") from None

    def sample(self, timeout=60, port=0):
        """When, packets counted so far at a port, CPU seconds of the lcore that forwards."""
        with self.asked:
            self.count = None
            self.say(f"show port stats {port}")
            if not self.asked.wait_for(
                lambda: self.count is not None or not self.reader.is_alive(), timeout
            ) or self.count is None:
                raise Failure(f"dpdk-testpmd: {self.last.decode(errors='replace')}")
            threads = thread_cpu(self.process.pid).items()
            cpu = sum(s for (name, _), s in threads if name.endswith("worker-1"))
            return time.monotonic(), self.count, cpu

    def start(self):
        self.sample()  # it is ready when it answers
        self.say("start")


class Sender(Testpmd):
    """The same program as a sender: a capture over and over into the second device."""

    COUNTER = re.compile(rb"TX-packets: (\d+)\s+TX-errors")
    MODE, LCORES = "io", "0@0,1@0"

    def stop(self):
        """Ends the sending and returns how many packets were sent."""
        self.say("stop")
        before = None
        while True:
            now = self.sample(port=1)[1]
            if now == before:
                return now
            before = now
            time.sleep(0.05)


class Trim(threading.Thread):
    """Deletes all but the newest journal file, so that a fast journal does not fill its tmpfs."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.directory = pathlib.Path(directory) / "pcap"
        self.done = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()

    def run(self):
        while not self.done.wait(0.02):
            if self.directory.is_dir():
                for path in sorted(self.directory.glob("seg-*.pcap"))[:-1]:
                    path.unlink(missing_ok=True)


class Scratch:
    """A directory that is gone afterwards."""

    def __init__(self, parent):
        self.path = tempfile.mkdtemp(prefix="malakocut-bench-", dir=parent)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)
