"use strict";

// All that is shown came from the agent, and names in it from whoever may make pods and
// policies: it goes into the page as text and in no other way.

const pause = 2000;      // milliseconds between two questions
const history = 120;     // rates that a chart shows
const maxRows = 200;     // rows of a table
const maxDrops = 100;

const byId = (id) => document.getElementById(id);

function element(tag, text, name) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (name) e.className = name;
  return e;
}

// row makes a row of cells: each is a text, or [text, class], or an element.
function row(...cells) {
  const tr = element("tr");
  for (const c of cells) {
    if (c instanceof Element) {
      const td = element("td");
      td.append(c);
      tr.append(td);
    } else {
      tr.append(Array.isArray(c) ? element("td", c[0], c[1]) : element("td", c));
    }
  }
  return tr;
}

function fill(id, rows, none) {
  const table = byId(id);
  table.tBodies[0].replaceChildren(...rows.slice(0, maxRows));
  table.hidden = rows.length === 0;
  byId(none).hidden = rows.length !== 0;
}

function number(n) { return Math.round(n).toLocaleString("en"); }

function rate(n) {
  if (n === 0) return "0";
  return n < 10 ? n.toFixed(1) : number(n);
}

function bits(bytes) {
  let n = bytes * 8;
  for (const unit of ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]) {
    if (n < 1000 || unit === "Gbit/s") return (n < 10 && n > 0 ? n.toFixed(1) : number(n)) + " " + unit;
    n /= 1000;
  }
}

function size(bytes) { return bytes < 10000 ? number(bytes) + " B" : number(bytes / 1000) + " kB"; }

function count(n, one, many) { return number(n) + " " + (n === 1 ? one : many); }

function span(milliseconds) {
  const s = Math.max(0, Math.round(milliseconds / 1000));
  if (s < 120) return s + " s";
  if (s < 7200) return Math.floor(s / 60) + " min";
  if (s < 172800) return Math.floor(s / 3600) + " h";
  return Math.floor(s / 86400) + " d";
}

// clock is the time of day here, and the day if it is another one.
function clock(time) {
  const t = new Date(time), today = new Date().toDateString() === t.toDateString();
  return (today ? "" : t.toLocaleDateString() + " ") + t.toLocaleTimeString([], { hour12: false });
}

function ago(time, now) { return time ? span(now - Date.parse(time)) + " ago" : "–"; }

const sum = (d) => d.ingress + d.egress;

// Rates are differences of counts. A count that is less than before has begun anew.
class Rates {
  last = new Map();
  of(key, value, seconds) {
    const before = this.last.get(key);
    this.last.set(key, value);
    if (before === undefined || seconds <= 0 || value < before) return 0;
    return (value - before) / seconds;
  }
}

class Chart {
  values = [];
  constructor(name) {
    this.svg = byId(name + "-chart");
    this.label = byId(name + "-rate");
    this.area = this.path("area");
    this.line = this.path("line");
  }
  path(name) {
    const p = document.createElementNS("http://www.w3.org/2000/svg", "path");
    p.setAttribute("class", name);
    this.svg.append(p);
    return p;
  }
  add(value) {
    this.values.push(value);
    if (this.values.length > history) this.values.shift();
    const top = Math.max(1, ...this.values);
    const points = this.values.map((v, i) => {
      const x = 300 - (this.values.length - 1 - i) * 300 / (history - 1);
      return x.toFixed(1) + "," + (58 - 54 * v / top).toFixed(1);
    });
    const first = points[0].split(",")[0];
    this.line.setAttribute("d", "M" + points.join("L"));
    this.area.setAttribute("d", "M" + first + ",60L" + points.join("L") + "L300,60Z");
    this.label.textContent = rate(value) + " per second, at most " + rate(Math.max(...this.values));
  }
}

const charts = { allowed: new Chart("allowed"), denied: new Chart("denied") };
const rates = new Rates();
let lastTime = 0;

function showSync(text, name) {
  const s = byId("sync");
  s.textContent = text;
  s.className = name;
}

function showFacts(s, now) {
  const away = s.source.filter((k) => !k.connected).map((k) => k.kind);
  const facts = [
    ["Pods of this node", number(s.objects.localPods)],
    ["Policies for them", s.policies.length + " of " + number(s.objects.policies)],
    ["Pods of the cluster", number(s.objects.pods)],
    ["Shaped pods", s.bandwidth.enabled ? number(s.bandwidth.shaped) : "off"],
    ["Source of objects", away.length === 0 ? "answers" : "does not give " + away.join(", ")],
    ["Last sync", ago(s.lastSync, now)],
    ["Generation", s.generation || "–"],
    ["Agent", s.version + ", for " + span(now - Date.parse(s.started))],
  ];
  byId("facts").replaceChildren(...facts.map(([name, value]) => {
    const d = element("div");
    d.append(element("span", name), element("b", value));
    return d;
  }));
}

function problemsOf(s) {
  const all = s.missing.map((m) => ["Not in sync", m]);
  const known = new Set(s.missing);
  for (const c of s.conditions) if (!known.has(c.message)) all.push([c.reason, c.message]);
  for (const k of s.source) if (k.error && !known.has(k.error)) {
    known.add(k.error); // of several kinds, the same
    all.push([k.kind, k.error]);
  }
  for (const p of s.invalidPolicies) all.push(["Policy " + p.namespace + "/" + p.name, p.message]);
  for (const p of s.bandwidth.problems) all.push([(p.pod ? "Pod " + p.namespace + "/" + p.pod : "Namespace " + p.namespace), p.message]);
  for (const p of s.pools.problems) all.push(["Pool " + p.pool, p.message]);
  if (s.countsError) all.push(["Counts", s.countsError]);
  if (s.dropsError) all.push(["Drops", s.dropsError]);
  if (s.bandwidth.error) all.push(["Bandwidth", s.bandwidth.error]);
  return all;
}

