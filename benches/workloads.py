#!/usr/bin/env python3
"""Writes the captures that the benchmarks replay. The same bytes on every machine.

  w1   1,000,000 x 64 B, 1,000 flows (half TCP, half UDP) in random order       hot table
  w2   IMIX, 7:4:1 of 64/570/1500 B: 7,000 TCP flows from SYN to FIN, half HTTP with a Host, half
       TLS with a ClientHello and its SNI, and 3,000 DNS queries with answers   realistic
  w3   1,000,000 x 64 B, 500,000 flows of two packets in random order           cold table
  w4   1,000,000 x 64 B, each the SYN of a flow of its own                      SYN flood
  w1s, w2s   the first 5,000 packets of w1 and w2
  h1k, h150k   1,000,000 x 64 B in 20 seconds, SYNs of one host to 1,000 and to 150,000 hosts, each
       met once and then in random order                                        gomon

Classic pcap with microseconds, Ethernet without checksum; IPv4, TCP and UDP checksums are valid.
Where the IP packet is shorter than 50 bytes the frame is padded to 64, so that who counts frames
and who counts IP bytes can be told apart. WN.truth.json holds what a meter must find in it.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import struct
import sys

START = 1_700_000_000  # of every capture, seconds since 1970
SLICE = 5_000  # packets of w1s and w2s
MIN_FRAME = 64
FIN, SYN, PSH, ACK = 1, 2, 8, 16
TCP, UDP = 6, 17

FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
RECORD = struct.Struct("<IIII")
# Ethernet and the first two bytes of IP, length, ident, flags to protocol, checksum, addresses and
# ports; then the rest of TCP or UDP.
TCP_FRAME = struct.Struct(">16sHH4sH12sIIHHHH")
UDP_FRAME = struct.Struct(">16sHH4sH12sHH")
CLIENT_MAC, SERVER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
SYN_OPTIONS = bytes.fromhex("020405b401010402")  # MSS 1460, SACK permitted
WINDOW = 64_240


def word_sum(data):
    """The ones' complement sum of 16-bit words, as a number modulo 65535."""
    if len(data) % 2:
        data += b"\0"
    return int.from_bytes(data, "big") % 65535


def checksum(total):
    """The Internet checksum of words that sum to `total` (not 0)."""
    return 65535 - (total % 65535 or 65535)


class Payload:
    """Bytes and their sum, which is taken once though they are sent often."""

    __slots__ = ("data", "sum")

    def __init__(self, data):
        self.data, self.sum = data, word_sum(data)


EMPTY = Payload(b"")
OPTIONS = Payload(SYN_OPTIONS)


class Direction:
    """One direction of a flow: everything in its frames that does not change from one to the next."""

    __slots__ = ("head", "middle", "ends", "ip_sum", "l4_sum")

    def __init__(self, proto, src, dst, sport, dport, to_client=False):
        macs = CLIENT_MAC + SERVER_MAC if to_client else SERVER_MAC + CLIENT_MAC
        ttl = 57 if to_client else 64
        self.head = macs + b"\x08\x00\x45\x00"
        self.middle = bytes((0x40, 0, ttl, proto))
        self.ends = struct.pack(">IIHH", src, dst, sport, dport)
        self.ip_sum = 0x4500 + 0x4000 + (ttl << 8 | proto) + src + dst
        self.l4_sum = proto + src + dst + sport + dport

    def tcp(self, ident, seq, ack, flags, payload=EMPTY, options=EMPTY):
        """A frame with this segment."""
        length = 20 + len(options.data) + len(payload.data)
        offset = (20 + len(options.data)) << 10 | flags
        ident &= 0xFFFF
        fixed = TCP_FRAME.pack(
            self.head,
            length + 20,
            ident,
            self.middle,
            checksum(self.ip_sum + length + 20 + ident),
            self.ends,
            seq,
            ack,
            offset,
            WINDOW,
            checksum(self.l4_sum + length + seq + ack + offset + WINDOW + payload.sum + options.sum),
            0,
        )
        return (fixed + options.data + payload.data).ljust(MIN_FRAME, b"\0")

    def udp(self, ident, payload):
        """A frame with this datagram."""
        length = 8 + len(payload.data)
        ident &= 0xFFFF
        fixed = UDP_FRAME.pack(
            self.head,
            length + 20,
            ident,
            self.middle,
            checksum(self.ip_sum + length + 20 + ident),
            self.ends,
            length,
            checksum(self.l4_sum + 2 * length + payload.sum) or 0xFFFF,
        )
        return (fixed + payload.data).ljust(MIN_FRAME, b"\0")


