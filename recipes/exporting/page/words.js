// From the tokens of a question and its answer to words, and to where they look, as recipes/answering/words.py does.

const LETTER = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]"; // what Python's `regex` calls \w
const LETTERS = new RegExp(`${LETTER}(.*${LETTER})?`, "u");
const SINGLES = new RegExp(`${LETTER}+(?:['\u2019-]${LETTER}+)*`, "gu");
const CUT = new RegExp(`^${LETTER}(?![\\p{M}\\p{Script=Hangul}])${LETTER}$`, "u");
const INSIDE = /[\p{L}\p{N}\p{M}_\u200c\u200d]/u;
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;
const LONGEST_SIDE = 24; // cells of a map that is drawn

/** Where the words of a text begin and end, with the punctuation that is written onto them. */
export function splitWords(text) {
  const spans = [];
  for (const found of text.matchAll(/\P{White_Space}+/gu)) {
    let start = found.index;
    let place = start;
    let before = null;
    for (const character of found[0]) {
      const isEdge = before && !(INSIDE.test(before) && INSIDE.test(character) && !UNSPACED.test(before + character));
      if (isEdge && CUT.test(before + character)) {
        spans.push([start, place]);
        start = place;
      }
      before = character;
      place += character.length;
    }
    spans.push([start, place]);
  }
  return spans;
}

/** The text of tokens from the picture on, where special tokens are NUL characters, and which part of it each is. */
export function locateTokens(tokens, tokenizer, imageToken) {
  let text = "";
  const spans = [];
  let run = [];
  let begun = 0;
  let complete = 0;
  const seen = tokens.indexOf(imageToken);
  tokens.forEach((token, n) => {
    if (n < seen || tokenizer.specialIds.has(token)) {
      if (n >= seen) text += "\0";
      spans.push([0, 0]);
      run = [];
      return;
    }
    if (!run.length) [begun, complete] = [text.length, 0];
    run.push(token);
    const prefix = tokenizer.decode(run);
    const whole = prefix.replace(/\ufffd+$/u, "").length; // without a character of which only some bytes are there yet
    spans.push([begun + complete, begun + whole + (whole < prefix.length ? 1 : 0)]);
    complete = whole;
    text = text.slice(0, begun) + prefix;
  });
  return { text, spans };
}

/** The question's and the answer's words: text, what follows them, and a mask of their tokens. */
export function wordsOf(tokens, promptLength, question, tokenizer, imageToken) {
  const { text, spans } = locateTokens(tokens, tokenizer, imageToken);
  const asked = text.indexOf(question);
  const ours = spans.slice(promptLength).filter(([start, end]) => end > start);
  const [first, last] = ours.length ? [ours[0][0], ours.at(-1)[1]] : [text.length, text.length];
  const words = [];
  for (const [part, begin, end] of [["question", asked, asked + question.length], ["answer", first, last]]) {
    const places = splitWords(text.slice(begin, end)).map((span) => span.map((place) => begin + place));
    places.forEach(([start, stop], n) => {
      const word = text.slice(start, stop);
      const letters = LETTERS.exec(word); // punctuation looks for itself
      const left = start + (letters?.index ?? 0);
      const right = letters ? left + letters[0].length : stop;
      const space = n + 1 < places.length ? text.slice(stop, places[n + 1][0]) : "";
      words.push({ text: word, space, part, mask: spans.map(([s, e]) => s < right && e > left) });
    });
  }
  return words;
}

/** The longest runs of words that may name something and have only spaces in between, each once. */
function guessPhrases(text, functionWords) {
  const phrases = new Map();
  let run = [];
  let end = null;
  const close = () => {
    const phrase = run.join(" ");
    if (phrase && !phrases.has(phrase.toLowerCase())) phrases.set(phrase.toLowerCase(), phrase);
    run = [];
  };
  for (const { 0: word, index } of text.matchAll(SINGLES)) {
    const isFunction = functionWords.includes(word.toLowerCase().replaceAll("\u2019", "'"));
    if (isFunction || end === null || text.slice(end, index).trim()) close();
    if (!isFunction) run.push(word);
    end = isFunction ? null : index + word.length;
  }
  close();
  return [...phrases.values()];
}

