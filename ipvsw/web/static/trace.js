// The form that asks what would become of a frame, and the answer.

import { byId, element } from "./words.js";

const form = byId("trace-form");

export class Trace {
  /** `ask(words)` -> { ok, answer } */
  constructor(ask) {
    this.ask = ask;
    form.elements.kind.addEventListener("change", () => this.fit());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.fit();
  }

  setStatus(list) {
    const places = list.flatMap((one) => [...one.ports.map((port) => `${one.name}/${port.name}`), `${one.name}/master`, `${one.name}/host`]);
    const text = places.join("\n");
    if (text === this.places) return;
    this.places = text;
    byId("trace-places").replaceChildren(...places.map((place) => {
      const option = element("option");
      option.value = place;
      return option;
    }));
    if (!form.elements.at.value && places.length) form.elements.at.value = places[0];
  }

  from(place) {
    form.elements.at.value = place;
    byId("trace").scrollIntoView();
    form.elements.destination.focus();
  }

  /** Only the words that the kind of frame has. */
  fit() {
    const kind = form.elements.kind.value;
    for (const label of form.querySelectorAll(".made")) label.hidden = kind === "frame";
    for (const label of form.querySelectorAll(".ports")) label.hidden = kind !== "tcp" && kind !== "udp";
    for (const label of form.querySelectorAll(".bytes")) label.hidden = kind !== "frame";
  }

  words() {
    const kind = form.elements.kind.value;
    const words = { at: form.elements.at.value.trim() };
    if (kind === "frame") return { ...words, frame: form.elements.frame.value.replace(/[\s:]/g, "") };
    words.kind = kind;
    for (const name of ["source", "destination"]) {
      const value = form.elements[name].value.trim();
      if (value) words[name] = value;
    }
    const port = form.elements.destination_port.value.trim();
    if (port && (kind === "tcp" || kind === "udp")) words.destination_port = Number(port);
    return words;
  }

  async send() {
    const { ok, answer } = await this.ask(this.words());
    byId("trace-result").replaceChildren(...(ok ? describe(answer) : [element("p", "bad", answer.error)]));
  }
}

function describe(traced) {
  const verdict = element("p", traced.delivered ? "good" : "bad", `${traced.delivered ? "delivered" : "dropped"}: ${traced.outcome}: ${traced.reason}`);
  const steps = traced.steps.map((step) => element("li", "", element("span", "stage", step.stage), `  ${step.text}`));
  const receivers = traced.receivers.map((one) => {
    const same = one.frame === traced.frame;
    return element("li", same ? "" : "mono", `${one.to}: ${same ? "the frame as it was sent" : one.frame}`);
  });
  const parts = [verdict, element("ol", "", ...steps)];
  if (receivers.length) parts.push(element("h3", "", "Who gets it"), element("ul", "", ...receivers));
  return parts;
}
