// Which clip is asked about: samples of the companion, and files of the user's own.

import * as api from "./api.js";
import { byId, element } from "./element.js";

const TYPES = { mkv: "video/x-matroska", avi: "video/x-msvideo", mov: "video/quicktime", m4v: "video/mp4" };

/** What the browser takes a file for, or what its ending says where the browser knows nothing. */
const typeOf = (file) => file.type || (TYPES[file.name.split(".").at(-1).toLowerCase()] ?? "");
const inMb = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

export class ClipPicker {
  /** `onPick` is told each clip that is chosen: {id, name, kind, url, file}, or one whose id is null for none. */
  constructor(onPick) {
    this.chosen = null;
    this.maxBytes = Infinity;
    this.#onPick = onPick;
    byId("file").addEventListener("change", (event) => this.#take(event.target.files));
    const panel = document.querySelector(".clip");
    panel.addEventListener("dragover", (event) => {
      event.preventDefault();
      panel.classList.add("over");
    });
    panel.addEventListener("dragleave", () => panel.classList.remove("over"));
    panel.addEventListener("drop", (event) => {
      event.preventDefault();
      panel.classList.remove("over");
      this.#take(event.dataTransfer.files);
    });
  }

  #onPick;
  #none; // the choice of no clip

  async load() {
    let samples = [];
    try {
      samples = await api.sampleClips();
    } catch (error) {
      this.#say(error.message, true);
    }
    for (const { id, mime } of samples) {
      const name = id.replace(/\.[^.]+$/, "");
      this.#offer({ id, name, kind: mime.split("/")[0], url: `api/clips/${encodeURIComponent(id)}`, file: null });
    }
    this.#offer({ id: null, name: "no clip", kind: "none", url: null, file: null });
    const trouble = byId("clip-note").textContent;
    byId("clips").querySelector("input").click();
    if (trouble) this.#say(trouble, true);
  }

  /** Sends an upload once more, which the companion has forgotten. Returns whether there was a file to send. */
  async renew(clip) {
    if (!clip?.file) return false;
    clip.id = await api.upload(clip.file, typeOf(clip.file));
    return true;
  }

  #offer(clip) {
    const input = element("input", { type: "radio", name: "clip", onchange: () => this.#choose(clip) });
    const offered = element("label", { class: "chip" }, input, element("span", {}, clip.name));
    if (clip.id === null) this.#none = offered;
    if (this.#none && clip.id !== null) this.#none.before(offered); // which stays the last one
    else byId("clips").append(offered);
    return input;
  }

  #choose(clip) {
    this.chosen = clip;
    this.#say("");
    byId("stage").replaceChildren(this.#shown(clip));
    this.#onPick(clip);
  }

  #shown(clip) {
    const cannot = () =>
      this.#say(`This browser cannot show ${clip.name}. Ask all the same: the server reads it by itself.`);
    if (clip.kind === "video") {
      // Quiet and still until somebody starts it.
      const shown = element("video", {
        src: clip.url, controls: true, loop: true, playsinline: true, preload: "auto",
        "aria-label": `Clip ${clip.name}`, onerror: cannot,
      });
      shown.muted = true;
      return shown;
    }
    if (clip.kind === "image") return element("img", { src: clip.url, alt: `Image ${clip.name}`, onerror: cannot });
    return element("p", { class: "quiet" }, "Text alone. Such answers are always strict.");
  }

  async #take(files) {
    const file = files[0];
    byId("file").value = ""; // so that the same file can be chosen again
    if (!file) return;
    const type = typeOf(file);
    const kind = type.split("/")[0];
    if (!["video", "image"].includes(kind)) {
      this.#say(`A video or an image is needed; found ${file.name}. Choose another file.`, true);
      return;
    }
    if (file.size > this.maxBytes) {
      this.#say(
        `An upload can have ${inMb(this.maxBytes)}; found ${file.name} with ${inMb(file.size)}. ` +
          "Cut or shrink it, or start the page with a higher --max-upload-mb.",
        true,
      );
      return;
    }
    this.#say(`Uploading ${file.name} …`);
    try {
      const id = await api.upload(file, type);
      this.#offer({ id, name: file.name, kind, url: URL.createObjectURL(file), file }).click();
    } catch (error) {
      this.#say(error.message, true);
    }
  }

  #say(text, isWrong = false) {
    const note = byId("clip-note");
    note.textContent = text;
    note.hidden = !text;
    note.classList.toggle("wrong", isWrong);
  }
}
