// Drops by reason over the last minutes: a chart, and the same as a table.

import { byId, element, setText, short } from "./words.js";

const SPAN = 300; // seconds
const COLOURS = 5; // reasons that have one of their own; the rest share the last
const SVG = "http://www.w3.org/2000/svg";

export class Drops {
  constructor() {
    this.readings = []; // [seconds since the epoch, { reason: a second's }]
    this.order = []; // reasons, as they came: a colour stays with its reason
  }

  setHistory(readings) {
    this.readings = [];
    for (const [time, drops] of readings) this.keep(time, drops);
    this.draw();
  }

  add(time, drops) {
    this.keep(time, drops);
    this.draw();
  }

  keep(time, drops) {
    this.readings.push([time, drops]);
    while (this.readings[0][0] < time - SPAN) this.readings.shift();
    for (const reason of Object.keys(drops)) if (!this.order.includes(reason)) this.order.push(reason);
  }

  draw() {
    const sums = new Map();
    this.readings.forEach(([time, drops], at) => {
      const seconds = at ? time - this.readings[at - 1][0] : 2;
      for (const [reason, rate] of Object.entries(drops)) sums.set(reason, (sums.get(reason) ?? 0) + rate * seconds);
    });
    this.order = this.order.filter((reason) => sums.has(reason));
    this.drawChart();
    this.drawTable(sums);
  }

  colour(reason) {
    return `reason${Math.min(this.order.indexOf(reason), COLOURS - 1)}`;
  }

  drawChart() {
    const totals = this.readings.map(([, drops]) => Object.values(drops).reduce((sum, one) => sum + one, 0));
    const most = Math.max(1, ...totals);
    const last = this.readings.at(-1)?.[0] ?? 0;
    const bars = [];
    this.readings.forEach(([time, drops], at) => {
      const left = SPAN - (last - (this.readings[at - 1]?.[0] ?? time - 2));
      const width = SPAN - (last - time) - left;
      let top = 100;
      for (const reason of this.order) {
        const height = ((drops[reason] ?? 0) / most) * 96;
        if (!height) continue;
        const bar = document.createElementNS(SVG, "rect");
        top -= height;
        for (const [key, value] of Object.entries({ x: left, y: top, width, height })) bar.setAttribute(key, value.toFixed(2));
        bar.setAttribute("class", this.colour(reason));
        bars.push(bar);
      }
    });
    byId("drops-chart").replaceChildren(...bars);
    const peak = Math.max(0, ...totals);
    setText(byId("drops-text"), peak ? `The chart's height is ${short(most)} frames a second, its width 5 minutes.` : "No frame was dropped.");
  }

  drawTable(sums) {
    const now = this.readings.at(-1)?.[1] ?? {};
    const rows = [...sums].sort((a, b) => b[1] - a[1]).map(([reason, sum]) => {
      const key = document.createElementNS(SVG, "svg");
      key.setAttribute("class", "key");
      key.setAttribute("aria-hidden", "true");
      const square = document.createElementNS(SVG, "rect");
      square.setAttribute("width", "100%");
      square.setAttribute("height", "100%");
      square.setAttribute("class", this.colour(reason));
      key.append(square);
      const name = element("th", "", key, reason);
      name.scope = "row";
      return element("tr", "", name, element("td", "number", short(now[reason] ?? 0)), element("td", "number", short(sum)));
    });
    byId("drops-rows").replaceChildren(...rows);
  }
}