/** The phrases of a question and its answer, with the numbers of the words that they stand in. */
export function phrasesOf(words, functionWords) {
  const said = (part) => words.flatMap((word) => (word.part === part ? [word.text + word.space] : [])).join("");
  const parts = { question: said("question"), answer: said("answer") };
  return guessPhrases(`${parts.question} . ${parts.answer}`, functionWords).map((phrase) => {
    const pattern = phrase.split(/\s+/u).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s+");
    const isWord = "[\\p{L}\\p{N}\\p{M}_]";
    const found = [];
    for (const [part, text] of Object.entries(parts)) {
      const runs = Array.from(text.matchAll(new RegExp(`(?<!${isWord})${pattern}(?!${isWord})`, "giu")));
      let start = 0;
      words.forEach((word, n) => {
        if (word.part !== part) return;
        const end = start + word.text.length;
        if (runs.some((run) => start < run.index + run[0].length && end > run.index)) found.push(n);
        start = end + word.space.length;
      });
    }
    return { text: phrase, words: found, inside: null, regions: [] };
  });
}

/** In how many cells attention over a picture is kept. */
export function mapSize(height, width) {
  return [height, width].map((side) => Math.max(1, roundToEven((LONGEST_SIDE * side) / Math.max(height, width))));
}

/** As Python does. */
function roundToEven(value) {
  const rounded = Math.round(value);
  return value % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** How near each of `length` places is to each cell, between the middles of the cells. */
function sharesOf(cells, length) {
  const shares = Array.from({ length: cells }, () => new Float64Array(length));
  for (let n = 0; n < length; n++) {
    const place = Math.min(cells - 1, Math.max(0, ((n + 0.5) * cells) / length - 0.5));
    const left = Math.min(Math.floor(place), Math.max(0, cells - 2));
    const right = Math.min(left + 1, cells - 1);
    shares[left][n] += 1 - (place - left);
    if (right > left) shares[right][n] += place - left;
  }
  return shares;
}

/** A map over the cells, brought to `size` as one looks at it. */
export function smooth(map, [rows, columns], [height, width]) {
  const [down, across] = [sharesOf(rows, height), sharesOf(columns, width)];
  const found = new Float64Array(height * width);
  for (let row = 0; row < rows; row++) {
    const line = new Float64Array(width);
    for (let column = 0; column < columns; column++) {
      const value = map[row * columns + column];
      for (let x = 0; x < width; x++) line[x] += value * across[column][x];
    }
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) found[y * width + x] += down[row][y] * line[x];
    }
  }
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const scale = sum(map) / (sum(found) || 1); // near its edges, the picture has less of a cell than the others
  return found.map((value) => value * scale);
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  return btoa(Array.from(packed, (byte) => String.fromCharCode(byte)).join(""));
}

/** What `showAnswers` takes: words with their maps, `look` of each word, over a picture of `[height, width]`; without regions. */
export async function answerData(picture, size, words, phrases, look, about) {
  const numLayers = about.layers.length;
  const cells = [about.image.height / about.patch_size, about.image.width / about.patch_size];
  const numCells = cells[0] * cells[1];
  const shown = mapSize(...size);
  const bytes = [];
  const told = words.map(({ mask, ...word }, n) => {
    const onNothing = [];
    for (let layer = 0; layer < numLayers; layer++) {
      const start = (n * numLayers + layer) * look.length;
      const map = look.values.subarray(start, start + look.length);
      onNothing.push(Math.min(1, map.subarray(numCells).reduce((sum, value) => sum + value, 0)));
      // Multiples of even attention in a byte each: 0 is nothing, and from 1 on, 1/64, each 16 are a doubling.
      for (const value of smooth(map.subarray(0, numCells), cells, shown)) {
        const step = 16 * (Math.log2(value * shown[0] * shown[1]) + 6) + 1;
        bytes.push(step < 0.5 ? 0 : roundToEven(Math.min(255, Math.max(1, step))));
      }
    }
    return { ...word, onNothing, regions: [] };
  });
  const model = { name: "", layers: about.layers, words: told, phrases, cells: shown, maps: await deflated(Uint8Array.from(bytes)) };
  return { picture, colors: about.colors, most: about.most, models: [model] };
}
