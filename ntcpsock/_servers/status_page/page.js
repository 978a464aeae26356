// The status page: asks for the numbers every few seconds, and draws them.
"use strict";

const TILES = [
  ["nodes", "nodes", count],
  ["introductions", "introductions", rate],
  ["registrations", "registrations", rate],
  ["refused", "refused and dropped", rate],
  ["pairs", "relayed pairs", count],
  ["relay_bytes", "relayed", traffic],
  ["stun", "STUN answers", rate],
  ["connections", "TCP connections", count],
  ["memory", "memory", bytes],
];
const NATS = [
  "none", "endpoint-independent", "endpoint-dependent", "address-dependent", "address-and-port-dependent",
  "session-dependent", "unknown",
];
const NAT_WORDS = {
  "none": "no NAT",
  "endpoint-independent": "endpoint-independent",
  "endpoint-dependent": "endpoint-dependent",
  "address-dependent": "address-dependent",
  "address-and-port-dependent": "address- and port-dependent",
  "session-dependent": "session-dependent",
  "unknown": "unknown",
};

function whole(value) {
  return Math.round(value).toLocaleString("en-GB");
}
function count(value) {
  return [whole(value), ""];
}
function rate(value) {
  return [value && value < 10 ? value.toFixed(1) : whole(value), "/s"];
}
function scaled(value, units) {
  let index = 0;
  while (value >= 1000 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return [value && value < 10 && index ? value.toFixed(1) : whole(value), units[index]];
}
function bytes(value) {
  return scaled(value, ["B", "kB", "MB", "GB", "TB"]);
}
function traffic(value) {
  return scaled(value, ["B/s", "kB/s", "MB/s", "GB/s"]);
}
function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [unit, size] = units[first];
  const big = Math.floor(seconds / size);
  if (first === units.length - 1 || big >= 10) return `${big} ${unit}`;
  const [small, smaller] = units[first + 1];
  return `${big} ${unit} ${Math.floor((seconds % size) / smaller)} ${small}`;
}
function percent(part, all) {
  return all ? `${Math.round((100 * part) / all)}%` : "";
}

function fill(id, title, ...content) {
  const place = document.getElementById(id);
  place.hidden = content.length === 0;
  if (content.length) place.replaceChildren(element("h2", {}, title), ...content);
}

function showTiles(data) {
  const tiles = [];
  for (const [key, name, format] of TILES) {
    if (!(key in data.now)) continue;
    const past = data.history[key] || [];
    // A counter's value of now says nothing; its latest rate does.
    const isGauge = format === count || format === bytes;
    const [value, unit] = format(isGauge ? data.now[key] : past.length ? past[past.length - 1] : 0);
    tiles.push(element("div", { class: "tile", id: `tile-${key}` },
      element("span", { class: "name" }, name),
      element("span", { class: "value" }, value, element("span", { class: "unit" }, unit)),
      sparkline(past, `${name}, the last ${duration(past.length * data.interval)}`),
    ));
  }
  document.getElementById("tiles").replaceChildren(...tiles);
}

function showTechniques(outcomes) {
  const rows = outcomes.techniques.map(({ technique, kind, count: number }) => ({
    name: kind === technique ? technique : `${technique} (${kind})`,
    value: number,
    kind: kind === "relay" ? "relay" : "direct",
  }));
  if (outcomes.failed) rows.push({ name: "none: failed", value: outcomes.failed, kind: "failed" });
  const all = rows.reduce((sum, row) => sum + row.value, 0);
  if (!all) {
    fill("techniques", "What connects", element("p", { class: "hint" }, "No node has told of a dial yet."));
    return;
  }
  const most = Math.max(...rows.map((row) => row.value));
  for (const row of rows) row.text = `${whole(row.value)} · ${percent(row.value, all)}`;
  fill("techniques", "What connects", bars(rows, most),
    element("p", { class: "hint" }, `${whole(all)} dials, as nodes have told of them since the start`));
}

function showSeconds(outcomes) {
  const all = outcomes.seconds.reduce((sum, [, number]) => sum + number, 0);
  if (!all) {
    fill("seconds", "Time to connect");
    return;
  }
  fill("seconds", "Time to connect", histogram(outcomes.seconds, "Dials by the time that they took"),
    element("p", { class: "hint" }, "milliseconds, then seconds, up to which a dial took"));
}

