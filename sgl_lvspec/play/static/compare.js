// The strict answer beside the loose one, with what differs marked, and how fast each came.

import * as api from "./api.js";
import { element } from "./element.js";

const speed = (numbers) => (numbers.tokens_per_s ? `${numbers.tokens_per_s.toFixed(1)} tokens/s` : "came in one piece");

/** How many times as fast the loose answer came; null where one of them came in one piece. */
export function speedup(strict, loose) {
  return strict.tokens_per_s && loose.tokens_per_s ? loose.tokens_per_s / strict.tokens_per_s : null;
}

export class Comparison {
  constructor() {
    this.strict = element("div", { class: "side-text" });
    this.loose = element("div", { class: "side-text" });
    this.heads = { strict: element("span", { class: "quiet" }), loose: element("span", { class: "quiet" }) };
    this.verdict = element("p", { class: "verdict" }, "Asking once more …");
    this.node = element(
      "section",
      { class: "comparison", "aria-label": "Strict and loose answer side by side" },
      this.verdict,
      element(
        "div",
        { class: "sides" },
        element("div", {}, element("h3", {}, "Strict ", this.heads.strict), this.strict),
        element("div", {}, element("h3", {}, "Loose ", this.heads.loose), this.loose),
      ),
    );
  }

  /** Both answers: {text, numbers, finish}. */
  async show(strict, loose) {
    this.heads.strict.textContent = speed(strict.numbers);
    this.heads.loose.textContent = speed(loose.numbers);
    const parts = await api.difference(strict.text, loose.text);
    const side = (where, tag) =>
      parts.filter((part) => part.where === "same" || part.where === where)
        .map((part) => (part.where === "same" ? part.text : element(tag, {}, part.text)));
    this.strict.replaceChildren(...side("strict", "del"));
    this.loose.replaceChildren(...side("loose", "ins"));
    const num = parts.filter((part, at) => part.where !== "same" && (at === 0 || parts[at - 1].where === "same")).length;
    const differ = num === 0 ? "Word for word the same answer." : `They differ in ${num} place${num === 1 ? "" : "s"}.`;
    const ratio = speedup(strict.numbers, loose.numbers);
    const faster = ratio
      ? `Once begun, loose came ${ratio.toFixed(2)}× as fast as strict (one answer each).`
      : "Speeds cannot be compared: an answer came in one piece.";
    const strictAlready = loose.numbers.strict_reason
      ? ` The server answered strictly both times: ${loose.numbers.strict_reason}.`
      : "";
    const isCut = [strict, loose].some((answer) => answer.finish && answer.finish !== "stop");
    const cut = isCut ? " An answer was cut off: what stands at the end of one may be missing from the other." : "";
    this.verdict.textContent = `${differ} ${faster}${strictAlready}${cut}`;
  }

  fail(message) {
    this.verdict.textContent = message;
    this.verdict.classList.add("wrong");
  }
}
