// The page: signs in, follows the stream, and gives each message to the parts that it is about.

import { Drawing, rateText } from "./drawing.js";
import { Drops } from "./drops.js";
import { Addresses, Events } from "./tables.js";
import { Trace } from "./trace.js";
import { addressesOf, byId, element, setText } from "./words.js";

const drops = new Drops();
const addresses = new Addresses();
const events = new Events();
const trace = new Trace(askTrace);
const drawing = new Drawing(byId("switches"), openPort);
let switches = [];
let opened = ""; // SWITCH/PORT
let source = null;

async function post(path, words) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(words) });
  const text = await answer.text();
  return { status: answer.status, ok: answer.ok, answer: text ? JSON.parse(text) : {} };
}

async function askTrace(words) {
  try {
    const found = await post("trace", words);
    if (found.status === 401) showSignIn(found.answer.error);
    return found;
  } catch (error) {
    return { ok: false, answer: { error: `no answer: ${error.message}` } };
  }
}

// ------------------------------------------------------------------------ the session

async function signIn(token) {
  const { ok, answer } = await post("session", { token });
  if (ok) follow();
  else showSignIn(answer.error);
}

function showSignIn(why) {
  source?.close();
  byId("content").hidden = true;
  byId("signin").hidden = false;
  setText(byId("signin-error"), why);
  setText(byId("connection"), "not signed in");
  byId("token").focus();
}

byId("signin-form").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(byId("token").value.trim());
});

// ------------------------------------------------------------------------ the stream

function follow() {
  source?.close();
  source = new EventSource("stream");
  const on = (kind, take) => source.addEventListener(kind, (message) => take(JSON.parse(message.data)));
  source.addEventListener("open", () => {
    byId("signin").hidden = true;
    byId("content").hidden = false;
    setText(byId("connection"), "connected");
  });
  source.addEventListener("error", async () => {
    setText(byId("connection"), "not connected: is `ipvsw web` still running?");
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    const { status, answer } = await post("trace", {}).catch(() => ({ status: 0 }));
    if (status === 401) showSignIn(answer.error);
    else setTimeout(follow, 2000);
  });
  on("status", (list) => {
    performance.mark("ipvsw-status");
    setStatus(list);
    performance.measure("ipvsw-drawn", "ipvsw-status");
  });
  on("rates", (rates) => {
    drawing.setRates(rates.rows);
    drops.add(rates.time, rates.drops);
    fillPort();
  });
  on("history", (readings) => drops.setHistory(readings));
  on("event", (event) => events.add(event));
  on("away", (why) => {
    setText(byId("connection"), why ? `the daemon does not answer: ${why}` : "connected");
    byId("connection").className = why ? "bad" : "";
  });
}

function setStatus(list) {
  switches = list;
  drawing.setStatus(list);
  addresses.setStatus(list);
  trace.setStatus(list);
  fillPort();
  document.documentElement.dataset.drawn = String(list.reduce((sum, one) => sum + one.ports.length, 0));
}

// ------------------------------------------------------------------------ one port

function openPort(switchName, port) {
  opened = `${switchName}/${port.name}`;
  fillPort();
  byId("port").hidden = false;
  byId("port").focus();
}

function fillPort() {
  drawing.select(opened);
  if (!opened) return;
  const at = opened.indexOf("/");
  const port = switches.find((one) => one.name === opened.slice(0, at))?.ports.find((one) => one.name === opened.slice(at + 1));
  if (!port) {
    closePort();
    return;
  }
  setText(byId("port-title"), `Port ${opened}`);
  const facts = {
    State: port.reason ? `${port.state}: ${port.reason}` : port.state,
    Kind: port.kind,
    Namespace: port.netns,
    Interface: port.ifname,
    "MAC address": port.mac,
    MTU: port.mtu ? String(port.mtu) : "",
    Addresses: addressesOf(port).map((one) => `${one.address} (${one.state}, ${one.source})`).join(", "),
    Guards: port.guards.join(", ") || "none",
    Path: port.path,
    Offloads: port.offloads.join(", "),
    Label: port.label,
    "Rates now": rateText(drawing.rates.get(opened)),
    "Most drops": drawing.rates.get(opened)?.[6] ?? "",
  };
  const shown = Object.entries(facts).filter(([, value]) => value);
  const text = JSON.stringify(shown);
  if (text === fillPort.text) return;
  fillPort.text = text;
  byId("port-facts").replaceChildren(...shown.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}

function closePort() {
  const box = document.querySelector('.port[aria-pressed="true"]');
  opened = "";
  byId("port").hidden = true;
  drawing.select("");
  box?.focus();
}

byId("port-close").addEventListener("click", closePort);
byId("port-trace").addEventListener("click", () => trace.from(opened));
byId("port").addEventListener("keydown", (event) => {
  if (event.key === "Escape") closePort();
});

// ------------------------------------------------------------------------ begin

const token = location.hash.slice(1);
if (token.length > 20) {
  history.replaceState(null, "", location.pathname); // it is worth nothing any more, and nobody's to see
  signIn(token);
} else {
  follow();
}
