// The address table and the events.

import { byId, element, setText } from "./words.js";

const AT_FIRST = 200; // rows, until all are asked for
const KEPT = 300; // events
const SOURCES = {
  config: "the configuration",
  netlink: "the namespace",
  dhcp: "a DHCP lease",
  dad: "duplicate address detection",
  arp: "ARP from the machine",
  nd: "neighbour discovery from the machine",
  traffic: "traffic from the machine",
};
const PROBLEMS = new Set(["duplicate", "master", "refused"]);
const LOUD = new Set(["state", "duplicate", "refused", "guard", "lost"]);

export class Addresses {
  constructor() {
    this.rows = [];
    this.all = false;
    this.drawn = "";
    byId("address-filter").addEventListener("input", () => this.draw());
    byId("address-more").addEventListener("click", () => {
      this.all = true;
      this.draw();
    });
  }

  setStatus(list) {
    this.rows = list.flatMap((one) => one.ports.flatMap((port) => port.addresses));
    this.draw();
  }

  draw() {
    const wanted = byId("address-filter").value.trim().toLowerCase();
    const text = (row) => `${row.address} ${row.switch}/${row.port} ${row.state} ${row.source} ${SOURCES[row.source]}`.toLowerCase();
    const found = wanted ? this.rows.filter((row) => text(row).includes(wanted)) : this.rows;
    const shown = this.all ? found : found.slice(0, AT_FIRST);
    setText(byId("address-count"), `${shown.length} of ${this.rows.length}`);
    byId("address-more").hidden = shown.length === found.length;
    const drawn = JSON.stringify(shown);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    byId("address-rows").replaceChildren(...shown.map(row));
  }
}

function row(one) {
  const address = element("th", "mono", one.address);
  address.scope = "row";
  const state = element("td", PROBLEMS.has(one.state) ? "bad" : "", one.state);
  return element("tr", "", address, element("td", "", `${one.switch}/${one.port}`), state,
    element("td", "", SOURCES[one.source] ?? one.source), element("td", "", one.reason));
}

export class Events {
  add(event) {
    const list = byId("event-rows");
    const clock = new Date(event.time * 1000);
    const time = element("time", "quiet", clock.toTimeString().slice(0, 8));
    time.dateTime = clock.toISOString();
    const kind = element("span", LOUD.has(event.event) ? "kind wait" : "kind", event.event);
    list.prepend(element("li", "", time, "  ", kind, "  ", event.text));
    while (list.childElementCount > KEPT) list.lastElementChild.remove();
    byId("event-none").hidden = true;
    byId("event-list").hidden = false;
    if (event.event === "state") setText(byId("announced"), event.text); // for those who listen to the page
  }
}
