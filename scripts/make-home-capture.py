#!/usr/bin/env python3
"""Writes a capture of five minutes of a home network, and beside it what the capture holds.

The frames are those of a mirror port on the home's switch: each is seen once, on the inside of
the router's address translation. Addresses, names and MACs are those set aside for documentation
(RFC 5737, 3849, 2606, 7042). Payload that would be encrypted is one block repeated, so that the
file stays small.

The capture is the same on each run; the compressed file as well, as long as zlib is the same.

    make-home-capture.py [home.pcap.gz]
"""

import gzip
import ipaddress
import json
import random
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

US = 1_000
MS = 1_000_000
SEC = 1_000_000_000
# 2025-11-15 18:30:00 UTC, ns.
START = 1_763_231_400 * SEC
# Seconds between 1900, where NTP counts from, and 1970.
NTP_EPOCH = 2_208_988_800

ICMP, IGMP, TCP, UDP, ICMPV6 = 1, 2, 6, 17, 58
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
CLIENT, SERVER = 0, 1
HOME_VLAN_IOT = 20
BEACON_DST = "203.0.113.66"
SCANNER = "192.168.1.41"
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"


def seconds(value):
    """A time in seconds, as whole nanoseconds."""
    return round(value * SEC)


def random_for(name):
    """A generator for one part alone, so that a change in one leaves the others as they are."""
    return random.Random("home capture: " + name)


# Bytes that look encrypted.
BLOCK = random_for("block").randbytes(1024)


