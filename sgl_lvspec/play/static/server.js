// Whether the SGLang server is there, and which one it is.

import * as api from "./api.js";
import { byId } from "./element.js";

const LOOK_EVERY_MS = 10_000;
const LOOK_AGAIN_MS = 3_000; // while it is gone

export class ServerWatch {
  /** `onCome` is told a server that is new here; `isBusy` whether to leave it alone for now. */
  constructor(onCome, isBusy) {
    this.known = null;
    this.isGone = false;
    this.#onCome = onCome;
    this.#isBusy = isBusy;
  }

  #onCome;
  #isBusy;
  #timer = null;

  /** Looks now, and from then on again and again, while the page is seen and no answer is being written. */
  async look() {
    clearTimeout(this.#timer);
    await this.#lookOnce();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lookIfIdle(), this.isGone ? LOOK_AGAIN_MS : LOOK_EVERY_MS);
  }

  #lookIfIdle() {
    if (document.visibilityState === "visible" && !this.#isBusy()) this.look();
    else this.#timer = setTimeout(() => this.#lookIfIdle(), LOOK_AGAIN_MS);
  }

  async #lookOnce() {
    try {
      const found = await api.serverNow(true);
      const isNew = JSON.stringify(found) !== JSON.stringify(this.known);
      this.isGone = false;
      this.known = found;
      if (isNew) this.#onCome(found);
      const kind = found.has_lvspec ? "LVSPEC" : "without LVSPEC";
      const model = found.model.split("/").slice(-2).join("/"); // owner/name, or the end of a path
      this.#show(`${model} · ${kind} · ${found.url.replace(/^https?:\/\//, "")}`, "");
    } catch (error) {
      this.isGone = true;
      this.#show("No server", `${error.message} This page looks for it every few seconds.`);
    }
  }

  #show(text, trouble) {
    if (byId("server-text").textContent !== text) byId("server-text").textContent = text;
    byId("server").classList.toggle("gone", Boolean(trouble));
    const banner = byId("banner");
    if (banner.textContent !== trouble) banner.textContent = trouble;
    banner.hidden = !trouble;
  }
}
