"use strict";
// The token stays in this tab: sessionStorage, never a cookie or an address.

const $ = (id) => document.getElementById(id);
const token = () => sessionStorage.getItem("token") || "";

class Refused extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    let why = `${answer.status} ${answer.statusText}`;
    try { why = (await answer.json()).error || why; } catch { /* no JSON: the status says it */ }
    throw new Refused(why);
  }
  return answer;
}

function element(tag, text, kind) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (kind) e.className = kind;
  return e;
}

// Rows of cells; a cell is text, a number (set right), or an element.
function fill(id, rows) {
  $(id).replaceChildren(...rows.map((cells) => {
    const row = element("tr");
    for (const cell of cells) {
      if (cell instanceof Node) {
        const td = element("td");
        td.append(cell);
        row.append(td);
      } else {
        const number = typeof cell === "number";
        row.append(element("td", number ? cell.toLocaleString() : cell ?? "", number ? "n" : ""));
      }
    }
    return row;
  }));
}

function size(n) {
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (n < 1000 || unit === "TB") return `${n < 10 && unit !== "B" ? n.toFixed(1) : Math.round(n)} ${unit}`;
    n /= 1000;
  }
}

const views = {
  async status() {
    const s = await (await ask("status")).json();
    $("sensor").textContent = `${s.sensor}, ${s.source}, ${s.version}`;
    const lost = s.dropped_events;
    const figures = [
      [s.uptime, "up"],
      [Math.round(s.rates.packets_per_second).toLocaleString(), "packets/s"],
      [`${size(s.rates.bits_per_second / 8)}/s`, "on the wire"],
      [s.active_flows.toLocaleString(), "live flows"],
      [s.packets.toLocaleString(), "packets"],
      [lost.toLocaleString(), "lost", lost > 0],
      [`${s.disk_free_pct} %`, "of the disk free"],
    ];
    $("figures").replaceChildren(...figures.map(([value, name, bad]) => {
      const box = element("div");
      box.append(element("b", value, bad ? "bad" : ""), element("span", name));
      return box;
    }));
    const roles = { deals: "dealer", works: "worker", journals: "journal" };
    fill("lcores", s.lcores.map((l) => [
      String(l.id),
      Object.keys(roles).filter((r) => l.role[r]).map((r) => roles[r]).join("+"),
      l.alive ? "runs" : element("span", "has ended", "bad"),
      l.packets, l.active_flows,
    ]));
    fill("drops", Object.entries(s.drops).map(([why, n]) => [why, n]));
    const j = s.journal;
    fill("journal", !j ? [["off"]] : [
      ["kept", `${size(j.kept.bytes)} in ${j.kept.segments} files, ${j.kept.hours.toFixed(1)} h`],
      ["behind the wire", `${j.lag_ms} ms`],
      ...j.watermarks.map((w) => ["safe up to", new Date(w.time_ns / 1e6).toISOString()]),
      ...Object.entries(s.journal_counts),
    ]);
    fill("exporters", (s.export?.exporters || []).map((e) => [
      e.name, e.state, e.delivered, e.waiting, e.oldest_seconds, e.dead, e.problem,
    ]));
  },

  async flows() {
    const query = new URLSearchParams({
      filter: $("filter").value, sort: $("sort").value, order: $("asc").checked ? "asc" : "desc",
      limit: $("limit").value || "100",
    });
    const f = await (await ask(`flows?${query}`)).json();
    $("count").textContent = `${f.matched.toLocaleString()} of ${f.flows.toLocaleString()} live flows, in ${f.took_ms} ms`;
    const end = (ip, port, name) => `${ip.includes(":") ? `[${ip}]` : ip}${port ? `:${port}` : ""}${name ? ` ${name}` : ""}`;
    fill("rows", f.rows.map((r) => {
      const packets = element("a", "packets");
      packets.href = `#extract/${r.flow_id}`;
      return [
        r.app_proto ? `${r.protocol} ${r.app_proto}` : r.protocol,
        end(r.src_ip, r.src_port, r.src_name), end(r.dst_ip, r.dst_port, r.dst_name),
        r.sni || r.http_host || r.dns_query || "", r.conn_state || "",
        r.packets, r.bytes, Math.round(r.duration_sec * 10) / 10, packets,
      ];
    }));
  },

  async alerts() {
    const { alerts } = await (await ask("alerts?limit=1000")).json();
    $("quiet").hidden = alerts.length > 0;
    fill("alarms", alerts.reverse().map((a) => [
      a.number, new Date(a.timestamp_ns / 1e6).toISOString(), a.event.src_ip, a.event.dest_ip,
      a.event.alert?.signature || a.event.event_type,
    ]));
  },

  async extract(flow) {
    if (flow) {
      $("ask").reset();
      $("ask").elements.flow_id.value = flow;
    }
    showCurl();
  },

  async api() {
    if ($("paths").childElementCount) return;
    const api = await (await ask("openapi.json")).json();
    const of = (x) => (x.$ref ? x.$ref.slice(2).split("/").reduce((at, part) => at[part], api) : x);
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, o] of Object.entries(methods)) {
        const box = element("details");
        const head = element("summary");
        head.append(element("code", `${method.toUpperCase()} ${path}`), ` ${o.summary}${o.security ? " (open)" : ""}`);
        box.append(head);
        if (o.description) box.append(element("p", o.description));
        const table = (title, rows) => {
          if (!rows.length) return;
          const t = element("table");
          t.append(...rows.map(([name, text]) => {
            const row = element("tr");
            const td = element("td");
            td.append(element("code", name));
            row.append(td, element("td", text));
            return row;
          }));
          box.append(element("h2", title), t);
        };
        table("Parameters", (o.parameters || []).map((p) => [p.name, p.description || ""]));
        const body = o.requestBody && of(o.requestBody.content["application/json"].schema);
        table("Body, JSON", Object.entries(body?.properties || {}).map(([name, s]) =>
          [name, [s.type || "", s.description || "", s.example ? `such as ${s.example}` : ""].filter(Boolean).join("; ")]));
        table("Answers", Object.entries(o.responses).map(([code, r]) => [code, of(r).description]));
        $("paths").append(box);
      }
    }
  },
};