def noise(length):
    """Bytes of high entropy that compress well, since they repeat."""
    return (BLOCK * (length // len(BLOCK) + 1))[:length]


def mac_bytes(mac):
    """The six bytes of a MAC."""
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(address):
    """The bytes of an IPv4 or IPv6 address."""
    return ipaddress.ip_address(address).packed


# ---- Hosts ------------------------------------------------------------------------------------


@dataclass
class Host:
    """A device at home, or a server behind the router."""

    name: str
    v4: str
    mac: str
    v6: str = ""
    ttl: int = 64
    # From a frame at the mirror to the host's reaction at the mirror, ns.
    delay: int = 400 * US
    vlan: int | None = None
    # TCP options: Windows sends no timestamps.
    timestamps: bool = True
    window_scale: int = 7
    window: int = 1024
    rng: random.Random = field(init=False)
    last_port: int = field(init=False)
    clock: int = field(init=False)

    def __post_init__(self):
        self.rng = random_for("host " + self.name)
        self.last_port = self.rng.randrange(36000, 46000)
        self.clock = self.rng.getrandbits(31)

    def port(self):
        """A local port that was not used before."""
        self.last_port += self.rng.randrange(1, 40)
        return self.last_port

    def ident(self):
        """An IPv4 identification."""
        return self.rng.getrandbits(16)

    def link_local(self):
        """The IPv6 link-local address of the MAC."""
        return eui64("fe80::", self.mac)

    def address(self, v6):
        """The address of a family."""
        return self.v6 if v6 else self.v4


def doc_mac(last):
    """A MAC from the range for documentation."""
    return f"00:00:5e:00:53:{last:02x}"


def eui64(prefix, mac):
    """An address of a /64 and a MAC, RFC 4291 appendix A."""
    m = mac_bytes(mac)
    low = bytes([m[0] ^ 2]) + m[1:3] + b"\xff\xfe" + m[3:]
    return str(ipaddress.IPv6Address(ipaddress.IPv6Address(prefix).packed[:8] + low))


def at_home(name, last_mac, v4, **more):
    """A device of the home, with an address of the home's IPv6 prefix."""
    mac = doc_mac(last_mac)
    return Host(name, v4, mac, eui64("2001:db8:1::", mac), **more)


ROUTER = at_home("router", 0x01, "192.168.1.1", delay=300 * US)
NAS = at_home("nas", 0x10, "192.168.1.10", delay=180 * US)
PRINTER = at_home("printer", 0x15, "192.168.1.15", delay=900 * US)
LAPTOP = at_home(
    "laptop", 0x20, "192.168.1.20", ttl=128, delay=1600 * US, timestamps=False, window_scale=8
)
PHONE = at_home("phone", 0x23, "192.168.1.23", delay=2800 * US)
TV = at_home("tv", 0x30, "192.168.1.30", delay=450 * US, window=2048)
CONSOLE = at_home("console", 0x31, "192.168.1.31", delay=350 * US)
CAMERA = at_home("camera", 0x41, SCANNER, delay=1200 * US, window=502)
THERMOSTAT = at_home("thermostat", 0x42, "192.168.1.42", delay=4200 * US, window=229)
# The devices network: the router and a smart plug, on tagged frames.
IOT_ROUTER = Host("iot router", "192.168.20.1", ROUTER.mac, delay=300 * US, vlan=HOME_VLAN_IOT)
PLUG = Host(
    "plug", "192.168.20.50", doc_mac(0x50), delay=3500 * US, vlan=HOME_VLAN_IOT, window=229
)
SWITCH_MAC = doc_mac(0xF0)


def server(name, v4, far, ttl, v6=""):
    """A server on the Internet: its frames come from the router. `far` is in ms."""
    return Host(name, v4, ROUTER.mac, v6, ttl=ttl, delay=round(far * MS))


WWW = server("www", "192.0.2.10", 14, 55)
STATIC = server("static", "192.0.2.20", 9, 57)
MAIL = server("mail", "198.51.100.25", 22, 51)
NEWS = server("news", "198.51.100.30", 31, 48, "2001:db8:53:1::443")
API = server("api", "203.0.113.21", 17, 53)
PHOTOS = server("photos", "203.0.113.40", 26, 50)
MEDIA = server("media", "198.51.100.44", 12, 56)
VIDEO = server("video", "192.0.2.140", 11, 58)
GAME = server("game", "192.0.2.150", 19, 54)
CLOUD = server("cloud", "198.51.100.77", 38, 47)
FIRMWARE = server("firmware", "192.0.2.80", 44, 46)
PLUGS = server("plugs", "203.0.113.90", 35, 49)
BEACON = server("beacon", BEACON_DST, 61, 44)
TIME = server("time", "203.0.113.123", 13, 56)
RESOLVER = server("resolver", "198.51.100.53", 16, 55)
PING = server("ping", "198.51.100.1", 8, 60)


# ---- Frames -----------------------------------------------------------------------------------


def checksum(data):
    """The Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(src, dst, kind, payload, vlan=None):
    """A frame as a switch sends it: padded to the minimum, without its checksum."""
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    frame = mac_bytes(dst) + mac_bytes(src) + tag + struct.pack("!H", kind) + payload
    return frame.ljust(60, b"\0")


def ipv4(src, dst, proto, payload, ttl, ident, fragment=0x4000, options=b""):
    """An IPv4 packet; `fragment` holds the flags (don't fragment, unless told) and the offset."""
    words = 5 + len(options) // 4
    total = words * 4 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, ident, fragment, ttl, proto, 0)
    head += ip_bytes(src) + ip_bytes(dst) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(src, dst, proto, payload, hops, label=0):
    """An IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28 | label, len(payload), proto, hops)
    return head + ip_bytes(src) + ip_bytes(dst) + payload


def summed(src, dst, proto, segment, at):
    """A segment with its checksum at `at` filled in, pseudo header included."""
    a, b = ip_bytes(src), ip_bytes(dst)
    if len(a) == 4:
        pseudo = a + b + struct.pack("!BBH", 0, proto, len(segment))
    else:
        pseudo = a + b + struct.pack("!II", len(segment), proto)
    value = checksum(pseudo + segment)
    if value == 0 and proto == UDP:
        # Zero says that there is none.
        value = 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def udp_segment(src, dst, sport, dport, data):
    """A UDP datagram between two addresses."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(data), 0)
    return summed(src, dst, UDP, head + data, 6)


def icmp_message(kind, code, rest, data=b""):
    """An ICMP message; `rest` are the four bytes behind the checksum."""
    body = struct.pack("!BBH", kind, code, 0) + rest + data
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def group_mac(group):
    """The MAC of a multicast address."""
    raw = ip_bytes(group)
    if len(raw) == 4:
        raw = b"\x01\x00\x5e" + bytes([raw[1] & 0x7F]) + raw[2:]
    else:
        raw = b"\x33\x33" + raw[-4:]
    return raw.hex(":")


class Wire:
    """What passes the mirror port."""

    def __init__(self):
        self.sent = []

    def put(self, at, frame):
        """Adds a frame at a time, ns from the start."""
        self.sent.append((at, frame))

    def udp(self, at, src, dst, sport, dport, data):
        """A UDP datagram over IPv4 from one host to another."""
        segment = udp_segment(src.v4, dst.v4, sport, dport, data)
        packet = ipv4(src.v4, dst.v4, UDP, segment, src.ttl, src.ident())
        self.put(at, ethernet(src.mac, dst.mac, 0x0800, packet, src.vlan))

    def udp_to_group(self, at, src, group, sport, dport, data, ttl):
        """A UDP datagram to a multicast group of either family."""
        v6 = ":" in group
        source = src.link_local() if v6 else src.v4
        segment = udp_segment(source, group, sport, dport, data)
        if v6:
            packet = ipv6(source, group, UDP, segment, ttl)
        else:
            packet = ipv4(source, group, UDP, segment, ttl, src.ident())
        self.put(at, ethernet(src.mac, group_mac(group), 0x86DD if v6 else 0x0800, packet))

    def icmp(self, at, src, dst, message):
        """An ICMP message from one host to another."""
        packet = ipv4(src.v4, dst.v4, ICMP, message, src.ttl, src.ident())
        self.put(at, ethernet(src.mac, dst.mac, 0x0800, packet, src.vlan))

    def icmpv6(self, at, src_mac, dst_mac, src, dst, kind, body, hops=255, code=0):
        """An ICMPv6 message; neighbour discovery wants a hop limit of 255."""
        message = summed(src, dst, ICMPV6, struct.pack("!BBH", kind, code, 0) + body, 2)
        self.put(at, ethernet(src_mac, dst_mac, 0x86DD, ipv6(src, dst, ICMPV6, message, hops)))

    def frames(self):
        """All frames in order, no closer than the mirror port's 1 Gbit/s lets them follow."""
        free, out = 0, []
        for at, frame in sorted(self.sent, key=lambda item: item[0]):
            at = max(at, free)
            # Preamble, frame checksum and gap are 24 bytes; a byte takes 8 ns.
            free = at + (len(frame) + 24) * 8
            out.append((at, frame))
        return out


# ---- TCP --------------------------------------------------------------------------------------


@dataclass
class Segment:
    """A TCP segment that is to pass the mirror."""

    at: int
    side: int
    seq: int = 0
    data: bytes = b""
    flags: int = ACK
    # Dropped between mirror and receiver.
    lost: bool = False
    # Only an acknowledgment: sent if there is enough to acknowledge, or if `due` anything at all.
    bare: bool = False
    due: bool = False

    def end(self):
        """The sequence number behind the segment."""
        return self.seq + len(self.data) + (1 if self.flags & (SYN | FIN) else 0)


class Receiver:
    """What one side of a connection has received, by the time it sends the next segment."""

    def __init__(self):
        self.taken = 0
        self.next = 0
        self.beyond = []
        # Segments since the last acknowledgment, and those with data among them.
        self.fresh = 0
        self.unanswered = 0
        self.filled = False
        self.echo = 0

    def take(self, segment, tsval):
        """A segment arrives."""
        if segment.lost:
            return
        if segment.seq <= self.next:
            self.echo = tsval
        if segment.end() <= self.next or segment.end() == segment.seq:
            return
        self.fresh += 1
        self.unanswered += bool(segment.data)
        if segment.seq > self.next:
            self.beyond.append((segment.seq, segment.end()))
            return
        self.next = segment.end()
        while self.beyond and self.beyond[0][0] <= self.next:
            self.next = max(self.next, self.beyond.pop(0)[1])
            self.filled = True

    def wants_to_acknowledge(self, segment, every):
        """Whether an acknowledgment goes out now: RFC 5681, section 4.2."""
        if self.fresh == 0:
            return False
        return segment.due or self.unanswered >= every or bool(self.beyond) or self.filled

    def sack(self):
        """The one block beyond the gap, or nothing."""
        if not self.beyond:
            return None
        return self.beyond[0][0], self.beyond[-1][1]


class Connection:
    """A TCP connection: first planned in time, then written with the numbers that follow."""

    def __init__(self, wire, at, client, server_host, dport, rng, v6=False, gap=130 * US):
        self.wire, self.rng, self.v6, self.gap = wire, rng, v6, gap
        self.hosts = (client, server_host)
        self.ports = (client.port(), dport)
        self.timestamps = client.timestamps and server_host.timestamps
        self.mss = (1440 if v6 else 1460) - (12 if self.timestamps else 0)
        self.first = (rng.getrandbits(32), rng.getrandbits(32))
        self.idents = [client.ident(), server_host.ident()]
        self.labels = (rng.getrandbits(20), rng.getrandbits(20))
        self.acknowledge_every = 2
        self.plan = []
        self.next = [0, 0]
        self.now, self.turn = at, CLIENT
        self.round_trip = client.delay + server_host.delay

    def jitter(self, most):
        """A small time, ns."""
        return self.rng.randrange(max(1, most))

    def reaction(self, side):
        """From a frame at the mirror to what this side does about it."""
        return self.hosts[side].delay + self.jitter(self.hosts[side].delay // 8)

    def add(self, at, side, data=b"", flags=ACK, lost=False):
        """Plans a segment that takes up sequence numbers."""
        segment = Segment(at, side, self.next[side], data, flags, lost)
        self.next[side] = segment.end()
        self.plan.append(segment)
        return segment

    def acknowledge(self, at, side, due=False):
        """Plans a moment at which a side may acknowledge."""
        self.plan.append(Segment(at, side, bare=True, due=due))

    def open(self):
        """The handshake."""
        self.add(self.now, CLIENT, flags=SYN)
        self.now += self.reaction(SERVER)
        self.add(self.now, SERVER, flags=SYN | ACK)
        self.now += self.reaction(CLIENT)
        self.acknowledge(self.now, CLIENT, due=True)
        self.turn = CLIENT

    def say(self, side, data, think=0, lose=None):
        """One side sends data, in flights that double; segment number `lose` is dropped once."""
        other = 1 - side
        at = self.now + think + (self.reaction(side) if self.turn != side else self.gap)
        parts = [data[i : i + self.mss] for i in range(0, len(data), self.mss)]
        number, flight = 0, 10
        while number < len(parts):
            began, sent = at, []
            for part in parts[number : number + flight]:
                last = number + len(sent) == len(parts) - 1
                flags = ACK | PSH if last else ACK
                dropped = number + len(sent) == lose
                sent.append(self.add(at, side, part, flags, dropped))
                self.acknowledge(at + self.reaction(other), other)
                at += self.gap + self.jitter(self.gap // 4)
            for index, segment in enumerate(sent):
                if segment.lost:
                    at = self.repair(sent, index, at)
            number += len(sent)
            sent_at = (s.at for s in self.plan if s.side == side and not s.bare)
            self.now = max(sent_at)
            flight = min(flight * 2, 64)
            at = max(at, began + self.round_trip + self.jitter(2 * MS))
        # The last segment may be alone; its acknowledgment waits for an answer to ride on.
        self.acknowledge(self.now + self.reaction(other) + 30 * MS, other, due=True)
        self.turn = side

    def repair(self, sent, index, at):
        """Sends a dropped segment again; returns when the sender may go on."""
        gone, side = sent[index], sent[index].side
        if index + 4 < len(sent):
            # Fast retransmit, on the third duplicate acknowledgment.
            again = sent[index + 4].at + self.reaction(1 - side) + self.reaction(side)
        else:
            # Nothing behind it to cause duplicates: a tail loss probe, RFC 8985.
            again = gone.at + 2 * self.round_trip + 12 * MS
        again = max(again, at)
        self.plan.append(Segment(again, side, gone.seq, gone.data, gone.flags))
        self.acknowledge(again + self.reaction(1 - side), 1 - side, due=True)
        return again + self.round_trip

    def close(self, side, think=0):
        """Both sides finish, `side` first."""
        other = 1 - side
        at = self.now + think + (self.reaction(side) if self.turn != side else self.gap)
        self.add(at, side, flags=FIN | ACK)
        at += self.reaction(other) + 200 * US
        self.add(at, other, flags=FIN | ACK)
        self.acknowledge(at + self.reaction(side), side, due=True)
        self.write()

    def write(self):
        """Fills in what each side knows when it sends, and puts the frames on the wire."""
        receivers = (Receiver(), Receiver())
        emitted = ([], [])
        highest = [0, 0]
        for segment in sorted(self.plan, key=lambda s: s.at):
            side = segment.side
            receiver, heard = receivers[side], emitted[1 - side]
            while receiver.taken < len(heard):
                incoming, tsval = heard[receiver.taken]
                if incoming.at + self.hosts[side].delay > segment.at:
                    break
                receiver.take(incoming, tsval)
                receiver.taken += 1
            if segment.bare:
                if not receiver.wants_to_acknowledge(segment, self.acknowledge_every):
                    continue
                segment.seq = highest[side]
            receiver.fresh, receiver.unanswered, receiver.filled = 0, 0, False
            highest[side] = max(highest[side], segment.end())
            tsval = (self.hosts[side].clock + segment.at // MS) & 0xFFFFFFFF
            emitted[side].append((segment, tsval))
            self.wire.put(segment.at, self.frame(segment, receiver, tsval))

    def options(self, segment, receiver, tsval):
        """The TCP options of a segment."""
        stamps = b""
        if self.timestamps:
            stamps = struct.pack("!BBII", 8, 10, tsval, receiver.echo)
        if segment.flags & SYN:
            mss = struct.pack("!BBH", 2, 4, 1440 if self.v6 else 1460)
            scale = bytes([1, 3, 3, self.hosts[segment.side].window_scale])
            return mss + (b"\x04\x02" + stamps if stamps else b"\x01\x01\x04\x02") + scale
        out = b"\x01\x01" + stamps if stamps else b""
        if block := receiver.sack():
            first = self.first[1 - segment.side]
            edges = [(first + edge) & 0xFFFFFFFF for edge in block]
            out += struct.pack("!BBBBII", 1, 1, 5, 10, *edges)
        return out

    def frame(self, segment, receiver, tsval):
        """The frame of a segment."""
        side = segment.side
        src, dst = self.hosts[side], self.hosts[1 - side]
        opening = segment.flags & SYN
        acked = 0
        if segment.flags & ACK:
            acked = (self.first[1 - side] + receiver.next) & 0xFFFFFFFF
        packet = tcp_packet(
            (src.address(self.v6), dst.address(self.v6)),
            (self.ports[side], self.ports[1 - side]),
            ((self.first[side] + segment.seq) & 0xFFFFFFFF, acked),
            segment.flags,
            64240 if opening else src.window,
            self.options(segment, receiver, tsval),
            segment.data,
            src.ttl,
            self.labels[side] if self.v6 else self.ident(side),
        )
        return ethernet(src.mac, dst.mac, 0x86DD if self.v6 else 0x0800, packet, src.vlan)

    def ident(self, side):
        """The next IPv4 identification of a side."""
        self.idents[side] = (self.idents[side] + 1) & 0xFFFF
        return self.idents[side]


def tcp_packet(addresses, ports, numbers, flags, window, options, data, ttl, ident):
    """An IP packet with a TCP segment; `ident` is the flow label for IPv6."""
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", *ports, *numbers, offset, flags, window, 0, 0)
    segment = summed(*addresses, TCP, head + options + data, 16)
    if ":" in addresses[0]:
        return ipv6(*addresses, TCP, segment, ttl, ident)
    return ipv4(*addresses, TCP, segment, ttl, ident)


# ---- DNS --------------------------------------------------------------------------------------

A, CNAME, SOA, PTR, TXT, AAAA, SRV, OPT = 1, 5, 6, 12, 16, 28, 33, 41
CACHE_FLUSH = 0x8000


class DnsMessage:
    """A DNS message under construction, with names compressed."""

    def __init__(self, ident, flags):
        self.head = [ident, flags]
        self.counts = [0, 0, 0, 0]
        self.body = bytearray()
        self.seen = {}

    def name(self, name):
        """Appends a name."""
        labels = name.split(".") if name else []
        for i, label in enumerate(labels):
            rest = ".".join(labels[i:])
            if rest in self.seen:
                self.body += struct.pack("!H", 0xC000 | self.seen[rest])
                return
            if 12 + len(self.body) < 0x4000:
                self.seen[rest] = 12 + len(self.body)
            self.body += bytes([len(label)]) + label.encode()
        self.body += b"\0"

    def question(self, name, kind, unicast=False):
        """Appends a question."""
        self.counts[0] += 1
        self.name(name)
        self.body += struct.pack("!HH", kind, 0x8001 if unicast else 1)

    def record(self, section, name, kind, ttl, value, flush=False):
        """Appends a record to a section: 1 answer, 2 authority, 3 additional."""
        self.counts[section] += 1
        self.name(name)
        self.body += struct.pack("!HHI", kind, 1 | (CACHE_FLUSH if flush else 0), ttl)
        at = len(self.body)
        self.body += b"\0\0"
        if kind in (A, AAAA):
            self.body += ip_bytes(value)
        elif kind in (CNAME, PTR):
            self.name(value)
        elif kind == TXT:
            for text in value:
                self.body += bytes([len(text)]) + text
        elif kind == SRV:
            self.body += struct.pack("!HHH", 0, 0, value[0])
            self.name(value[1])
        elif kind == SOA:
            self.name("ns." + value)
            self.name("hostmaster." + value)
            self.body += struct.pack("!IIIII", 2025111501, 7200, 900, 1209600, 300)
        self.body[at : at + 2] = struct.pack("!H", len(self.body) - at - 2)

    def edns(self, size):
        """Appends the OPT record with the size of UDP datagram that is welcome."""
        self.counts[3] += 1
        self.body += struct.pack("!BHHIH", 0, OPT, size, 0, 0)

    def bytes(self):
        """The message."""
        return struct.pack("!6H", *self.head, *self.counts) + bytes(self.body)


def dns_query(ident, name, kind, size=1232):
    """A query that wants recursion."""
    message = DnsMessage(ident, 0x0100)
    message.question(name, kind)
    message.edns(size)
    return message.bytes()


def dns_answer(ident, name, kind, records, size=1232):
    """An answer of (name, type, ttl, value); None says that the name does not exist."""
    message = DnsMessage(ident, 0x8183 if records is None else 0x8180)
    message.question(name, kind)
    for fields in records or []:
        message.record(1, *fields)
    if not records:
        # How long "there is none" may be remembered.
        zone = ".".join(name.split(".")[-2:])
        message.record(2, zone, SOA, 300, zone)
    message.edns(size)
    return message.bytes()


def lookup(wire, at, client, name, answers, upstream=14 * MS):
    """Asks the router for a name, `answers` being {type: records}; returns when it is known."""
    resolver = IOT_ROUTER if client.vlan else ROUTER
    port = client.port()
    asked = at + client.rng.randrange(20 * MS)
    for kind, records in answers.items():
        ident = client.ident()
        wire.udp(asked, client, resolver, port, 53, dns_query(ident, name, kind))
        answered = asked + resolver.delay + upstream + client.rng.randrange(4 * MS)
        wire.udp(answered, resolver, client, 53, port, dns_answer(ident, name, kind, records))
        asked += 60 * US + client.rng.randrange(80 * US)
    return answered + client.delay


def find(wire, at, client, name, host, chain=(), ttl=300):
    """Asks for the addresses of a host, perhaps through a chain of CNAMEs."""
    names = [name, *chain]
    aliases = [(a, CNAME, ttl, b) for a, b in zip(names, names[1:])]
    answers = {A: aliases + [(names[-1], A, ttl, host.v4)]}
    if not client.vlan and client is not THERMOSTAT:
        # A name without an IPv6 address still answers with its CNAMEs.
        answers[AAAA] = aliases + ([(names[-1], AAAA, ttl, host.v6)] if host.v6 else [])
    return lookup(wire, at, client, name, answers)


# ---- TLS --------------------------------------------------------------------------------------

X25519, P256, X25519MLKEM768 = 0x001D, 0x0017, 0x11EC
TLS_AES_128_GCM_SHA256 = 0x1301
BROWSER_SUITES = (
    *(0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8),
    *(0xC013, 0xC014, 0x009C, 0x009D, 0x002F, 0x0035),
)
DEVICE_SUITES = (0x1302, 0x1303, 0x1301, 0xC02C, 0xC030, 0xC02B, 0xC02F)
SIGNATURES = (0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)


def sized(width, data):
    """Bytes with their length in front."""
    return len(data).to_bytes(width, "big") + data


def shorts(values):
    """Numbers of two bytes each."""
    return struct.pack(f"!{len(values)}H", *values)


def extension(kind, data):
    """A TLS extension."""
    return struct.pack("!H", kind) + sized(2, data)


def record(kind, data, version=0x0303):
    """A TLS record."""
    return struct.pack("!BH", kind, version) + sized(2, data)


def encrypted(length):
    """Application data records that carry `length` bytes; 17 more each for type and tag."""
    out = b""
    while length > 0:
        part = min(length, 16384)
        out += record(23, noise(part + 17))
        length -= part
    return out


CHANGE_CIPHER = record(20, b"\x01")
FINISHED = encrypted(36)
CLOSE_NOTIFY = encrypted(2)


def key_share(group, rng, from_server=False):
    """A public key of a group; the hybrid's sizes are those of ML-KEM-768 and X25519."""
    size = {X25519: 32, P256: 65, X25519MLKEM768: 1120 if from_server else 1216}[group]
    key = rng.randbytes(size)
    if group == P256:
        # An uncompressed point.
        key = b"\x04" + key[1:]
    return struct.pack("!H", group) + sized(2, key)


def client_hello(name, rng, session, alpn, browser, groups):
    """A ClientHello as browsers send it, with GREASE (RFC 8701), or as small devices do."""
    grease = [0x0A0A + 0x1010 * n for n in rng.sample(range(16), 3)] if browser else []
    lead = grease[:1]
    suites = lead + list(BROWSER_SUITES if browser else DEVICE_SUITES)
    shares = b"".join(key_share(g, rng) for g in groups if g != P256)
    if browser:
        shares = shorts(lead) + sized(2, b"\0") + shares
    versions = shorts(lead + ([0x0304, 0x0303] if browser else [0x0304]))
    out = extension(grease[1], b"") if browser else b""
    out += extension(0, sized(2, b"\0" + sized(2, name.encode())))
    out += extension(23, b"")
    out += extension(0xFF01, b"\0")
    out += extension(10, sized(2, shorts(lead + list(groups))))
    out += extension(11, b"\x01\0")
    if browser:
        out += extension(35, b"")
    out += extension(16, sized(2, b"".join(sized(1, p.encode()) for p in alpn)))
    if browser:
        out += extension(5, b"\x01\0\0\0\0")
    out += extension(13, sized(2, shorts(SIGNATURES)))
    if browser:
        out += extension(18, b"")
    out += extension(51, sized(2, shares))
    out += extension(45, b"\x01\x01")
    out += extension(43, sized(1, versions))
    if browser:
        out += extension(27, b"\x02\0\x02") + extension(grease[2], b"\0")
    body = b"\x03\x03" + rng.randbytes(32) + sized(1, session)
    body += sized(2, shorts(suites)) + b"\x01\0" + sized(2, out)
    return record(22, b"\x01" + sized(3, body), version=0x0301)


def server_hello(rng, session, group):
    """A ServerHello of TLS 1.3."""
    out = extension(51, key_share(group, rng, from_server=True)) + extension(43, b"\x03\x04")
    body = b"\x03\x03" + rng.randbytes(32) + sized(1, session)
    body += shorts([TLS_AES_128_GCM_SHA256]) + b"\0" + sized(2, out)
    return record(22, b"\x02" + sized(3, body))


def tls_open(connection, name, alpn=("h2", "http/1.1"), browser=True, post_quantum=False):
    """Handshakes of TCP and TLS 1.3."""
    rng = connection.rng
    session = rng.randbytes(32)
    groups = (X25519MLKEM768,) * post_quantum + (X25519, P256)
    connection.open()
    hello = client_hello(name, rng, session, alpn, browser, groups)
    connection.say(CLIENT, hello, think=500 * US)
    # Encrypted extensions, certificate chain, its signature, finished.
    flight = encrypted(32) + encrypted(2600) + encrypted(80) + FINISHED
    answer = server_hello(rng, session, groups[0]) + CHANGE_CIPHER + flight
    connection.say(SERVER, answer, think=2 * MS)
    connection.say(CLIENT, CHANGE_CIPHER + FINISHED, think=2 * MS)


def tls_close(connection, think=0):
    """The client says that it is done, and closes."""
    connection.say(CLIENT, CLOSE_NOTIFY, think=think)
    connection.close(CLIENT)


def tls_session(wire, at, client, host, name, exchanges, v6=False, **hello):
    """A TLS session of (seconds to wait, bytes up, bytes down) exchanges."""
    rng = random_for(f"tls {client.name} {name} {at}")
    connection = Connection(wire, at, client, host, 443, rng, v6)
    tls_open(connection, name, **hello)
    for number, (wait, up, down) in enumerate(exchanges):
        connection.say(CLIENT, encrypted(up), think=seconds(wait))
        # Two session tickets come with the first answer.
        tickets = encrypted(230) * 2 if number == 0 else b""
        work = rng.randrange(3 * MS, 30 * MS)
        connection.say(SERVER, tickets + encrypted(down), think=work)
    tls_close(connection, think=seconds(0.4))


# ---- The home's own chatter -------------------------------------------------------------------


def arp(wire, at, kind, src_mac, src_ip, dst_mac, dst_ip, ether_dst):
    """An ARP message: 1 asks, 2 answers."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, kind)
    body += mac_bytes(src_mac) + ip_bytes(src_ip) + mac_bytes(dst_mac) + ip_bytes(dst_ip)
    wire.put(at, ethernet(src_mac, ether_dst, 0x0806, body))


def arp_ask(wire, at, src, wanted, owner=None, unicast=False):
    """Asks for an address; its owner answers, if there is one."""
    nobody = "00:00:00:00:00:00"
    to = owner.mac if unicast else BROADCAST_MAC
    arp(wire, at, 1, src.mac, src.v4, owner.mac if unicast else nobody, wanted, to)
    if owner:
        arp(wire, at + owner.delay, 2, owner.mac, owner.v4, src.mac, src.v4, src.mac)


def spanning_tree(wire, at):
    """A hello of the switch, which is the root: 802.3 with LLC, not IP."""
    bridge = b"\x80\x00" + mac_bytes(SWITCH_MAC)
    bpdu = b"\0\0\0\0\0" + bridge + b"\0\0\0\0" + bridge
    # Port, then age 0, lifetime 20 s, hello 2 s, delay 15 s in units of 1/256 s.
    bpdu += struct.pack("!HHHHH", 0x8001, 0, 20 << 8, 2 << 8, 15 << 8)
    payload = b"\x42\x42\x03" + bpdu
    wire.put(at, ethernet(SWITCH_MAC, "01:80:c2:00:00:00", len(payload), payload))


def lldp(wire, at):
    """The switch says who it is."""

    def tlv(kind, data):
        return struct.pack("!H", kind << 9 | len(data)) + data

    body = tlv(1, b"\x04" + mac_bytes(SWITCH_MAC)) + tlv(2, b"\x05port8") + tlv(3, b"\0\x78")
    body += tlv(4, b"mirror of all ports") + tlv(5, b"switch")
    # A bridge, and used as one.
    body += tlv(7, b"\0\x04\0\x04") + tlv(0, b"")
    wire.put(at, ethernet(SWITCH_MAC, "01:80:c2:00:00:0e", 0x88CC, body))


def link_chatter(wire, span):
    """What a network says all the time: spanning tree, LLDP, ARP of those that know each other."""
    rng = random_for("link")
    for at in range(0, span, 2 * SEC):
        spanning_tree(wire, at + rng.randrange(600 * US))
    for at in range(3 * SEC, span, 30 * SEC):
        lldp(wire, at + rng.randrange(90 * MS))
    for number, host in enumerate((TV, LAPTOP, CAMERA, THERMOSTAT, CONSOLE, PRINTER, NAS)):
        for at in range(seconds(4 + 7.3 * number), span, 85 * SEC):
            at += rng.randrange(400 * MS)
            arp_ask(wire, at, ROUTER, host.v4, host, unicast=True)


def dhcp_message(kind, transaction, client_mac, yours, options):
    """A DHCP message: kind 1 discover, 2 offer, 3 request, 5 acknowledgment."""
    op = 1 if kind in (1, 3) else 2
    head = struct.pack("!BBBBIHH", op, 1, 6, 0, transaction, 0, 0)
    head += ip_bytes("0.0.0.0") + ip_bytes(yours) + ip_bytes("0.0.0.0") * 2
    head += mac_bytes(client_mac).ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    out = bytes([53, 1, kind])
    for code, data in options:
        out += bytes([code]) + sized(1, data)
    return (head + out + b"\xff").ljust(300, b"\0")


def phone_joins(wire, at):
    """The phone comes home: DHCP, ARP probe and announcement, IPv6 autoconfiguration."""
    rng = random_for("dhcp")
    transaction = rng.getrandbits(32)
    me = (61, b"\x01" + mac_bytes(PHONE.mac))
    wanted = (55, bytes([1, 3, 6, 15, 26, 28, 51, 58, 59]))
    me_server = (54, ip_bytes(ROUTER.v4))
    lease = [
        me_server,
        (51, struct.pack("!I", 86400)),
        (1, ip_bytes("255.255.255.0")),
        (3, ip_bytes(ROUTER.v4)),
        (6, ip_bytes(ROUTER.v4)),
    ]
    asked = (50, ip_bytes(PHONE.v4))
    steps = (
        (1, [me, wanted, (12, b"phone")]),
        (2, lease),
        (3, [me, asked, me_server, wanted, (12, b"phone")]),
        (5, lease),
    )
    for kind, options in steps:
        from_phone = kind in (1, 3)
        yours = "0.0.0.0" if from_phone else PHONE.v4
        data = dhcp_message(kind, transaction, PHONE.mac, yours, options)
        if from_phone:
            segment = udp_segment("0.0.0.0", "255.255.255.255", 68, 67, data)
            packet = ipv4("0.0.0.0", "255.255.255.255", UDP, segment, 64, 0, fragment=0)
            wire.put(at, ethernet(PHONE.mac, BROADCAST_MAC, 0x0800, packet))
        else:
            wire.udp(at, ROUTER, PHONE, 67, 68, data)
        at += (seconds(0.9) if kind == 1 else 6 * MS) + rng.randrange(2 * MS)
    # Is the address free? Then: it is mine (RFC 5227).
    nobody = "00:00:00:00:00:00"
    arp(wire, at, 1, PHONE.mac, "0.0.0.0", nobody, PHONE.v4, BROADCAST_MAC)
    arp(wire, at + seconds(1.6), 1, PHONE.mac, PHONE.v4, nobody, PHONE.v4, BROADCAST_MAC)
    arp_ask(wire, at + seconds(1.7), PHONE, ROUTER.v4, ROUTER)
    ipv6_joins(wire, at + 40 * MS, PHONE)
    return at + seconds(1.8)


def solicited(address):
    """The group in which an address is asked for, RFC 4291."""
    return "ff02::1:ff" + ipaddress.IPv6Address(address).exploded[-7:]


def source_link(mac, kind=1):
    """The option with the sender's MAC (1) or the target's (2)."""
    return bytes([kind, 1]) + mac_bytes(mac)


def multicast_report(wire, at, host, group):
    """An MLDv2 report that a group is joined; it travels with a router alert."""
    body = struct.pack("!HH", 0, 1) + struct.pack("!BBH", 4, 0, 0) + ip_bytes(group)
    src, dst = host.link_local(), "ff02::16"
    message = summed(src, dst, ICMPV6, struct.pack("!BBH", 143, 0, 0) + body, 2)
    hop_by_hop = bytes([ICMPV6, 0, 5, 2, 0, 0, 1, 0])
    packet = ipv6(src, dst, 0, hop_by_hop + message, 1)
    wire.put(at, ethernet(host.mac, group_mac(dst), 0x86DD, packet))


def ipv6_joins(wire, at, host):
    """A host makes itself addresses: duplicate detection, router solicitation, advertisement."""
    local = host.link_local()
    for address in (local, host.v6):
        group = solicited(address)
        multicast_report(wire, at, host, group)
        at += 15 * MS
        target = bytes(4) + ip_bytes(address)
        wire.icmpv6(at, host.mac, group_mac(group), "::", group, 135, target)
        at += seconds(1.1)
        if address == local:
            body = bytes(4) + source_link(host.mac)
            wire.icmpv6(at, host.mac, group_mac("ff02::2"), local, "ff02::2", 133, body)
            at += 5 * MS
            router_advertisement(wire, at)
            at += 30 * MS


def router_advertisement(wire, at):
    """The router names the prefix of the home."""
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + source_link(ROUTER.mac)
    body += struct.pack("!BBHI", 5, 1, 0, 1500)
    body += struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + ip_bytes("2001:db8:1::")
    to = "ff02::1"
    wire.icmpv6(at, ROUTER.mac, group_mac(to), ROUTER.link_local(), to, 134, body)


def neighbour(wire, at, src, src_ip, wanted, wanted_ip, is_router):
    """Asks for the MAC of an IPv6 address, and is told."""
    group = solicited(wanted_ip)
    ask = bytes(4) + ip_bytes(wanted_ip) + source_link(src.mac)
    wire.icmpv6(at, src.mac, group_mac(group), src_ip, group, 135, ask)
    flags = struct.pack("!I", (0xE0 if is_router else 0x60) << 24)
    tell = flags + ip_bytes(wanted_ip) + source_link(wanted.mac, 2)
    wire.icmpv6(at + wanted.delay, wanted.mac, src.mac, wanted_ip, src_ip, 136, tell)


def mdns(wire, at):
    """The laptop looks for printers, over both families; the printer answers the first."""
    group, service, printer = "224.0.0.251", "_ipp._tcp.local", "printer._ipp._tcp.local"
    ask = DnsMessage(0, 0)
    ask.question(service, PTR)
    wire.udp_to_group(at, LAPTOP, group, 5353, 5353, ask.bytes(), 255)
    wire.udp_to_group(at + 120 * US, LAPTOP, "ff02::fb", 5353, 5353, ask.bytes(), 255)
    tell = DnsMessage(0, 0x8400)
    tell.record(1, service, PTR, 4500, printer)
    tell.record(3, printer, SRV, 120, (631, "printer.local"), flush=True)
    tell.record(3, printer, TXT, 4500, [b"txtvers=1", b"rp=ipp/print", b"ty=Printer"], flush=True)
    tell.record(3, "printer.local", A, 120, PRINTER.v4, flush=True)
    wire.udp_to_group(at + 24 * MS, PRINTER, group, 5353, 5353, tell.bytes(), 255)


def ssdp(wire, at):
    """The TV looks for media servers; the NAS answers, and announces itself later."""
    group = "239.255.255.250"
    kind = "urn:schemas-upnp-org:device:MediaServer:1"
    name = "uuid:5c0a1d7e-0000-4000-8000-00005e005310"
    where = f"http://{NAS.v4}:8200/device.xml"
    search = (
        f"M-SEARCH * HTTP/1.1\r\nHOST: {group}:1900\r\n"
        f'MAN: "ssdp:discover"\r\nMX: 2\r\nST: {kind}\r\n\r\n'
    )
    port = TV.port()
    for again in (0, 250 * MS):
        wire.udp_to_group(at + again, TV, group, port, 1900, search.encode(), 4)
    found = (
        f"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: {where}\r\n"
        f"SERVER: Linux UPnP/1.1 media/1.0\r\nST: {kind}\r\nUSN: {name}::{kind}\r\n\r\n"
    )
    wire.udp(at + 640 * MS, NAS, TV, 1900, port, found.encode())
    alive = (
        f"NOTIFY * HTTP/1.1\r\nHOST: {group}:1900\r\nCACHE-CONTROL: max-age=1800\r\n"
        f"LOCATION: {where}\r\nNT: {kind}\r\nNTS: ssdp:alive\r\n"
        f"SERVER: Linux UPnP/1.1 media/1.0\r\nUSN: {name}::{kind}\r\n\r\n"
    )
    wire.udp_to_group(at + seconds(2.5), NAS, group, 1900, 1900, alive.encode(), 4)


def igmp(wire, at):
    """The router asks who listens; the TV and the printer report (IGMPv2, RFC 2236)."""

    def send(when, host, kind, group, to):
        alert = b"\x94\x04\0\0"
        body = struct.pack("!BBH", kind, 100 if kind == 0x11 else 0, 0) + ip_bytes(group)
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        packet = ipv4(host.v4, to, IGMP, body, 1, host.ident(), options=alert)
        wire.put(when, ethernet(host.mac, group_mac(to), 0x0800, packet))

    send(at, ROUTER, 0x11, "0.0.0.0", "224.0.0.1")
    send(at + seconds(1.3), TV, 0x16, "239.255.255.250", "239.255.255.250")
    send(at + seconds(4.1), PRINTER, 0x16, "224.0.0.251", "224.0.0.251")


def ntp_time(at):
    """A time, ns from the start, as NTP writes it."""
    whole, part = divmod(START + at, SEC)
    return struct.pack("!II", whole + NTP_EPOCH, (part << 32) // SEC)


def ntp(wire, at, client):
    """A client asks for the time."""
    at += client.rng.randrange(50 * MS)
    port = client.port()
    sent = ntp_time(at)
    ask = struct.pack("!BBbbIII", 0x23, 0, 6, -20, 0, 0, 0) + bytes(24) + sent
    wire.udp(at, client, TIME, port, 123, ask)
    there, back = at + TIME.delay // 2, at + TIME.delay
    head = struct.pack("!BBbbII", 0x24, 2, 6, -23, 0x00000A3D, 0x000001C2) + ip_bytes("192.0.2.1")
    tell = head + ntp_time(at - 40 * SEC) + sent + ntp_time(there) + ntp_time(there + 30 * US)
    # Servers see the tagged network only through the router.
    segment = udp_segment(TIME.v4, client.v4, 123, port, tell)
    packet = ipv4(TIME.v4, client.v4, UDP, segment, TIME.ttl, TIME.ident())
    wire.put(back, ethernet(ROUTER.mac, client.mac, 0x0800, packet, client.vlan))


def ping(wire, at, client, target, ident, count=4):
    """Echo requests, one a second, and their replies."""
    for number in range(1, count + 1):
        rest, data = struct.pack("!HH", ident, number), bytes(range(0x61, 0x77)) + b"abcdefghij"
        wire.icmp(at, client, target, icmp_message(8, 0, rest, data))
        back = at + target.delay + client.rng.randrange(MS)
        wire.icmp(back, target, client, icmp_message(0, 0, rest, data))
        at += SEC + client.rng.randrange(12 * MS)


def ping6(wire, at, client, target, ident, count=3):
    """Echo over IPv6."""
    for number in range(1, count + 1):
        body = struct.pack("!HH", ident, number) + bytes(range(0x61, 0x77)) + b"abcdefghij"
        wire.icmpv6(at, client.mac, target.mac, client.v6, target.v6, 128, body, client.ttl)
        back = at + target.delay + client.rng.randrange(MS)
        wire.icmpv6(back, target.mac, client.mac, target.v6, client.v6, 129, body, target.ttl)
        at += SEC + client.rng.randrange(12 * MS)


def port_mapping_refused(wire, at):
    """The console asks for its outside address (RFC 6886); the router does not listen there."""
    ask = b"\0\0"
    port, ident = CONSOLE.port(), CONSOLE.ident()
    segment = udp_segment(CONSOLE.v4, ROUTER.v4, port, 5351, ask)
    packet = ipv4(CONSOLE.v4, ROUTER.v4, UDP, segment, CONSOLE.ttl, ident)
    wire.put(at, ethernet(CONSOLE.mac, ROUTER.mac, 0x0800, packet))
    message = icmp_message(3, 3, bytes(4), packet)
    wire.icmp(at + ROUTER.delay, ROUTER, CONSOLE, message)


# ---- What people and devices do ---------------------------------------------------------------


def video(wire, at, until):
    """The TV pulls a film in pieces; a few segments are lost on the way and sent again."""
    rng = random_for("video")
    at = find(wire, at, TV, "film.example.com", VIDEO, ("film.cdn.example.net",))
    connection = Connection(wire, at, TV, VIDEO, 443, rng, gap=125 * US)
    tls_open(connection, "film.example.com", browser=False)
    # Lost segments, of pieces by number. Each lies in a TLS record that the flight leaves
    # unfinished, so that whoever reassembles records at the mirror gets both copies in time.
    lose = {6: 3, 17: 24, 28: 23, 41: 4, 47: 25}
    number = 0
    while connection.now < until:
        # The first pieces fill the buffer; then one follows another as it is watched.
        pause = 60 * MS if number < 4 else rng.randrange(4400 * MS, 4900 * MS)
        connection.say(CLIENT, encrypted(310), think=pause)
        size = rng.randrange(118_000, 139_000)
        lost = lose.get(number)
        if number == 35:
            # The very last segment: there are no duplicates to tell the server.
            lost = (len(encrypted(size)) - 1) // connection.mss
        connection.say(SERVER, encrypted(size), think=4 * MS, lose=lost)
        number += 1
    tls_close(connection, think=seconds(2))


def camera_upload(wire, at, until):
    """The camera sends a clip to its cloud now and then, over one session."""
    rng = random_for("camera")
    at = find(wire, at, CAMERA, "clips.example.org", CLOUD)
    connection = Connection(wire, at, CAMERA, CLOUD, 443, rng, gap=700 * US)
    tls_open(connection, "clips.example.org", alpn=("http/1.1",), browser=False)
    while connection.now < until:
        connection.say(CLIENT, encrypted(rng.randrange(22_000, 48_000)), think=3 * MS)
        connection.say(SERVER, encrypted(140), think=15 * MS)
        connection.now += rng.randrange(17 * SEC, 24 * SEC)
    tls_close(connection)


def beacons(wire, at, until):
    """The thermostat calls the same address each 20 s, with the same sizes."""
    rng = random_for("beacon")
    name = "status.example.net"
    find(wire, at - 200 * MS, THERMOSTAT, name, BEACON, ttl=3600)
    while at < until:
        when = at + rng.randrange(-350 * MS, 350 * MS)
        connection = Connection(wire, max(when, 0), THERMOSTAT, BEACON, 443, rng)
        tls_open(connection, name, alpn=("http/1.1",), browser=False)
        connection.say(CLIENT, encrypted(212), think=3 * MS)
        connection.say(SERVER, encrypted(96), think=5 * MS)
        tls_close(connection, think=10 * MS)
        at += 20 * SEC


def firmware_check(wire, at):
    """The thermostat asks for new firmware, in the clear."""
    name = "firmware.example.org"
    at = find(wire, at, THERMOSTAT, name, FIRMWARE)
    connection = Connection(wire, at, THERMOSTAT, FIRMWARE, 80, random_for("firmware"))
    connection.open()
    ask = (
        f"GET /thermostat/latest.json?version=4.2.1 HTTP/1.1\r\nHost: {name}\r\n"
        "User-Agent: thermostat/4.2.1\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    )
    connection.say(CLIENT, ask.encode(), think=4 * MS)
    body = json.dumps({"version": "4.2.1", "update": False, "notes": ["no change"] * 20})
    tell = (
        "HTTP/1.1 200 OK\r\nDate: Sat, 15 Nov 2025 18:31:03 GMT\r\nServer: web\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    )
    connection.say(SERVER, tell.encode(), think=6 * MS)
    connection.close(SERVER, think=300 * US)


def ssh_packet(kind, body, rng):
    """An SSH packet before encryption, RFC 4253 section 6."""
    payload = bytes([kind]) + body
    pad = 8 - (len(payload) + 5) % 8
    pad += 8 if pad < 4 else 0
    return struct.pack("!IB", len(payload) + pad + 1, pad) + payload + rng.randbytes(pad)


def ssh_kexinit(rng, server_side):
    """What a side can do."""
    kex = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256"
    kex += "" if server_side else ",ext-info-c"
    ciphers = "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes256-ctr"
    macs = "hmac-sha2-256-etm@openssh.com,hmac-sha2-256"
    lists = [kex, "ssh-ed25519", ciphers, ciphers, macs, macs, "none", "none", "", ""]
    body = rng.randbytes(16) + b"".join(sized(4, text.encode()) for text in lists)
    return ssh_packet(20, body + bytes(5), rng)


def ssh(wire, at):
    """The laptop logs in to the NAS and works a little."""
    rng = random_for("ssh")
    arp_ask(wire, at - 3 * MS, LAPTOP, NAS.v4, NAS)
    connection = Connection(wire, at, LAPTOP, NAS, 22, rng, gap=20 * US)
    connection.open()
    connection.say(CLIENT, b"SSH-2.0-OpenSSH_9.6\r\n", think=MS)
    connection.say(SERVER, b"SSH-2.0-OpenSSH_9.2\r\n", think=9 * MS)
    connection.say(CLIENT, ssh_kexinit(rng, False))
    connection.say(SERVER, ssh_kexinit(rng, True))
    connection.say(CLIENT, ssh_packet(30, sized(4, rng.randbytes(32)), rng), think=2 * MS)
    key = sized(4, b"ssh-ed25519") + sized(4, rng.randbytes(32))
    proof = sized(4, b"ssh-ed25519") + sized(4, rng.randbytes(64))
    reply = sized(4, key) + sized(4, rng.randbytes(32)) + sized(4, proof)
    connection.say(SERVER, ssh_packet(31, reply, rng) + ssh_packet(21, b"", rng), think=3 * MS)
    connection.say(CLIENT, ssh_packet(21, b"", rng) + rng.randbytes(44), think=2 * MS)
    connection.say(SERVER, rng.randbytes(44))
    for size in (68, 500, 372, 112):
        connection.say(CLIENT, rng.randbytes(size), think=3 * MS)
        connection.say(SERVER, rng.randbytes(52), think=4 * MS)
    for _ in range(45):
        # A key, its echo, and sometimes a page of output.
        connection.say(CLIENT, rng.randbytes(36), think=rng.randrange(90 * MS, 700 * MS))
        size = rng.choice((36, 36, 36, 36, 44, 620))
        connection.say(SERVER, rng.randbytes(size), think=400 * US)
    connection.say(CLIENT, rng.randbytes(36), think=300 * MS)
    connection.close(CLIENT, think=2 * MS)


def print_job(wire, at):
    """The laptop prints, on the printer's raw port."""
    arp_ask(wire, at - 4 * MS, LAPTOP, PRINTER.v4, PRINTER)
    connection = Connection(wire, at, LAPTOP, PRINTER, 9100, random_for("print"), gap=90 * US)
    connection.open()
    start = b"\x1b%-12345X@PJL\r\n@PJL ENTER LANGUAGE=PDF\r\n%PDF-1.7\n"
    connection.say(CLIENT, start + noise(150_000) + b"\n%%EOF\n\x1b%-12345X", think=2 * MS)
    connection.close(CLIENT, think=seconds(0.2))


def quic_long(kind, dcid, scid, length, rng):
    """A QUIC v1 packet with a long header: kind 0 Initial, 2 Handshake; `length` in all."""
    # The low bits of the first byte are covered by header protection.
    head = bytes([0xC0 | kind << 4 | rng.getrandbits(4)]) + struct.pack("!I", 1)
    head += sized(1, dcid) + sized(1, scid) + (b"\0" if kind == 0 else b"")
    rest = length - len(head) - 2
    return head + struct.pack("!H", 0x4000 | rest) + rng.randbytes(rest)


def quic(wire, at, client, host, name):
    """A QUIC flow: Initials of 1200 bytes, handshake, then short headers."""
    rng = random_for("quic")
    at = find(wire, at, client, name, host)
    port, first, theirs = client.port(), rng.randbytes(8), rng.randbytes(8)

    def short(dcid, length):
        return bytes([0x40 | rng.getrandbits(6)]) + dcid + noise(length)

    def up(data):
        wire.udp(at, client, host, port, 443, data)

    def down(data):
        wire.udp(at, host, client, 443, port, data)

    up(quic_long(0, first, b"", 1200, rng))
    at += host.delay + 3 * MS
    down(quic_long(0, b"", theirs, 160, rng) + quic_long(2, b"", theirs, 1040, rng))
    at += 150 * US
    down(quic_long(2, b"", theirs, 1200, rng))
    at += 150 * US
    down(quic_long(2, b"", theirs, 780, rng))
    at += client.delay
    # A datagram with an Initial is never smaller than 1200 bytes, RFC 9000 section 14.1.
    up(quic_long(0, theirs, b"", 50, rng) + quic_long(2, theirs, b"", 1150, rng))
    at += 200 * US
    up(short(theirs, 420))
    for _ in range(9):
        at += host.delay + rng.randrange(3 * MS, 20 * MS)
        for number in range(rng.randrange(8, 22)):
            down(short(b"", 1190))
            at += 140 * US
            if number % 4 == 3:
                up(short(theirs, rng.randrange(24, 32)))
                at += 20 * US
        at += rng.randrange(300 * MS, 1500 * MS)
        up(short(theirs, rng.randrange(60, 180)))


def game(wire, at):
    """The console plays: small datagrams both ways at a steady rate."""
    rng = random_for("game")
    name = "play.example.net"
    tls_at = find(wire, at, CONSOLE, name, GAME)
    exchanges = ((0.05, 900, 2400), (0.3, 420, 18_000))
    tls_session(wire, tls_at, CONSOLE, GAME, name, exchanges, browser=False)
    at = tls_at + 2 * SEC
    port = CONSOLE.port()
    for number in range(560):
        head = struct.pack("!II", 0x20, number)
        wire.udp(at, CONSOLE, GAME, port, 30500, head + noise(rng.randrange(28, 60)))
        back = at + GAME.delay + rng.randrange(4 * MS)
        wire.udp(back, GAME, CONSOLE, 30500, port, head + noise(rng.randrange(70, 220)))
        at += 66 * MS + rng.randrange(2 * MS)


def laptop_browses(wire):
    """The laptop's sessions: sites, mail, a large post-quantum hello, one over IPv6."""
    www, chain = "www.example.com", ("www.cdn.example.net", "edge7.cdn.example.net")
    at = find(wire, seconds(10.2), LAPTOP, www, WWW, chain)
    page = ((0.02, 620, 41_000), (0.05, 180, 9_000), (1.8, 240, 3_100), (9.0, 300, 12_000))
    tls_session(wire, at, LAPTOP, WWW, www, page, post_quantum=True)
    at = find(wire, seconds(10.6), LAPTOP, "static.example.com", STATIC)
    for later in (0, 12 * MS, 15 * MS):
        parts = ((0.01, 420, 60_000), (0.02, 160, 22_000))
        tls_session(wire, at + later, LAPTOP, STATIC, "static.example.com", parts)
    # A name that does not exist.
    missing = "intranet.example.com"
    lookup(wire, seconds(13.4), LAPTOP, missing, {A: None, AAAA: None})
    at = find(wire, seconds(38.1), LAPTOP, "mail.example.org", MAIL)
    polls = ((0.1, 700, 5_200), (30.0, 160, 300), (30.0, 160, 300), (30.0, 160, 8_800))
    tls_session(wire, at, LAPTOP, MAIL, "mail.example.org", polls)
    at = find(wire, seconds(48.5), LAPTOP, "news.example.org", NEWS)
    neighbour(wire, at, LAPTOP, LAPTOP.link_local(), ROUTER, ROUTER.link_local(), True)
    story = ((0.02, 640, 74_000), (2.2, 210, 31_000), (14.0, 260, 28_000))
    tls_session(wire, at + 2 * MS, LAPTOP, NEWS, "news.example.org", story, v6=True)
    at_router = seconds(48.9)
    neighbour(wire, at_router, ROUTER, ROUTER.link_local(), LAPTOP, LAPTOP.v6, False)
    for start, name, host, down in (
        (88.0, "docs.example.net", API, 33_000),
        (131.5, "shop.example.com", WWW, 58_000),
        (166.2, "search.example.net", STATIC, 21_000),
        (232.4, "wiki.example.org", MAIL, 47_000),
        (258.7, "maps.example.com", WWW, 66_000),
    ):
        at = find(wire, seconds(start), LAPTOP, name, host)
        visit = ((0.02, 590, down), (0.6, 210, down // 4), (4.0, 220, 4_000))
        tls_session(wire, at, LAPTOP, host, name, visit, post_quantum=start > 200)


def phone_lives(wire, at):
    """The phone's sessions after it has joined."""
    ntp(wire, at, PHONE)
    for later, name, host, exchanges in (
        (0.3, "push.example.net", API, ((0.1, 480, 900), (60, 90, 60), (60, 90, 60), (60, 90, 60))),
        (0.9, "photos.example.com", PHOTOS, ((0.1, 38_000, 600), (0.2, 64_000, 600))),
        (70.5, "chat.example.net", API, ((0.1, 520, 2_400), (4.1, 310, 240), (9.7, 330, 240))),
        (151.0, "weather.example.org", STATIC, ((0.1, 360, 7_200),)),
        (204.0, "photos.example.com", PHOTOS, ((0.1, 520, 88_000), (1.4, 180, 52_000))),
    ):
        start = find(wire, at + seconds(later), PHONE, name, host)
        tls_session(wire, start, PHONE, host, name, exchanges)
    quic(wire, at + seconds(33.0), PHONE, MEDIA, "media.example.org")


def plug_reports(wire, at, behind):
    """The smart plug on the devices network reports; all its frames are tagged."""
    ntp(wire, at, PLUG)
    start = find(wire, at + 300 * MS, PLUG, "plugs.example.org", PLUGS)
    exchanges = ((0.05, 330, 120),)
    tls_session(
        wire, start, PLUG, behind, "plugs.example.org", exchanges, alpn=("http/1.1",), browser=False
    )


def tagged(host):
    """A server as it is seen from the devices network: its frames carry the tag."""
    return Host(host.name, host.v4, host.mac, ttl=host.ttl, delay=host.delay, vlan=HOME_VLAN_IOT)


def scan_port(wire, at, target, sport, dport, behaviour, rng):
    """A SYN of the scanner, and what comes back: "open", "closed" or nothing."""
    first = rng.getrandbits(32)
    mss = b"\x02\x04\x05\xb4"

    def segment(when, src, dst, ports, numbers, flags, window, options=b""):
        addresses = (src.v4, dst.v4)
        ident = 0 if flags & RST else src.ident()
        packet = tcp_packet(addresses, ports, numbers, flags, window, options, b"", src.ttl, ident)
        wire.put(when, ethernet(src.mac, dst.mac, 0x0800, packet))

    there, back = (sport, dport), (dport, sport)
    after = (first + 1) & 0xFFFFFFFF
    segment(at, CAMERA, target, there, (first, 0), SYN, 1024, mss)
    at += target.delay + rng.randrange(60 * US)
    if behaviour == "closed":
        segment(at, target, CAMERA, back, (0, after), RST | ACK, 0)
    elif behaviour == "open":
        segment(at, target, CAMERA, back, (rng.getrandbits(32), after), SYN | ACK, 64240, mss)
        # The scanner's system knows nothing of the connection and resets it.
        segment(at + CAMERA.delay, CAMERA, target, there, (after, 0), RST, 0)


def scan(wire, at):
    """The camera, taken over, scans the NAS's ports, then port 445 of other hosts."""
    rng = random_for("scan")
    arp_ask(wire, at - 5 * MS, CAMERA, NAS.v4, NAS)
    ports = {22, 80, 445, 21, 23, 25, 53, 110, 139, 143, 443, 554, 3306, 3389, 5900, 8080}
    while len(ports) < 100:
        ports.add(rng.randrange(1, 10_000))
    ports = sorted(ports)
    rng.shuffle(ports)
    sport = CAMERA.port()
    for port in ports:
        state = "open" if port in (22, 80, 445) else "closed"
        scan_port(wire, at, NAS, sport, port, state, rng)
        at += rng.randrange(12 * MS, 34 * MS)
    at += seconds(1.5)
    sport = CAMERA.port()
    # Those of the own network that are there, and answer to ARP.
    for host in (ROUTER, PRINTER, LAPTOP, PHONE, TV, CONSOLE, THERMOSTAT):
        arp_ask(wire, at - 10 * MS, CAMERA, host.v4, host)
        scan_port(wire, at, host, sport, 445, "closed", rng)
        at += rng.randrange(30 * MS, 70 * MS)
    # Nobody of the own network answers to these, so that no SYN can be sent.
    for last in (2, 3, 4, 5, 6, 7):
        for again in range(3):
            arp_ask(wire, at + again * SEC, CAMERA, f"192.168.1.{last}")
        at += rng.randrange(30 * MS, 70 * MS)
    # A neighbouring network, often in use in homes: sent by way of the router, lost behind it.
    for last in (1, 2, 3, 4, 5, 10, 11, 12, 20, 25, 30, 50, 64, 100, 101, 102, 150, 200):
        nobody = Host(f"nobody {last}", f"192.168.0.{last}", ROUTER.mac)
        scan_port(wire, at, nobody, sport, 445, "silent", rng)
        at += rng.randrange(30 * MS, 70 * MS)


def fragmented_answer(wire, at, name, length, order):
    """The laptop asks a resolver for a text so long that the answer comes in fragments."""
    ident, port = LAPTOP.ident(), LAPTOP.port()
    wire.udp(at, LAPTOP, RESOLVER, port, 53, dns_query(ident, name, TXT, 4096))
    texts = [noise(189).hex().encode()[:250]] * (length // 251)
    answer = dns_answer(ident, name, TXT, [(name, TXT, 600, texts)], 4096)
    segment = udp_segment(RESOLVER.v4, LAPTOP.v4, 53, port, answer)
    number, at = RESOLVER.ident(), at + RESOLVER.delay
    parts = [(i, segment[i : i + 1480]) for i in range(0, len(segment), 1480)]
    for index in order:
        offset, part = parts[index]
        more = 0x2000 if offset + len(part) < len(segment) else 0
        packet = ipv4(
            RESOLVER.v4, LAPTOP.v4, UDP, part, RESOLVER.ttl, number, more | offset // 8
        )
        wire.put(at, ethernet(ROUTER.mac, LAPTOP.mac, 0x0800, packet))
        at += 130 * US


def home():
    """Everything that happens."""
    wire, span = Wire(), 300 * SEC
    link_chatter(wire, span)
    video(wire, seconds(1.1), 283 * SEC)
    camera_upload(wire, seconds(2.6), 270 * SEC)
    for at in (5.0, 155.0):
        ssdp(wire, seconds(at))
    for at in (9.3, 108.0):
        mdns(wire, seconds(at))
    beacons(wire, 7 * SEC, 290 * SEC)
    laptop_browses(wire)
    phone_lives(wire, phone_joins(wire, 20 * SEC))
    behind = tagged(PLUGS)
    for at in (30.4, 130.7, 231.1):
        plug_reports(wire, seconds(at), behind)
    router_advertisement(wire, seconds(44.0))
    igmp(wire, 60 * SEC)
    igmp(wire, 185 * SEC)
    firmware_check(wire, seconds(63.0))
    ssh(wire, 75 * SEC)
    for at, host in ((16.1, TV), (33.8, THERMOSTAT), (57.2, CAMERA), (96.0, NAS), (201.9, LAPTOP)):
        ntp(wire, seconds(at), host)
    print_job(wire, seconds(110.5))
    port_mapping_refused(wire, seconds(118.0))
    game(wire, 119 * SEC)
    ping(wire, 140 * SEC, LAPTOP, ROUTER, 1)
    ping(wire, 146 * SEC, LAPTOP, PING, 1)
    ping6(wire, 151 * SEC, LAPTOP, NEWS, 2)
    scan(wire, 180 * SEC)
    fragmented_answer(wire, seconds(210.2), "policy.example.net", 2_200, (0, 1))
    fragmented_answer(wire, seconds(213.6), "keys.example.net", 3_600, (2, 0, 1))
    return wire.frames()


# ---- Files ------------------------------------------------------------------------------------


def pcap(frames):
    """A classic capture file with nanoseconds, little endian, Ethernet."""
    out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)]
    for at, frame in frames:
        whole, part = divmod(START + at, SEC)
        out.append(struct.pack("<IIII", whole, part, len(frame), len(frame)) + frame)
    return b"".join(out)


def network_of(frame):
    """The IP packet in a frame, or nothing."""
    kind, at = struct.unpack_from("!H", frame, 12)[0], 14
    if kind == 0x8100:
        kind, at = struct.unpack_from("!H", frame, 16)[0], 18
    return frame[at:] if kind in (0x0800, 0x86DD) else None


def transport_of(packet):
    """Addresses, protocol, transport bytes and fragment (None, or identification and offset)."""
    if packet[0] >> 4 == 4:
        ident, fragment = struct.unpack_from("!HH", packet, 4)
        total = struct.unpack_from("!H", packet, 2)[0]
        part = (ident, fragment & 0x1FFF) if fragment & 0x3FFF else None
        return packet[12:16], packet[16:20], packet[9], packet[(packet[0] & 15) * 4 : total], part
    proto, at = packet[6], 40
    if proto == 0:
        # Hop-by-hop options: the only extension header here.
        proto, at = packet[40], 40 + (packet[41] + 1) * 8
    end = 40 + struct.unpack_from("!H", packet, 4)[0]
    return packet[8:24], packet[24:40], proto, packet[at:end], None


# ICMP and ICMPv6 messages that answer each other, as Community ID pairs them.
ICMP_PAIRS = {
    ICMP: {8: 0, 0: 8},
    ICMPV6: {128: 129, 129: 128, 133: 134, 134: 133, 135: 136, 136: 135, 130: 131, 131: 130},
}


def flow_key(src, dst, proto, body):
    """The same for both directions; an ICMP message without an answer has only one."""
    sport = dport = 0
    if proto in (TCP, UDP):
        sport, dport = struct.unpack_from("!HH", body)
    elif proto in (ICMP, ICMPV6):
        sport, dport = body[0], ICMP_PAIRS[proto].get(body[0])
        if dport is None:
            return proto, (src, sport), (dst, body[1])
    return proto, *sorted(((src, sport), (dst, dport)))


def truth(frames):
    """What the capture holds, counted from the frames alone."""
    packets = [p for p in (network_of(frame) for _, frame in frames) if p is not None]
    parts = [transport_of(packet) for packet in packets]
    # Only the first fragment has ports, and it need not come first.
    whole = {(a, b, c, f[0]): body for a, b, c, body, f in parts if f and f[1] == 0}
    flows, scans, beats = set(), 0, 0
    for src, dst, proto, body, fragment in parts:
        if fragment:
            body = whole[src, dst, proto, fragment[0]]
        flows.add(flow_key(src, dst, proto, body))
        if proto == TCP and body[13] & (SYN | ACK) == SYN:
            scans += src == ip_bytes(SCANNER) and dst[:2] == b"\xc0\xa8"
            beats += dst == ip_bytes(BEACON_DST)
    return {
        "packets": len(frames),
        "bytes": sum(len(frame) for _, frame in frames),
        "ip_packets": len(packets),
        "not_ip": len(frames) - len(packets),
        "flows": len(flows),
        "scan_syns": scans,
        "beacons": beats,
        "beacon_dst": BEACON_DST,
        "span_s": round((frames[-1][0] - frames[0][0]) / SEC, 6),
    }


def main():
    """Writes the capture and its truth."""
    root = Path(__file__).resolve().parent.parent
    default = root / "tests" / "captures" / "home.pcap.gz"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = home()
    # No name and no time in the header: the file is the same on each run.
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(pcap(frames))
    facts = truth(frames)
    name = path.name.removesuffix(".gz").removesuffix(".pcap") + ".truth.json"
    path.with_name(name).write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
