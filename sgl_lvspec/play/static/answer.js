// One answer as it grows: a span for each token, which can be looked at by mouse, keyboard and touch.

import { hideDetails, showDetails } from "./details.js";
import { byId, element } from "./element.js";
import { isLoosened } from "./labels.js";

const HELP = "Answer, token by token. Arrow keys move by one, N and P by loosened token, Escape leads to the question.";

export class AnswerView {
  constructor() {
    this.tokens = [];
    this.spans = []; // with the index of their token in data-at
    this.node = element("div", {
      class: "answer", role: "group", "aria-label": HELP, "aria-busy": "true",
      onpointerover: (event) => this.#look(event, false),
      onpointerleave: () => this.#leave(),
      onfocusin: (event) => this.#look(event, true),
      onfocusout: () => this.#leave(),
      onclick: (event) => event.target.closest(".t")?.focus(),
      onkeydown: (event) => this.#move(event),
    });
  }

  add(tokens) {
    for (const token of tokens) {
      this.tokens.push(token);
      // A token without text is special, or half a character that the next one completes.
      if (!token.text && !isLoosened(token)) continue;
      const tag = isLoosened(token) ? "mark" : "span";
      const isFirst = this.spans.length === 0;
      // The blank before a word stands outside of its mark, which would look lopsided with it.
      const [, blank, word] = /^(\s*)(\S[^]*)$/.exec(token.text) ?? [null, "", token.text];
      const span = element(tag, { class: `t ${token.label ?? "unlabelled"}`, tabindex: isFirst ? "0" : "-1" }, word);
      span.dataset.at = this.tokens.length - 1;
      this.spans.push(span);
      this.node.append(blank, span);
    }
  }

  finish() {
    this.node.removeAttribute("aria-busy");
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  get numLoosened() {
    return this.tokens.filter(isLoosened).length;
  }

  #look(event, isSpoken) {
    const span = event.target.closest(".t");
    if (!span) return;
    showDetails(this.tokens[span.dataset.at], { isSpoken });
    if (isSpoken) for (const other of this.spans) other.tabIndex = other === span ? 0 : -1;
  }

  /** The mouse has gone: a token that has the focus is shown again. */
  #leave() {
    const focused = document.activeElement?.closest?.(".answer .t");
    if (focused && this.spans.includes(focused)) showDetails(this.tokens[focused.dataset.at], { isSpoken: false });
    else hideDetails();
  }

  #move(event) {
    const at = this.spans.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const loosened = (span) => isLoosened(this.tokens[span.dataset.at]);
    const next = {
      ArrowRight: () => this.spans[at + 1],
      ArrowLeft: () => this.spans[at - 1],
      ArrowDown: () => this.spans.slice(at + 1).find(loosened),
      ArrowUp: () => this.spans.slice(0, at).findLast(loosened),
      Home: () => this.spans[0],
      End: () => this.spans.at(-1),
    };
    next.n = next.ArrowDown;
    next.p = next.ArrowUp;
    if (event.key === "Escape") {
      byId("question").focus(); // not nowhere: who uses the keyboard would begin at the top again
    } else if (next[event.key]) {
      event.preventDefault();
      next[event.key]()?.focus();
    }
  }
}
