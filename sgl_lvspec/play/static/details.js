// What is known of one token, for hover, focus and touch.

import { byId, element } from "./element.js";
import { isLoosened, LABELS, visible } from "./labels.js";

const HINT = "Point at a word of an answer, or go there with Tab and the arrow keys, to see what is known of it.";

const panel = () => byId("details");

const fact = (name, ...value) =>
  element("span", { class: "fact" }, element("span", { class: "quiet" }, `${name} `), ...value);

function cost(token) {
  return token.given_up === null ? "more than can be told" : `${token.given_up.toFixed(2)} nats`;
}

function relevance(token) {
  if (token.relevance !== null) return token.relevance.toFixed(2);
  return token.label === "bonus" ? "not scored: the target wrote it" : "not scored";
}

/** Shows a token. By keyboard it is read out; moving the mouse over an answer must not chatter. */
export function showDetails(token, { isSpoken }) {
  const place = panel();
  place.setAttribute("aria-live", isSpoken ? "polite" : "off");
  const meaning = LABELS[token.label]?.meaning ?? "this server tells nothing about it";
  const parts = [
    element(
      "p",
      { class: "what" },
      element("b", { class: `t ${token.label ?? ""}` }, visible(token.text)),
      element("span", { class: "name" }, ` ${token.label ?? "token"}`),
      element("span", { class: "quiet" }, ` ${meaning}`),
    ),
  ];
  if (token.label) {
    parts.push(
      element(
        "p",
        { class: "facts" },
        isLoosened(token) ? fact("the target’s own choice", element("b", {}, visible(token.choice ?? ""))) : null,
        isLoosened(token) ? fact("log-probability given up", cost(token)) : null,
        fact("relevance to the video", relevance(token)),
      ),
    );
  }
  place.replaceChildren(...parts);
  place.classList.add("full");
}

/** The place stays, with what it is for: nothing moves under the mouse when a token is left. */
export function hideDetails() {
  const place = panel();
  place.setAttribute("aria-live", "off");
  place.classList.remove("full");
  place.replaceChildren(element("p", { class: "quiet" }, HINT));
}
