"""Figures, the rounds that make them, and the tables that show them."""

import statistics
import time


class Skip(Exception):
    """Something cannot be measured here, and why."""


class Failure(Exception):
    """Something that should work did not."""


class Figure:
    """Repeated measurements of one thing, and if known the machine's own limit for it."""

    def __init__(self, values, unit):
        self.values, self.unit = list(values), unit
        self.limit = self.ratio = None
        self.limit_is = ""

    def against(self, limit, what):
        """Compares with the limit measured in the same rounds, round by round."""
        pairs = [(a, b) for a, b in zip(self.values, limit.values) if b]
        if pairs:
            self.limit, self.limit_is = limit, what
            self.ratio = Figure([a / b for a, b in pairs], "of " + what)
        return self

    @property
    def median(self):
        return statistics.median(self.values)

    def text(self, scale=1, digits=1):
        """`12.3 [11.9..12.8]`; a single measurement has no range."""
        shown = [f"{v / scale:,.{digits}f}" for v in (self.median, min(self.values), max(self.values))]
        return shown[0] if len(self.values) == 1 else f"{shown[0]} [{shown[1]}..{shown[2]}]"

    def json(self):
        out = {
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "n": len(self.values),
        }
        if self.limit:
            out["limit"] = {"what": self.limit_is, **self.limit.json()}
            out["ratio"] = self.ratio.json()
        return out


def rounds(count, jobs, slow=None, slow_count=1):
    """Runs every job once a round, in an order that rotates, and returns {job: [results]}.

    Neighbours disturb all jobs of a round alike, so results compare round by round. A job that took
    longer than `slow` seconds is run `slow_count` times only. A job that cannot run yields a Skip
    or a Failure in place of its list.
    """
    results = {name: [] for name in jobs}
    order = list(jobs)
    took = dict.fromkeys(jobs, 0.0)
    for number in range(count):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if isinstance(results[name], Exception):
                continue
            if slow and took[name] > slow and number >= slow_count:
                continue
            begun = time.monotonic()
            try:
                results[name].append(jobs[name]())
            except (Skip, Failure) as problem:
                results[name] = problem
            took[name] = time.monotonic() - begun
    return results


def pick(results, key, unit):
    """The figure that the results of a job have under `key`."""
    return Figure([result[key] for result in results], unit)


def table(title, header, rows, notes=()):
    """Prints rows of strings in aligned columns, the first to the left and the others to the right."""
    print(f"\n{title}")
    if rows:
        rows = [header, *rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        for row in rows:
            cells = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            )
            print("  " + "  ".join(cells).rstrip())
    for note in notes:
        print(f"  {note}")
    print(end="", flush=True)


def plain(value):
    """Figures as JSON has them, wherever they are in `value`."""
    if isinstance(value, Figure):
        return value.json()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value
