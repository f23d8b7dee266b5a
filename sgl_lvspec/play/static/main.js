// Puts the page together.

import { Chat } from "./chat.js";
import { ClipPicker } from "./clips.js";
import { hideDetails } from "./details.js";
import { byId, element } from "./element.js";
import { drawLegend, showLegend } from "./legend.js";
import { drawNumbers, limitNumbers } from "./numbers.js";
import { ServerWatch } from "./server.js";
import { Settings } from "./settings.js";

const WIDE = "(min-width: 60rem)"; // as in style.css
const SUGGESTIONS = {
  video: ["Describe the video in detail.", "What happens first?", "How many objects are there?"],
  image: ["Describe the image.", "How many objects are there?"],
  none: ["Hello, who are you?"],
};

const settings = new Settings();
const clips = new ClipPicker((clip) => {
  chat.turnTo(clip);
  suggest(clip.kind);
});
const chat = new Chat(clips, settings, () => server.look());
const server = new ServerWatch(
  (found) => {
    settings.meet(found);
    clips.maxBytes = found.max_upload_bytes;
    chat.maxTokens = found.max_tokens;
    showLegend(found.has_lvspec);
    limitNumbers(found.has_lvspec);
    const canCompare = settings.canLoosen;
    byId("both").disabled = !canCompare;
    byId("both").title = canCompare ? "The loose answer, then the strict one beside it" : "This server answers one way only";
  },
  () => chat.isBusy,
);

function suggest(kind) {
  const offered = SUGGESTIONS[kind].map((text) =>
    element("button", { type: "button", class: "chip", onclick: () => chat.ask(text) }, text),
  );
  byId("suggestions").replaceChildren(...offered);
}

function askTyped(options) {
  const box = byId("question");
  if (chat.isBusy || !box.value.trim()) {
    box.focus();
    return;
  }
  const text = box.value;
  box.value = "";
  grow();
  chat.ask(text, options);
}

function grow() {
  const box = byId("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`; // its border
}

drawLegend();
drawNumbers();
hideDetails();
byId("settings-fold").open = matchMedia(WIDE).matches;
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  askTyped();
});
byId("both").addEventListener("click", () => askTyped({ both: true }));
byId("question").addEventListener("input", grow);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    askTyped();
  }
});
await Promise.all([server.look(), clips.load()]);
