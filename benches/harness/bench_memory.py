"""How much memory many flows at once take."""

from . import bench_read
from .figures import Figure, pick, rounds, table


def section(ctx):
    names = ("w1s", "w3", "w4")
    jobs = {
        name: lambda name=name: bench_read.malakocut(ctx, ctx.capture(name), ctx.truth(name))
        for name in names
    }
    results = rounds(1 if ctx.quick else 3, jobs)
    out, rows = {}, []
    base = pick(results["w1s"], "rss", "bytes")
    for name in names:
        flows = ctx.truth(name)["biflows"]
        rss = pick(results[name], "rss", "bytes")
        out[name] = {"rss": rss, "flows": flows}
        per_flow = "-"
        if name != "w1s":
            each = Figure([(v - base.median) / flows for v in rss.values], "bytes/flow")
            out[name]["per_flow"] = each
            per_flow = each.text(1, 0)
        rows.append([name, f"{flows:,}", rss.text(1e6, 0), per_flow])
    table(
        "memory: --read with --max-flows 1000000",
        ["", "flows at once", "peak RSS MB", "bytes per flow above w1s"],
        rows,
    )
    return out