class Capture:
    """A pcap file being written, and the truth about it, taken from the bytes that are written."""

    BATCH = 32_768

    def __init__(self, path):
        self.path = path
        self.file = open(path + ".part", "wb")
        self.hash = hashlib.sha256()
        self.parts = [FILE_HEADER]
        self.packets = self.frame_bytes = self.ip_bytes = self.tcp_packets = 0
        self.keys = set()

    def add(self, time_us, frame):
        size = len(frame)
        self.parts.append(RECORD.pack(START + time_us // 1_000_000, time_us % 1_000_000, size, size))
        self.parts.append(frame)
        self.packets += 1
        self.frame_bytes += size
        self.ip_bytes += frame[16] << 8 | frame[17]
        self.tcp_packets += frame[23] == TCP
        self.keys.add(frame[23:24] + frame[26:38])
        if len(self.parts) >= self.BATCH:
            self.flush()

    def flush(self):
        data = b"".join(self.parts)
        self.hash.update(data)
        self.file.write(data)
        self.parts.clear()

    def close(self, **more):
        """Ends the file and writes its truth."""
        self.flush()
        self.file.close()
        os.replace(self.path + ".part", self.path)
        reverse = lambda k: k[:1] + k[5:9] + k[1:5] + k[11:13] + k[9:11]
        both_ways = sum(1 for key in self.keys if reverse(key) in self.keys)
        truth = {
            "packets": self.packets,
            "frame_bytes": self.frame_bytes,
            "ip_bytes": self.ip_bytes,
            "biflows": len(self.keys) - both_ways // 2,
            "uniflows": len(self.keys),
            "tcp_packets": self.tcp_packets,
            "udp_packets": self.packets - self.tcp_packets,
            **more,
            "sha256": self.hash.hexdigest(),
        }
        with open(self.path.replace(".pcap", ".truth.json"), "w") as file:
            json.dump(truth, file, indent=1)
            file.write("\n")
        return truth


def first_packets(source, path, count):
    """Copies the first packets of a capture into one of their own."""
    out = Capture(path)
    with open(source, "rb") as file:
        file.seek(len(FILE_HEADER))
        for _ in range(count):
            seconds, micros, size, _ = RECORD.unpack(file.read(RECORD.size))
            out.add((seconds - START) * 1_000_000 + micros, file.read(size))
    return out.close()


def noise(rng, length, count=251):
    """Payloads to choose from: what a meter does not look at need not differ every time."""
    return [Payload(rng.randbytes(length)) for _ in range(count)]


def small_flow(number, base):
    """Both directions of the flow with this number: even ones are TCP, odd ones UDP."""
    client, port = base + (number >> 6), 1024 + number * 40_503 % 60_000
    server = 0x0A010000 + number * 2_654_435_761 % 4096
    proto, service = (UDP, 5000 + number % 64) if number % 2 else (TCP, 443)
    return (
        Direction(proto, client, server, port, service),
        Direction(proto, server, client, service, port, to_client=True),
    )


def w1(path):
    rng = random.Random(1)
    count, flows = 1_000_000, 1_000
    segments, datagrams = noise(rng, 10), noise(rng, 22)
    directions = [small_flow(n, 0x0A020000) for n in range(flows)]
    sequence = [[1000, 500] for _ in range(flows)]
    out = Capture(path)
    for i, (flow, way) in enumerate(
        zip(rng.choices(range(flows), k=count), rng.choices((0, 1), k=count))
    ):
        direction = directions[flow][way]
        if flow % 2:
            frame = direction.udp(i, datagrams[i % 251])
        else:
            seq = sequence[flow]
            frame = direction.tcp(i, seq[way], seq[1 - way], PSH | ACK, segments[i % 251])
            seq[way] += 10
        out.add(i, frame)
    return out.close()


def w3(path):
    rng = random.Random(3)
    flows = 500_000
    segments, datagrams = noise(rng, 10), noise(rng, 22)
    order = list(range(flows))
    out = Capture(path)
    i = 0
    for way, seq, ack in ((0, 1000, 500), (1, 500, 1010)):
        rng.shuffle(order)
        for flow in order:
            direction = small_flow(flow, 0x0A400000)[way]
            if flow % 2:
                frame = direction.udp(i, datagrams[i % 251])
            else:
                frame = direction.tcp(i, seq, ack, PSH | ACK, segments[i % 251])
            out.add(i, frame)
            i += 1
    return out.close()


def w4(path):
    out = Capture(path)
    for i in range(1_000_000):
        client = 0x0B000000 + i * 2_654_435_761 % (1 << 24)  # an odd factor: no address twice
        direction = Direction(TCP, client, 0x0A000050, 1024 + i * 40_503 % 64_000, 80)
        out.add(i, direction.tcp(i, i * 2_246_822_519 % (1 << 32), 0, SYN, options=OPTIONS))
    return out.close()


def one_host(path, hosts):
    """10.0.0.5 knocks at port 23 of so many hosts from 198.18.0.0 on."""
    rng = random.Random(hosts)
    count = 1_000_000
    out = Capture(path)
    for i in range(count):
        server = 0xC6120000 + (i if i < hosts else rng.randrange(hosts))
        direction = Direction(TCP, 0x0A000005, server, 40_000, 23)
        out.add(i * 20, direction.tcp(i, i, 0, SYN, options=OPTIONS))
    return out.close(hosts=hosts)


def h1k(path):
    return one_host(path, 1_000)


def h150k(path):
    return one_host(path, 150_000)


def vector(width, data):
    """Data with its length before it."""
    return len(data).to_bytes(width, "big") + data


def extension(kind, data):
    return kind.to_bytes(2, "big") + vector(2, data)


def tls_record(kind, version, data):
    return bytes((kind, 3, version)) + vector(2, data)


def client_hello(name, rng, size):
    """A TLS record of `size` bytes with a ClientHello that asks for `name`."""
    key_share = bytes.fromhex("001d") + vector(2, rng.randbytes(32))
    extensions = b"".join(
        (
            extension(0, vector(2, b"\0" + vector(2, name.encode()))),
            extension(10, vector(2, bytes.fromhex("001d0017"))),
            extension(13, vector(2, bytes.fromhex("040308040401"))),
            extension(16, vector(2, vector(1, b"h2") + vector(1, b"http/1.1"))),
            extension(43, vector(1, bytes.fromhex("03040303"))),
            extension(51, vector(2, key_share)),
        )
    )
    ciphers = vector(2, bytes.fromhex("130113021303c02fc030"))
    fixed = b"\x03\x03" + rng.randbytes(32) + vector(1, rng.randbytes(32)) + ciphers + b"\x01\0"
    padding = size - (5 + 4 + len(fixed) + 2 + len(extensions) + 4)
    body = fixed + vector(2, extensions + extension(21, bytes(padding)))
    return tls_record(22, 1, b"\x01" + vector(3, body))


def server_hello(rng, size):
    """A ServerHello and the beginning of what follows it encrypted, `size` bytes together."""
    key_share = bytes.fromhex("001d") + vector(2, rng.randbytes(32))
    extensions = extension(43, bytes.fromhex("0304")) + extension(51, key_share)
    session = vector(1, rng.randbytes(32))
    body = b"\x03\x03" + rng.randbytes(32) + session + b"\x13\x01\0" + vector(2, extensions)
    hello = tls_record(22, 3, b"\x02" + vector(3, body))
    return hello + tls_record(23, 3, rng.randbytes(size - len(hello) - 5))


def http_request(host, size):
    head = (
        f"GET /index.html HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench/1.0\r\n"
        "Accept: */*\r\nConnection: close\r\nCookie: id="
    ).encode()
    return head + b"a" * (size - len(head) - 4) + b"\r\n\r\n"


def http_response(size):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
    return head + b"d" * (size - len(head))


def dns_messages(number, ident):
    """Query and answer for a name that occurs once."""
    labels = f"q{number:06}", "example", "com"
    name = b"".join(vector(1, label.encode()) for label in labels) + b"\0"
    question = name + struct.pack(">HH", 1, 1)
    answer = struct.pack(">HHHIH4s", 0xC00C, 1, 1, 60, 4, bytes((192, 0, 2, 1)))
    head = lambda flags, answers: struct.pack(">HHHHHH", ident, flags, 1, answers, 0, 0)
    return Payload(head(0x0100, 0) + question), Payload(head(0x8180, 1) + question + answer)


class Imix:
    """What the TCP flows of w2 share: sizes still to be dealt out, and payloads."""

    MIDDLE, LARGE, SMALL = 570 - 54, 1500 - 54, 10  # payload bytes

    def __init__(self, rng, small, middle, large):
        self.rng = rng
        sizes = [0] * small + [self.MIDDLE] * middle + [self.LARGE] * large
        rng.shuffle(sizes)
        self.sizes = iter(sizes)
        self.ident = itertools.count()
        self.clear = {n: noise(rng, n) for n in (self.SMALL, self.MIDDLE, self.LARGE)}
        self.sealed = {
            n: [Payload(tls_record(23, 3, p.data[5:])) for p in kept]
            for n, kept in self.clear.items()
        }

    def flow(self, number, client, server, packets):
        """The frames of one connection: handshake, request, answer, `packets` - 2 more, FINs.

        The caller asks for one frame when its time has come, so the sizes mix over all flows.
        """
        tls = number % 2 == 1
        port, service = 20_000 + number, 443 if tls else 80
        ways = (
            Direction(TCP, client, server, port, service),
            Direction(TCP, server, client, service, port, to_client=True),
        )
        seq = [self.rng.getrandbits(32), self.rng.getrandbits(32)]
        mask = 0xFFFFFFFF

        def send(way, flags, payload=EMPTY, options=EMPTY):
            ack = seq[1 - way] if flags & ACK else 0
            frame = ways[way].tcp(next(self.ident), seq[way], ack, flags, payload, options)
            taken = len(payload.data) + (1 if flags & (SYN | FIN) else 0)
            seq[way] = (seq[way] + taken) & mask
            return frame

        yield send(0, SYN, options=OPTIONS)
        yield send(1, SYN | ACK, options=OPTIONS)
        yield send(0, ACK)
        host = f"host{number % 997}.example.com"
        if tls:
            request = client_hello(host, self.rng, self.MIDDLE)
            response = server_hello(self.rng, self.MIDDLE)
        else:
            request, response = http_request(host, self.MIDDLE), http_response(self.MIDDLE)
        yield send(0, PSH | ACK, Payload(request))
        yield send(1, PSH | ACK, Payload(response))
        bodies = self.sealed if tls else self.clear
        acked = True  # a row of small packets is a client's ACK, ten bytes of a server, ...
        for _ in range(packets - 2):
            size = next(self.sizes)
            if size == 0 and acked:
                acked = False
                yield send(0, ACK)
                continue
            acked = True
            kept = bodies[size or self.SMALL]
            yield send(1, PSH | ACK, kept[self.rng.randrange(len(kept))])
        yield send(1, FIN | ACK)
        yield send(0, FIN | ACK)
        yield send(1, ACK)


def w2(path):
    rng = random.Random(2)
    flows, lookups, control = 7_000, 3_000, 6
    # Sizes by a heavy tail: most flows are short, few have thousands of packets.
    sizes = [min(20 + int((rng.paretovariate(1.25) - 1) * 38), 3000) for _ in range(flows)]
    total = sum(sizes) + control * flows
    large = round(total / 12)
    small = round(total * 7 / 12) - control * flows
    middle = sum(sizes) - 2 * flows - small - large
    imix = Imix(rng, small, middle, large)

    schedule = []  # time and flow in one number; later packets of a flow are later in time
    frames = []
    for number, size in enumerate(sizes):
        client = 0x0A000100 + rng.randrange(2000)
        frames.append(imix.flow(number, client, 0x5DB80000 + rng.randrange(500), size))
        time = rng.randrange(20_000_000)
        for _ in range(size + control):
            schedule.append(time << 16 | number)
            time += int(rng.expovariate(1 / 3000)) + 1
    for number in range(lookups):
        client, port = 0x0A000100 + rng.randrange(2000), 40_000 + number
        query, answer = dns_messages(number, rng.getrandbits(16))
        frames.append(
            iter(
                (
                    Direction(UDP, client, 0x08080808, port, 53).udp(number, query),
                    Direction(UDP, 0x08080808, client, 53, port, True).udp(number, answer),
                )
            )
        )
        time = rng.randrange(20_000_000)
        schedule += (time << 16 | flows + number, time + 20_000 << 16 | flows + number)
    schedule.sort()

    out = Capture(path)
    for entry in schedule:
        out.add(entry >> 16, next(frames[entry & 0xFFFF]))
    return out.close(
        dns_queries=lookups,
        tls_flows=flows // 2,
        http_flows=flows - flows // 2,
        frames_of_64_570_1500=[small + control * flows, middle + 2 * flows, large],
        largest_flow=max(sizes) + control,
    )


WORKLOADS = {"w1": w1, "w2": w2, "w3": w3, "w4": w4, "h1k": h1k, "h150k": h150k}
SLICES = {"w1": "w1s", "w2": "w2s"}


def script_hash():
    with open(__file__, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def complete(stamp):
    """The workloads that this very script has finished before."""
    try:
        with open(stamp) as file:
            state = json.load(file)
    except (OSError, ValueError):
        return []
    return state.get("complete", []) if state.get("script") == script_hash() else []


def files_of(directory, name):
    """The files that a workload consists of."""
    names = [name] + ([SLICES[name]] if name in SLICES else [])
    return [os.path.join(directory, n + end) for n in names for end in (".pcap", ".truth.json")]


def generate(directory, names, say=print):
    """Makes what is missing of the named workloads."""
    os.makedirs(directory, exist_ok=True)
    stamp = os.path.join(directory, "workloads.stamp")
    done = [n for n in complete(stamp) if all(map(os.path.exists, files_of(directory, n)))]
    for name in names:
        if name in done:
            continue
        path = os.path.join(directory, name + ".pcap")
        truth = WORKLOADS[name](path)
        if name in SLICES:
            first_packets(path, os.path.join(directory, SLICES[name] + ".pcap"), SLICE)
        say(f"{path}: {truth['packets']} packets, {truth['biflows']} flows")
        done.append(name)
        with open(stamp + ".part", "w") as file:
            json.dump({"script": script_hash(), "complete": done}, file)
        os.replace(stamp + ".part", stamp)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", metavar="OUTDIR")
    parser.add_argument("names", metavar="WORKLOAD", nargs="*", help="of w1 w2 w3 w4 h1k h150k (default: all)")
    args = parser.parse_args()
    unknown = set(args.names) - set(WORKLOADS)
    if unknown:
        parser.error(f"there is no workload {', '.join(sorted(unknown))}")
    generate(args.directory, args.names or list(WORKLOADS))


if __name__ == "__main__":
    sys.exit(main())
