// The legend above the conversation: each label's style, and how often the newest answer has it.

import { byId, element } from "./element.js";
import { LABELS } from "./labels.js";

const counts = {};

export function drawLegend() {
  const list = byId("legend");
  for (const [label, { short, meaning }] of Object.entries(LABELS)) {
    counts[label] = element("span", { class: "count" });
    list.append(
      element(
        "li",
        { title: meaning },
        element("span", { class: `t ${label}` }, label),
        element("span", { class: "meaning" }, short),
        counts[label],
      ),
    );
  }
}

/** Shows the counts of an answer; a server without LVSPEC has none, and then there is nothing to explain. */
export function countLabels(numbers) {
  const found = numbers?.accepted ? { ...numbers.accepted, bonus: numbers.bonus } : {};
  for (const [label, place] of Object.entries(counts)) place.textContent = found[label] ?? "";
}

export function showLegend(isShown) {
  byId("legend").hidden = !isShown;
}