function showProblems(s) {
  const all = problemsOf(s);
  byId("problems").hidden = all.length === 0;
  byId("problems").querySelector("ul").replaceChildren(...all.slice(0, maxRows).map(([what, text]) => {
    const li = element("li");
    li.append(element("b", what + ": "), text);
    return li;
  }));
}

function showPolicies(s, now, seconds) {
  fill("policies", s.policies.map((p) => {
    const key = p.namespace + "/" + p.name;
    const allowed = sum(p.allowedConnections), denied = sum(p.deniedPackets);
    const perSecond = [rates.of("a " + key, allowed, seconds), rates.of("d " + key, denied, seconds)];
    return row(key, [number(p.pods), "n"], p.inForce ? ["for " + span(now - Date.parse(p.since)), "good when"] : ["not yet", "bad when"],
      [number(allowed), "n"], [rate(perSecond[0]), "n dim"], [number(denied), denied ? "n bad" : "n"], [rate(perSecond[1]), "n dim"]);
  }), "no-policies");
  byId("policy-count").textContent = s.policies.length > maxRows ? "the first " + maxRows + " of " + s.policies.length : "";
}

// usage is a bar, of another colour above high.
function usage(value, max, high) {
  const m = element("meter"), all = element("span");
  m.max = max;
  m.value = Math.min(value, max);
  m.high = high;
  const percent = max > 0 ? 100 * value / max : 0;
  all.append(m, element("small", percent > 0 && percent < 1 ? "<1 %" : Math.round(percent) + " %"));
  return all;
}

function showBandwidth(s, seconds) {
  fill("shaped", s.bandwidth.pods.map((p) => {
    const key = p.namespace + "/" + p.pod;
    const now = rates.of("b " + p.direction + key, p.bytes, seconds);
    return row(key, p.direction, [bits(p.limitBytesPerSecond), "n"], [bits(now), "n"], usage(now, p.limitBytesPerSecond, p.limitBytesPerSecond),
      [size(p.backlogBytes), "n"], [number(p.dropped), "n"]);
  }), "no-shaped");
  byId("shaped-count").textContent = s.bandwidth.enabled ? "" : "is not shaped by this agent";
}

function showPools(s) {
  fill("pools", s.pools.use.map((p) => row(p.pool, p.origin, p.family,
    [p.addresses < 1e9 ? number(p.addresses) : "2^" + Math.round(Math.log2(p.addresses)), "n"], [number(p.allocated), "n"],
    usage(p.allocated, p.addresses, 0.9 * p.addresses))), "no-pools");
  byId("pool-count").textContent = s.pools.implicit ? "the nodes' podCIDRs" :
    s.pools.podsOutside ? count(s.pools.podsOutside, "pod is", "pods are") + " outside of them" : "";
}

function show(s) {
  const now = Date.parse(s.time);
  const seconds = lastTime ? (now - lastTime) / 1000 : 0;
  lastTime = now;
  document.title = s.node + " – Selvage";
  byId("node").textContent = s.node;
  const since = " for " + span(now - Date.parse(s.since));
  if (s.inSync) showSync("in sync" + since, "good");
  else showSync("not in sync" + since, "bad");
  showFacts(s, now);
  showProblems(s);
  charts.allowed.add(rates.of("allowed", sum(s.counts.allowedConnections), seconds));
  charts.denied.add(rates.of("denied", sum(s.counts.deniedPackets) + s.counts.unknownPackets, seconds));
  showPolicies(s, now, seconds);
  showBandwidth(s, seconds);
  showPools(s);
}

async function follow() {
  for (;;) {
    try {
      const response = await fetch("status", { cache: "no-store" });
      if (!response.ok) throw new Error(response.statusText);
      show(await response.json());
    } catch (e) {
      showSync("the agent does not answer", "bad");
    }
    await new Promise((done) => setTimeout(done, pause));
  }
}

let drops = [];
let leftOut = 0;

function end(e) { return e.pod ? e.namespace + "/" + e.pod : e.address; }

function showDrops() {
  fill("drops", drops.map((d) => row([clock(d.time), "when"], d.direction, end(d.source), end(d.destination),
    [d.port ? d.port + "/" + d.protocol : d.protocol, "when"],
    d.reason === "UnknownPod" ? ["no such pod is known", "dim"] : d.policies.map((p) => p.namespace + "/" + p.name).join(", ") || "–",
    [number(d.count), "n"])), "no-drops");
  byId("drop-count").textContent = "samples, the last " + maxDrops + (leftOut ? "; " + leftOut + " were left out" : "");
}

function take(line) {
  if (!line.trim()) return;
  const d = JSON.parse(line);
  if (d.leftOut) leftOut += d.leftOut;
  else drops.unshift(d);
  drops.length = Math.min(drops.length, maxDrops);
}

// An agent that has too many who follow its drops says so by an error: it is tried again.
async function followDrops() {
  for (;;) {
    try {
      const response = await fetch("drops?follow=1", { cache: "no-store" });
      if (!response.ok) throw new Error(response.statusText);
      drops = []; // the last ones come first
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        showDrops();
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        lines.forEach(take);
      }
    } catch (e) {
      byId("drop-count").textContent = "cannot be followed at the moment";
      byId("no-drops").hidden = true;
    }
    await new Promise((done) => setTimeout(done, 2 * pause));
  }
}

follow();
followDrops();
