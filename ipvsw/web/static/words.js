// What several parts of the page need: elements, numbers, names.

/** An element with a class and text, or with children. Text is never markup. */
export function element(name, className = "", ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Set a text only if it is another: what does not change costs no layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** At most four characters: 0, 12, 3.4k, 120M. */
export function short(value) {
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (value < 999.5) return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)}${unit}`;
    value /= 1000;
  }
  return `${Math.round(value)}P`;
}

/** good, wait or bad, for a port's or a master's state. */
export function quality(state) {
  if (state === "up") return "good";
  return state === "waiting" || state === "down" ? "wait" : "bad";
}

export const isLinkLocal = (address) => /^fe[89ab]/i.test(address);

/** A port's addresses, those that are seen on the network first. */
export function addressesOf(port) {
  const seen = port.addresses.filter((one) => !isLinkLocal(one.address));
  return [...seen, ...port.addresses.filter((one) => isLinkLocal(one.address))];
}
