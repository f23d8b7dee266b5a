// Strict or loose, preset and λ; what the server cannot do is said here.

import { byId, element } from "./element.js";

const OWN = ""; // the server's own rule, which no address of SGLang names
const STRICT = "strict";

export class Settings {
  constructor() {
    this.presets = {}; // name: λ
    this.hasLvspec = true;
    this.refusal = null;
    this.own = null; // what answers say that the server's own rule is
    this.lastLoose = OWN;
    this.isOwnRelaxation = false; // whether λ was moved away from the preset's
    byId("loose").addEventListener("change", (event) => this.#choose(event.target.checked ? this.lastLoose : STRICT));
    byId("preset").addEventListener("change", (event) => this.#choose(event.target.value));
    byId("relaxation").addEventListener("input", () => {
      this.isOwnRelaxation = true;
      if (byId("preset").value === STRICT) this.#setPreset(this.lastLoose);
      this.#draw();
    });
  }

  /** Takes over what is known of a server that has come. */
  meet(server) {
    this.presets = server.presets;
    this.hasLvspec = server.has_lvspec;
    this.refusal = server.loose_refusal;
    this.algorithm = server.algorithm;
    this.own = null;
    const options = [[OWN, "server’s own"], [STRICT, STRICT], ...Object.keys(server.presets).map((name) => [name, name])];
    byId("preset").replaceChildren(...options.map(([value, name]) => element("option", { value }, name)));
    this.lastLoose = OWN;
    this.isOwnRelaxation = false;
    this.#setPreset(this.refusal ? STRICT : OWN);
    this.#draw();
  }

  /** What an answer to an unchanged request said of the rule that it was verified by. */
  learn(asked, numbers) {
    if (asked.mode !== "loose" || asked.preset || asked.relaxation !== undefined || numbers.mode !== "loose") return;
    this.own = numbers.preset;
    byId("preset").options[0].textContent = `server’s own (${this.own})`;
    this.#draw();
  }

  get canLoosen() {
    return this.hasLvspec && !this.refusal;
  }

  /** Settings of a request: as they are chosen, or for one half of a comparison. */
  request(mode = null) {
    if (!this.hasLvspec) return { mode: "plain" };
    const isStrict = mode ? mode === "strict" : byId("preset").value === STRICT;
    if (isStrict) return { mode: "strict" };
    const preset = byId("preset").value === STRICT ? this.lastLoose : byId("preset").value;
    return {
      mode: "loose",
      ...(preset ? { preset } : {}),
      ...(this.isOwnRelaxation ? { relaxation: Number(byId("relaxation").value) } : {}),
    };
  }

  #choose(preset) {
    this.isOwnRelaxation = false;
    this.#setPreset(preset);
    this.#draw();
  }

  #setPreset(preset) {
    byId("preset").value = preset;
    if (preset !== STRICT) this.lastLoose = preset;
  }

  #draw() {
    const preset = byId("preset").value;
    const isStrict = preset === STRICT || !this.canLoosen;
    byId("loose").checked = !isStrict;
    for (const id of ["loose", "preset", "relaxation"]) byId(id).disabled = !this.canLoosen;
    const known = isStrict ? 0 : this.presets[preset || this.own];
    if (!this.isOwnRelaxation) byId("relaxation").value = known ?? 0.5;
    const chosen = Number(byId("relaxation").value);
    const isTold = this.isOwnRelaxation || known !== undefined;
    byId("relaxation-value").textContent = isTold ? chosen.toFixed(2) : "–";
    byId("relaxation").setAttribute("aria-valuetext", isTold ? chosen.toFixed(2) : "the server’s own, not known yet");
    byId("loose-note").textContent = this.#note(isStrict, chosen);
    const name = preset || (this.own ? `server’s own, ${this.own}` : "server’s own");
    byId("settings-short").textContent = this.#short(isStrict, isTold ? `${name}, λ ${chosen.toFixed(2)}` : name);
  }

  #short(isStrict, loose) {
    if (!this.hasLvspec) return "without LVSPEC";
    return isStrict ? "strict" : loose;
  }

  #note(isStrict, relaxation) {
    if (!this.hasLvspec) {
      return (
        `This server runs without LVSPEC (speculation: ${this.algorithm ?? "none"}). Its answers carry no labels, and ` +
        "there is nothing to loosen."
      );
    }
    if (this.refusal) return `Off, because the server refuses loose requests: ${this.refusal}`;
    if (isStrict) return "Every token is the large model’s own choice.";
    if (this.isOwnRelaxation && relaxation === 0) return "λ is 0, which is strict.";
    return "Wording may be the small model’s, what depends on the video may not.";
  }
}
