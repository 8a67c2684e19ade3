// The tokenizer of a tokenizer.json with byte-level BPE, as GPT-2's, and no normalizer.

const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The character that stands for each byte: itself where it can be seen, else one from U+0100 on. */
function characterOfBytes() {
  const isSeen = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let hidden = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isSeen(byte) ? byte : hidden++));
}

export class Tokenizer {
  constructor({ model, added_tokens: added }) {
    this.characters = characterOfBytes();
    this.bytes = new Map(this.characters.map((character, byte) => [character, byte]));
    this.ids = new Map(Object.entries(model.vocab));
    this.texts = [];
    for (const [text, id] of this.ids) this.texts[id] = text;
    this.special = new Map(added.map((token) => [token.content, token.id]));
    this.specialIds = new Set(this.special.values());
    for (const [text, id] of this.special) this.texts[id] = text;
    this.ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
    this.known = new Map();
  }

  /** The tokens of words, which stay words, also where they read like a special token. */
  encode(text) {
    const bytes = (word) => Array.from(new TextEncoder().encode(word), (byte) => this.characters[byte]).join("");
    return (text.match(WORDS) ?? []).flatMap((word) => this.merge(bytes(word)));
  }

  /** The tokens of a text before words, of the words, and of a text behind; special tokens are those of the texts around. */
  encodeBetween(before, words, behind) {
    const longestFirst = [...this.special.keys()].sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const cut = (text) => (escaped.length ? text.split(new RegExp(`(${escaped.join("|")})`, "u")) : [text]);
    const [first, last] = [cut(before), cut(behind)];
    const middle = first.pop() + words + last.shift();
    const encodeAll = (parts) => parts.flatMap((part) => this.special.get(part) ?? this.encode(part));
    return [...encodeAll(first), ...this.encode(middle), ...encodeAll(last)];
  }

  /** Merges what was learned first, until nothing is left to merge. */
  merge(word) {
    if (this.known.has(word)) return this.known.get(word);
    let parts = Array.from(word);
    while (parts.length > 1) {
      const ranks = parts.slice(1).map((part, n) => this.ranks.get(`${parts[n]} ${part}`) ?? Infinity);
      const best = Math.min(...ranks);
      if (best === Infinity) break;
      const merged = [];
      for (let n = 0; n < parts.length; n++) {
        if (ranks[n] === best) merged.push(parts[n] + parts[++n]);
        else merged.push(parts[n]);
      }
      parts = merged;
    }
    const ids = parts.map((part) => this.ids.get(part));
    this.known.set(word, ids);
    return ids;
  }

  /** The text of tokens, without special ones; bytes that are no character yet are U+FFFD. */
  decode(ids) {
    const plain = Array.from(ids).filter((id) => !this.specialIds.has(id) && this.texts[id] !== undefined);
    const bytes = plain.flatMap((id) => Array.from(this.texts[id], (character) => this.bytes.get(character)));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}
