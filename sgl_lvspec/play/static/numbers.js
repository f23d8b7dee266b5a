// Numbers of an answer: tiles for the newest one, a line below each.

import { byId, element } from "./element.js";

const NOT_YET = "–";
const share = (value) => `${(100 * value).toFixed(1)} %`;
const told = (value, show) => (value === null || value === undefined ? NOT_YET : show(value));

// Each tile: what it is called, its value, and what that means. `speedup` is measured by a comparison, or missing.
const TILES = [
  ["T", (n) => told(n.T, (v) => v.toFixed(2)), () => "drafts taken a round"],
  ["Tokens/s", (n) => told(n.tokens_per_s, (v) => v.toFixed(1)), () => "once it has begun"],
  [
    "vs strict",
    (n, speedup) => told(speedup, (v) => `${v.toFixed(2)}×`),
    (n, speedup) => (speedup ? "as fast, one each" : "not measured yet"),
  ],
  ["Loosened", (n) => told(n.divergence, share), (n) => (n.tokens ? `of ${n.tokens} tokens` : "of the tokens")],
  ["Rounds", (n) => told(n.rounds, String), () => "of the target"],
  ["First token", (n) => told(n.first_s, (v) => `${v.toFixed(2)} s`), () => "after asking"],
  [
    "Cached",
    (n) => told(n.prompt_tokens ? n.cached_tokens : null, String),
    (n) => (n.prompt_tokens ? `of ${n.prompt_tokens} prompt tokens` : "of the prompt"),
  ],
  [
    "Given up",
    (n) => (n.accepted && n.logprob_given_up === null ? "∞" : told(n.logprob_given_up, (v) => v.toFixed(1))),
    () => "nats, log-probability",
  ],
];
const KEYS = ["t", "speed", "against", "loosened", "rounds", "first", "cached", "given-up"];
const ALWAYS = new Set(["speed", "first", "cached"]);
const places = [];

export function drawNumbers() {
  for (const [at, [name]] of TILES.entries()) {
    const value = element("span", { class: "value", id: `number-${KEYS[at]}` });
    const meaning = element("span", { class: "meaning" });
    places.push([value, meaning]);
    byId("numbers").append(element("div", { "data-key": KEYS[at] }, element("dt", {}, name), element("dd", {}, value, meaning)));
  }
  showNumbers({}, null);
}

/** Without LVSPEC there are no rounds and nothing to loosen, only speeds and the cache. */
export function limitNumbers(hasLvspec) {
  for (const tile of byId("numbers").children) tile.hidden = !hasLvspec && !ALWAYS.has(tile.dataset.key);
}

export function showNumbers(numbers, speedup) {
  for (const [at, [, value, meaning]] of TILES.entries()) {
    places[at][0].textContent = value(numbers, speedup);
    places[at][1].textContent = meaning(numbers, speedup);
  }
}

/** How an answer came about, in one line. */
export function inShort(numbers) {
  const parts = [];
  if (numbers.mode) {
    const because = numbers.strict_reason ? ` (${numbers.strict_reason})` : "";
    parts.push(numbers.mode === "strict" ? `strict${because}` : `loose, ${numbers.preset}`);
  } else parts.push("no LVSPEC: nothing is labelled");
  if (numbers.T !== null && numbers.T !== undefined) parts.push(`T ${numbers.T.toFixed(2)}`);
  if (numbers.tokens_per_s) parts.push(`${numbers.tokens_per_s.toFixed(1)} tokens/s`);
  if (numbers.mode === "loose") parts.push(`${share(numbers.divergence ?? 0)} loosened`);
  if (numbers.prompt_tokens) parts.push(`${numbers.cached_tokens} of ${numbers.prompt_tokens} prompt tokens cached`);
  return parts.join(" · ");
}
