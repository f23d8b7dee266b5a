// The conversation: asks one question at a time, keeps what was said, and the clip it is about.

import { announce, byId, element } from "./element.js";
import { countLabels } from "./legend.js";
import { showNumbers } from "./numbers.js";
import { TurnView } from "./turn.js";

const NEAR_END_PX = 80;

export class Chat {
  /** `onFailure`: a question was not answered, so the server may have gone. */
  constructor(clips, settings, onFailure) {
    this.clips = clips;
    this.settings = settings;
    this.onFailure = onFailure;
    this.maxTokens = 256;
    this.said = []; // {text, clip, answer}: turns that the next question follows
    this.running = null; // aborts what is being written
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("fresh").addEventListener("click", () => this.clear());
  }

  get isBusy() {
    return this.running !== null;
  }

  /** A new conversation; the old one goes from the screen. */
  clear() {
    this.running?.abort();
    this.said = [];
    byId("turn-list").replaceChildren();
    byId("welcome").hidden = false;
    byId("fresh").hidden = true;
    showNumbers({}, null);
    countLabels(null);
    byId("question").focus();
  }

  /** A new conversation about another clip; what was said before stays to be read. */
  turnTo(clip) {
    this.said = [];
    const last = byId("turn-list").lastElementChild;
    if (!last) return;
    if (last.matches(".divider")) last.remove(); // nothing was asked about that one
    byId("turn-list").append(element("li", { class: "divider" }, `A new conversation, about ${clip.name}`));
    this.#follow(true);
  }

  async ask(text, { both = false } = {}) {
    if (this.isBusy || !text.trim()) return;
    const clip = this.said.length ? null : this.clips.chosen;
    const turns = [...this.said, { text: text.trim(), clip, answer: null }];
    const turn = new TurnView(turns);
    byId("welcome").hidden = true;
    byId("fresh").hidden = false;
    byId("turn-list").append(turn.node);
    this.#follow(true);
    countLabels(null);
    showNumbers({}, null);
    const said = this.said;
    const question = this.#question(this.settings.request(both ? "loose" : null));
    await this.#run(async (signal) => {
      const isAnswered = await turn.ask(question, {
        signal, clips: this.clips,
        onNumbers: (numbers) => {
          showNumbers(numbers, turn.speedup);
          countLabels(numbers);
          this.#follow();
        },
      });
      if (!isAnswered) turn.offer("Ask again", () => this.#again(turn, text, both));
      if (turn.hasFailed) this.onFailure();
      if (!isAnswered) return;
      this.settings.learn(question, turn.numbers);
      // Another clip may have been chosen meanwhile; then this answer belongs to no conversation any more.
      if (this.said === said) this.said = [...said, { ...turns.at(-1), answer: turn.view.text }];
      if (signal.aborted || !this.settings.canLoosen || turn.isAlwaysStrict) return;
      if (both) await this.#compare(turn, signal);
      else this.#offerComparison(turn);
    });
  }

  #offerComparison(turn) {
    const name = turn.asked.mode === "strict" ? "Compare with loose" : "Compare with strict";
    turn.offer(name, () => {
      if (!this.isBusy) this.#run((signal) => this.#compare(turn, signal));
    });
  }

  async #compare(turn, signal) {
    const other = turn.asked.mode === "strict" ? "loose" : "strict";
    this.#follow(true);
    const isShown = await turn.compare(this.#question(this.settings.request(other)), { signal, clips: this.clips });
    if (!isShown) this.#offerComparison(turn);
    showNumbers(turn.numbers, turn.speedup);
    countLabels(turn.numbers);
    this.#follow(true);
  }

  #again(turn, text, both) {
    if (this.isBusy) return;
    turn.node.remove();
    this.ask(text, { both });
  }

  #question(settings) {
    return { ...settings, max_tokens: this.maxTokens };
  }

  async #run(work) {
    this.running = new AbortController();
    this.#drawBusy();
    try {
      await work(this.running.signal);
    } catch (error) {
      announce(String(error));
      throw error; // a defect of the page: to the console
    } finally {
      this.running = null;
      this.#drawBusy();
    }
  }

  /** Stop takes the place of the buttons, and the focus with it. */
  #drawBusy() {
    const hadFocus = [byId("send"), byId("both"), byId("stop")].includes(document.activeElement);
    byId("send").hidden = byId("both").hidden = this.isBusy;
    byId("stop").hidden = !this.isBusy;
    if (hadFocus) byId(this.isBusy ? "stop" : "question").focus();
  }

  /** Keeps the end in sight, unless somebody has scrolled up to read. */
  #follow(isForced = false) {
    const list = byId("turns");
    const box = list.scrollHeight > list.clientHeight + 1 ? list : document.scrollingElement;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX;
    if (isForced || isAtEnd) box.scrollTop = box.scrollHeight;
  }
}
