// The switches as in the project's README: ports on the daemon, the daemon on the master, the master on the network.

import { addressesOf, element, isLinkLocal, quality, setText, short } from "./words.js";

const SHOWN = 3; // addresses in a port's box
const FEW = 4; // ports that stand in one row

export class Drawing {
  /** `choose(switchName, port)` when a port is opened. */
  constructor(place, choose) {
    this.place = place;
    this.choose = choose;
    this.switches = new Map(); // name -> Switch
    this.rates = new Map(); // SWITCH/PORT -> row
  }

  setStatus(list) {
    for (const [name, one] of this.switches) {
      if (!list.some((each) => each.name === name)) {
        one.root.remove();
        this.switches.delete(name);
      }
    }
    for (const each of list) {
      if (!this.switches.has(each.name)) {
        const made = new Switch(each.name, this.choose);
        this.switches.set(each.name, made);
        this.place.append(made.root);
      }
      this.switches.get(each.name).setStatus(each, this.rates);
    }
  }

  setRates(rows) {
    this.rates = new Map(rows.map((row) => [row[0], row]));
    for (const one of this.switches.values()) one.setRates(this.rates);
  }

  select(key) {
    for (const one of this.switches.values()) one.select(key);
  }
}

class Switch {
  constructor(name, choose) {
    this.name = name;
    this.choose = choose;
    this.ports = new Map(); // name -> { item, box, lines, rates, text, status }
    this.list = element("ul", "ports");
    this.title = element("h2");
    this.bar = element("div", "bar");
    this.master = element("div", "bar master");
    this.trunks = [element("div", "trunk"), element("div", "trunk"), element("div", "trunk")];
    this.where = element("span", "place");
    const host = element("div", "host", this.where, this.list, this.trunks[0], this.bar, this.trunks[1], this.master);
    this.root = element("section", "switch", this.title, host, this.trunks[2], element("div", "network", "network"));
    for (const trunk of this.trunks) trunk.setAttribute("aria-hidden", "true");
    this.list.addEventListener("keydown", (event) => this.move(event));
  }

  setStatus(status, rates) {
    const waits = status.ports.filter((port) => port.state !== "up").length;
    setText(this.title, `Switch ${status.name}`);
    this.root.setAttribute("aria-label", `Switch ${status.name}`);
    this.list.setAttribute("aria-label", `Ports of ${status.name}`);
    setText(this.where, status.netns ? `namespace ${status.netns}` : "host");
    setText(this.bar, `ipvswd: ${status.mode} ${status.flag}, ${status.ports.length} ports${waits ? `, ${waits} not up` : ""}`);
    this.state = status;
    const names = new Set(status.ports.map((port) => port.name));
    for (const [name, one] of this.ports) {
      if (!names.has(name)) {
        one.item.remove();
        this.ports.delete(name);
      }
    }
    const added = document.createDocumentFragment();
    for (const port of status.ports) {
      if (!this.ports.has(port.name)) added.append(this.makePort(port.name));
      this.fill(this.ports.get(port.name), port);
    }
    this.list.append(added);
    this.list.classList.toggle("few", names.size <= FEW);
    const first = this.list.querySelector(".port");
    if (first && !this.list.querySelector('.port[tabindex="0"]')) first.tabIndex = 0;
    this.setRates(rates);
  }

  makePort(name) {
    const box = element("button");
    box.type = "button";
    box.tabIndex = -1;
    box.setAttribute("aria-pressed", "false");
    const lines = [0, 1, 2, 3].map(() => element("span"));
    const rates = element("span", "rates");
    lines[0].className = "name";
    lines[1].className = "quiet";
    lines[2].className = lines[3].className = "mono";
    box.append(...lines, rates);
    const item = element("li", "", box);
    const one = { item, box, lines, rates, text: "", status: null, still: false };
    box.addEventListener("click", () => this.choose(this.name, one.status));
    this.ports.set(name, one);
    return item;
  }

  fill(one, port) {
    const text = JSON.stringify(port);
    if (text === one.text) return;
    one.text = text;
    one.status = port;
    const [name, where, first, second] = one.lines;
    setText(name, port.name);
    const place = port.netns || port.kind;
    setText(where, port.state === "up" ? `${port.ifname ? `${port.ifname} in ` : ""}${place}` : `${port.state}: ${port.reason || place}`);
    const addresses = addressesOf(port).filter((address) => !isLinkLocal(address.address));
    const shown = addresses.slice(0, SHOWN).map((address) => address.address + (address.state === "owned" ? "" : ` (${address.state})`));
    setText(first, shown[0] ?? "no address");
    setText(second, shown.slice(1).join(", ") + (addresses.length > SHOWN ? `, and ${addresses.length - SHOWN}` : ""));
    one.box.className = `port ${quality(port.state)}`;
    one.box.title = addresses.map((address) => address.address).join("\n");
  }

  setRates(rates) {
    let moving = false;
    for (const [name, one] of this.ports) {
      const row = rates.get(`${this.name}/${name}`);
      moving ||= Boolean(row);
      if (!row && one.still) continue;
      one.still = !row;
      one.item.classList.toggle("moving", Boolean(row));
      setText(one.rates, rateText(row));
      one.rates.classList.toggle("bad", Boolean(row && row[5]));
    }
    const wire = rates.get(`${this.name}/master`);
    for (const trunk of this.trunks) trunk.classList.toggle("moving", trunk === this.trunks[0] ? moving : Boolean(wire));
    const status = this.state;
    if (!status) return;
    const state = status.state === "up" ? (status.carrier ? "" : ", no carrier") : `, ${status.state}: ${status.reason}`;
    setText(this.master, `${status.master}, one MAC address ${status.mac || "(none)"}${state}  ${rateText(wire)}`);
    this.master.classList.toggle("bad", Boolean(state));
  }

  select(key) {
    for (const [name, one] of this.ports) {
      one.box.setAttribute("aria-pressed", String(key === `${this.name}/${name}`));
    }
  }

  /** Arrow keys, Home and End go from port to port: TAB meets one of them. */
  move(event) {
    const boxes = [...this.list.querySelectorAll(".port")];
    const at = boxes.indexOf(document.activeElement);
    if (at < 0) return;
    const top = (box) => box.parentElement.offsetTop;
    const across = Math.max(boxes.findIndex((box) => top(box) > top(boxes[0])), 1);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: boxes.length - 1 - at };
    const next = boxes[at + (steps[event.key] ?? NaN)];
    if (!next) return;
    event.preventDefault();
    boxes[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** As the switch sees it: rx is what it read from the device. */
export function rateText(row) {
  if (!row) return "rx 0  tx 0";
  const drops = row[5] ? `  drops ${short(row[5])}` : "";
  return `rx ${short(row[2])}  tx ${short(row[4])} bit/s${drops}`;
}
