// What the labels of tokens are called and mean.

export const LABELS = {
  match: { short: "both agree", meaning: "drafted, and the target’s own choice" },
  filler: { short: "loosened wording", meaning: "loosened: drafted wording that the target would have put otherwise" },
  shift: { short: "same word nearby", meaning: "loosened: a word that the target says nearby" },
  bonus: { short: "the target’s own", meaning: "written by the target itself" },
};
export const LOOSENED = new Set(["filler", "shift"]);
export const isLoosened = (token) => LOOSENED.has(token.label);

/** A token as one reads it: the blank before a word left out, other blanks to be seen. */
export function visible(text) {
  if (!text) return "(part of a character)";
  return (text.trim() ? text.replace(/^ /, "") : text.replaceAll(" ", "␣")).replaceAll("\n", "⏎");
}
