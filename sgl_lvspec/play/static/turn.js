// A question and its answer in the list: streams it, says what went wrong, offers what can be done next.

import { AnswerView } from "./answer.js";
import * as api from "./api.js";
import { Comparison, speedup } from "./compare.js";
import { announce, element } from "./element.js";
import { inShort } from "./numbers.js";

const FINISH = { length: "cut off at the longest answer allowed", abort: "broken off by the server" };

/** Streams one answer to its end; `onEvent` sees each. A clip that was forgotten is sent once more. */
export async function stream(question, { signal, clips, turns, onEvent }) {
  const body = () => ({ ...question, turns: turns.map(({ text, clip, answer }) => ({ text, clip: clip?.id, answer })) });
  const once = async () => {
    for await (const event of api.ask(body(), signal)) {
      if (event.event === "error") throw new api.Refusal(event.message);
      onEvent(event);
    }
  };
  try {
    await once();
  } catch (error) {
    const clip = turns.find((turn) => turn.clip)?.clip;
    if (!error.isClipUnknown || !(await clips.renew(clip))) throw error;
    await once();
  }
}

export class TurnView {
  /** Turns before and with the question; the last one has no answer yet. */
  constructor(turns) {
    this.turns = turns;
    this.view = new AnswerView();
    this.numbers = {};
    this.speedup = null;
    this.status = element("p", { class: "status" }, "Reading …");
    this.actions = element("div", { class: "actions" });
    this.node = element(
      "li",
      { class: "turn" },
      element("p", { class: "asked" }, element("span", { class: "hidden" }, "You asked: "), turns.at(-1).text),
      this.view.node,
      this.status,
      this.actions,
    );
  }

  /** Whether the server answers this strictly however it is asked, so that there is nothing to compare. */
  get isAlwaysStrict() {
    const isText = !this.turns.some((turn) => turn.clip?.id);
    return isText || (this.asked.mode === "loose" && this.numbers.mode === "strict");
  }

  /** Asks; returns whether there is an answer (a part of one, if it was stopped). */
  async ask(question, { signal, clips, onNumbers }) {
    this.asked = question;
    announce("The answer is being written.");
    try {
      await stream(question, {
        signal, clips, turns: this.turns,
        onEvent: (event) => {
          if (event.tokens) this.view.add(event.tokens);
          this.numbers = event.numbers;
          this.finish = event.finish_reason;
          this.status.textContent = inShort(this.numbers);
          onNumbers(this.numbers);
        },
      });
    } catch (error) {
      const isStopped = error.name === "AbortError";
      this.#end(isStopped ? `Stopped. ${inShort(this.numbers)}` : error.message, !isStopped);
      return isStopped && this.view.text !== "";
    }
    const why = FINISH[this.finish];
    this.#end(inShort(this.numbers) + (why ? ` · ${why}` : ""), false);
    return true;
  }

  #end(text, isWrong) {
    this.view.finish();
    this.status.textContent = text;
    this.status.classList.toggle("wrong", isWrong);
    this.hasFailed = isWrong;
    const { numLoosened, tokens } = this.view;
    const loosened = this.numbers.mode ? ` ${numLoosened} of ${tokens.length} tokens loosened.` : "";
    announce(isWrong ? `No answer: ${text}` : `Answer: ${this.view.text}${loosened}`);
  }

  offer(name, act) {
    this.actions.append(element("button", { type: "button", class: "plain", onclick: act }, name));
  }

  withdraw() {
    this.actions.replaceChildren();
  }

  /** Asks the other way, too, and shows both; returns whether that worked. */
  async compare(question, { signal, clips }) {
    const card = new Comparison();
    this.withdraw();
    this.node.querySelector(".comparison")?.remove(); // a failed one
    this.actions.before(card.node);
    const other = { text: "", numbers: {} };
    try {
      await stream(question, {
        signal, clips, turns: this.turns,
        onEvent: (event) => {
          for (const token of event.tokens ?? []) other.text += token.text;
          other.numbers = event.numbers;
          other.finish = event.finish_reason;
          card[question.mode].textContent = other.text;
        },
      });
      const ours = { text: this.view.text, numbers: this.numbers, finish: this.finish };
      const [strict, loose] = question.mode === "strict" ? [other, ours] : [ours, other];
      await card.show(strict, loose);
      this.speedup = speedup(strict.numbers, loose.numbers);
      announce(card.verdict.textContent);
      return true;
    } catch (error) {
      card.fail(error.name === "AbortError" ? "Stopped before there was anything to compare." : error.message);
      return false;
    }
  }
}
