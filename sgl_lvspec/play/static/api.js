// The companion's addresses. Every failure becomes a Refusal, whose message is for people.

export class Refusal extends Error {
  constructor(message, { status = null, isClipUnknown = false } = {}) {
    super(message);
    this.status = status; // null: nothing answered
    this.isClipUnknown = isClipUnknown;
  }
}

const GONE = "The page’s own server does not answer. Is lvspec play (make play) still running?";

async function reached(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(GONE);
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => ({}));
  throw new Refusal(said.error ?? `The page’s own server answers HTTP ${reply.status}.`, {
    status: reply.status,
    isClipUnknown: said.is_clip_unknown ?? false,
  });
}

const asJson = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

/** What is known of the SGLang server; `fresh` looks whether it is still there. */
export async function serverNow(fresh = false) {
  return (await reached(`api/server${fresh ? "?fresh=true" : ""}`)).json();
}

export async function sampleClips() {
  return (await reached("api/clips")).json();
}

/** Sends a file and returns the id that it is asked about by. */
export async function upload(file, type) {
  const reply = await reached("api/uploads", { method: "POST", headers: { "Content-Type": type }, body: file });
  return (await reply.json()).id;
}

/** Parts of two answers in reading order: where is same, strict or loose. */
export async function difference(strict, loose) {
  return (await reached("api/diff", asJson({ strict, loose }))).json();
}

/** Events of an answer as they come; aborting the signal ends the request at the server, too. */
export async function* ask(question, signal) {
  const reply = await reached("api/ask", { ...asJson(question), signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) yield JSON.parse(line);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(GONE);
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading ends the request at the server
  }
}