function question() {
  const fields = {};
  for (const [name, value] of new FormData($("ask"))) {
    const text = value.trim();
    if (!text || name === "kind") continue;
    fields[name] = name.endsWith("_port") ? Number(text) : text;
  }
  return fields;
}

function showCurl() {
  const kind = new FormData($("ask")).get("kind");
  const body = JSON.stringify(question()).replaceAll("'", "'\\''");
  $("curl").textContent = `curl -f -H "Authorization: Bearer $MALAKO_API_TOKEN" -H 'Accept: ${kind}' \\\n` +
    `     -d '${body}' -o packets.${kind.endsWith("pcapng") ? "pcapng" : "pcap"} ${location.origin}/extract`;
}

async function extract(dry) {
  const kind = new FormData($("ask")).get("kind");
  const body = JSON.stringify({ ...question(), ...(dry && { dry_run: true }) });
  $("outcome").textContent = "...";
  const answer = await ask("extract", { method: "POST", body, headers: { Accept: kind } });
  if (dry) {
    const e = await answer.json();
    $("outcome").textContent = `${e.packets === null ? "packets known by block only" : `${e.packets.toLocaleString()} packets`}; ` +
      `about ${size(e.bytes)} to read from ${e.segments} files${e.scanned ? `, ${e.scanned} of them without an index` : ""}`;
    return;
  }
  const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") || "")?.[1] || "packets.pcap";
  // A transfer that breaks throws here: what is saved is whole.
  const file = await answer.blob();
  const link = element("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
  const facts = await (await ask(answer.headers.get("malakocut-facts").slice(1))).json();
  $("outcome").textContent = `${facts.packets.toLocaleString()} packets, ${size(facts.bytes)}, ` +
    `${facts.complete ? "complete" : "INCOMPLETE"}` +
    (facts.lost ? `; ${facts.lost.toLocaleString()} packets of all traffic never came into the journal` : "");
}

let timer;
async function show() {
  clearTimeout(timer);
  const [view, rest] = location.hash.slice(1).split("/");
  const here = views[view] ? view : "status";
  for (const e of document.querySelectorAll("section")) e.classList.toggle("here", e.id === here);
  for (const e of document.querySelectorAll("nav a")) e.classList.toggle("here", e.hash === `#${here}`);
  await attempt(() => views[here](rest));
  const again = here === "status" || here === "alerts" || (here === "flows" && $("again").checked);
  if (again) timer = setTimeout(show, 2000);
}

async function attempt(work) {
  try {
    await work();
    $("problem").hidden = true;
  } catch (e) {
    $("problem").textContent = e instanceof Refused ? e.message : `no answer: ${e.message}`;
    $("problem").hidden = false;
    $("outcome").textContent = "";
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("token").value = "";
  show();
});
$("forget").addEventListener("click", () => { sessionStorage.removeItem("token"); show(); });
$("choose").addEventListener("submit", (event) => { event.preventDefault(); show(); });
$("ask").addEventListener("input", showCurl);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => extract(event.submitter?.value === "dry"));
});
addEventListener("hashchange", show);
show();