function showPairs(outcomes) {
  if (!outcomes.pairs.length) {
    fill("pairs", "By pair of NATs");
    return;
  }
  const known = new Map(outcomes.pairs.map((pair) => [`${pair.dialer} ${pair.listener}`, pair]));
  const dialers = NATS.filter((nat) => outcomes.pairs.some((pair) => pair.dialer === nat));
  const listeners = NATS.filter((nat) => outcomes.pairs.some((pair) => pair.listener === nat));
  const body = dialers.map((dialer) => element("tr", {}, element("th", { scope: "row" }, NAT_WORDS[dialer]),
    ...listeners.map((listener) => {
      const pair = known.get(`${dialer} ${listener}`);
      if (!pair) return element("td", {}, "·");
      const all = pair.direct + pair.relay + pair.failed;
      const cell = element("td", {
        class: "some", title: `${pair.direct} direct, ${pair.relay} over a relay, ${pair.failed} failed`,
      }, element("b", {}, percent(pair.direct, all)), element("small", {}, `of ${whole(all)} direct`));
      const worst = pair.failed / all, relayed = pair.relay / all;
      const colour = worst > 0.1 ? "--failed" : relayed > 0.5 ? "--relay" : "--direct";
      cell.style.background = `var(${colour})`;
      return cell;
    })));
  fill("pairs", "By pair of NATs", element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, element("th", { class: "corner" }, "dialer ↓  listener →"),
      ...listeners.map((nat) => element("th", { scope: "col" }, NAT_WORDS[nat])))),
    element("tbody", {}, ...body))),
    element("p", { class: "hint" },
      "how the NAT of either side maps (RFC 4787). Green: mostly direct; amber: mostly over a relay; red: more than one in ten fail"));
}

function showRelays(relays) {
  if (!relays.length) {
    fill("relays", "Relays");
    return;
  }
  fill("relays", "Relays that nodes are told",
    bars(relays.map(({ place, load }) => ({
      name: place, value: load, text: `${load}%`, kind: load >= 90 ? "failed" : load >= 60 ? "relay" : "direct",
    })), 100));
}

function showRefusals(data) {
  const rows = [...(data.refused || []), ...(data.dropped || [])].filter(([, number]) => number)
    .sort((one, other) => other[1] - one[1]).slice(0, 8);
  if (!rows.length) {
    fill("refusals", "Refused and dropped");
    return;
  }
  fill("refusals", "Refused and dropped, since the start",
    bars(rows.map(([reason, number]) => ({ name: reason, value: number, text: whole(number) })), rows[0][1]));
}

function show(data) {
  document.getElementById("title").textContent = data.title;
  document.title = `${data.title}${"nodes" in data.now ? `: ${whole(data.now.nodes)} nodes` : ""}`;
  const state = document.getElementById("state");
  state.textContent = data.state;
  state.className = `state ${data.state === "ready" ? "good" : "bad"}`;
  const about = [`ntcpsock ${data.version}`, `up ${duration(data.uptime)}`];
  if ("names" in data.now) about.push(`${whole(data.now.names)} names, policy ${data.policy}`);
  if (data.bans) about.push(`${whole(data.bans)} bans`);
  if (data.key) about.push(`key ${data.key}`);
  document.getElementById("about").textContent = about.join(" · ");
  showTiles(data);
  if (data.outcomes) {
    showTechniques(data.outcomes);
    showSeconds(data.outcomes);
    showPairs(data.outcomes);
  }
  showRelays(data.relays || []);
  showRefusals(data);
  document.getElementById("updated").textContent = `as of ${new Date().toLocaleTimeString("en-GB")}`;
}

async function update() {
  let pause = 5000;
  try {
    const answer = await fetch("/status/data.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const data = await answer.json();
    pause = data.interval * 1000;
    show(data);
  } catch (error) {
    const state = document.getElementById("state");
    state.textContent = `no answer: ${error.message}`;
    state.className = "state bad";
  }
  setTimeout(next, pause);
}

// Nobody draws for a tab that nobody sees.
function next() {
  if (document.visibilityState === "visible") update();
  else document.addEventListener("visibilitychange", update, { once: true });
}

update();
