"use strict";

// Shows answers whose words can be pointed at: `showAnswers(element, data)`, with `data` as answer_page.py writes it.

const PARTS = { question: "Question", answer: "Answer" };
const PLAY = "Word by word";

function make(parent, tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}

/** In how little of the picture half of the attention lies. */
function halfOf(map) {
  const falling = Float32Array.from(map).sort().reverse();
  const total = falling.reduce((sum, value) => sum + value, 0);
  let sum = 0;
  let count = 0;
  while (count < falling.length && sum < (total * (1 - 1e-6)) / 2) sum += falling[count++];
  return count / map.length;
}

/** Where the most of it lies: one of nine places. */
function placeOf(map, [height, width]) {
  const peak = map.indexOf(Math.max(...map));
  const third = (place, length) => Math.min(2, Math.floor((3 * (place + 0.5)) / length));
  const row = ["top", "", "bottom"][third(Math.floor(peak / width), height)];
  const column = ["left", "", "right"][third(peak % width, width)];
  return `${row} ${column}`.trim() || "middle";
}

/** Where words look: `map` in multiples of even attention, `onNothing` as a share; the mean of words and layers. */
function lookOf(model, words, layer) {
  const size = model.cells[0] * model.cells[1];
  const layers = layer === null ? model.layers.map((_, n) => n) : [layer];
  const map = new Float32Array(size);
  let onNothing = 0;
  for (const word of words) {
    for (const n of layers) {
      const start = (word * model.layers.length + n) * size;
      for (let k = 0; k < size; k++) map[k] += model.values[model.maps[start + k]];
      onNothing += model.words[word].onNothing[n];
    }
  }
  const count = words.length * layers.length;
  return { map: map.map((value) => value / count), onNothing: onNothing / count };
}

function inNumbers(look, { cells }) {
  if (!look.map.some((value) => value > 0)) return `${percent(look.onNothing)} on nothing`;
  const nothing = look.onNothing > 0 ? `${percent(look.onNothing)} on nothing, half of the rest` : "half of it";
  return `${nothing} in ${percent(halfOf(look.map))} of the picture, most at the ${placeOf(look.map, cells)}`;
}

/** The picture in gray, with the colors of attention over it, bilinear between the middles of cells. */
function paint(canvas, gray, look, [height, width], data) {
  const context = canvas.getContext("2d");
  const painted = new ImageData(new Uint8ClampedArray(gray.data), gray.width, gray.height);
  const clamp = (place, length) => Math.min(length - 1, Math.max(0, place));
  for (let y = 0; y < gray.height; y++) {
    const row = clamp(((y + 0.5) * height) / gray.height - 0.5, height);
    const top = Math.floor(row);
    const below = Math.min(top + 1, height - 1);
    for (let x = 0; x < gray.width; x++) {
      const column = clamp(((x + 0.5) * width) / gray.width - 0.5, width);
      const left = Math.floor(column);
      const right = Math.min(left + 1, width - 1);
      const at = (line) =>
        look.map[line * width + left] * (1 - column + left) + look.map[line * width + right] * (column - left);
      const times = at(top) * (1 - row + top) + at(below) * (row - top);
      const step = Math.log2(times) / Math.log2(data.most);
      const color = 4 * Math.round(255 * Math.min(1, Math.max(0, step)));
      const alpha = data.colors[color + 3] / 255;
      const pixel = 4 * (y * gray.width + x);
      for (let k = 0; k < 3; k++) {
        painted.data[pixel + k] = (1 - alpha) * painted.data[pixel + k] + alpha * data.colors[color + k];
      }
    }
  }
  context.putImageData(painted, 0, 0);
}

/** Boxes around regions, bright on dark, so that they are seen on any color. */
function outline(canvas, regions) {
  const context = canvas.getContext("2d");
  const thin = 2 * Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 480));
  for (const { box } of regions) {
    const [left, top, right, bottom] = box.map((share, n) => share * (n % 2 ? canvas.height : canvas.width));
    for (const [color, width] of [["#000", 2 * thin], ["#fff", thin]]) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.strokeRect(left, top, right - left, bottom - top);
    }
  }
}

function grayOf(context, width, height) {
  const gray = context.getImageData(0, 0, width, height);
  for (let k = 0; k < gray.data.length; k += 4) {
    const [red, green, blue] = gray.data.subarray(k, k + 3);
    gray.data.fill(0.299 * red + 0.587 * green + 0.114 * blue, k, k + 3);
  }
  return gray;
}

function makeLegend(parent, data) {
  const steps = Math.log2(data.most);
  const legend = make(parent, "div", { class: "legend" });
  const canvas = make(legend, "canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const strip = new ImageData(256, 1);
  for (let k = 0; k < 256; k++) {
    const alpha = data.colors[4 * k + 3] / 255;
    for (let c = 0; c < 3; c++) strip.data[4 * k + c] = 128 * (1 - alpha) + alpha * data.colors[4 * k + c];
    strip.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d").putImageData(strip, 0, 0);
  for (let n = 0; n <= steps; n++) make(legend, "span", {}, n === 0 ? "even" : `${2 ** n}×${n === steps ? "+" : ""}`);
}

/** One model's answer; `chosen` of the question's words are told to the others by `tell`. */
class Answer {
  constructor(parent, model, image, data, tell) {
    Object.assign(this, { model, data, image, tell, layer: null, chosen: [], anchor: 0, lists: [], timer: null });
    const root = make(parent, "article", { "aria-label": model.name });
    if (model.name) make(root, "h2", {}, model.name);
    const scale = Math.min(1, 480 / Math.max(image.width, image.height));
    const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
    this.canvas = make(root, "canvas", { class: "picture", role: "img", width, height });
    this.canvas.style.setProperty("--width", width);
    this.canvas.style.setProperty("--ratio", width / height);
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    this.plain = context.getImageData(0, 0, width, height);
    this.gray = grayOf(context, width, height);
    makeLegend(root, data);
    this.said = make(root, "output", { "aria-live": "polite" });
    this.options = [];
    for (const part of Object.keys(PARTS)) this.makeWords(root, part);
    this.listenToPointers(root);
    this.makeTools(root);
    this.makePhrases(root);
    this.makeTable(root);
    this.draw([]);
  }

  makeWords(root, part) {
    make(root, "p", { class: "part" }, PARTS[part]);
    const numbers = this.model.words.flatMap((word, n) => (word.part === part ? [n] : []));
    if (!numbers.length) {
      make(root, "p", {}, "(nothing)");
      return;
    }
    const list = make(root, "div", {
      class: "words",
      dir: "auto",
      role: "listbox",
      "aria-multiselectable": "true",
      "aria-orientation": "horizontal",
      "aria-label": `${PARTS[part]}: words to look at`,
    });
    this.lists.push(numbers);
    const named = new Set(this.model.phrases.flatMap((phrase) => phrase.words));
    for (const n of numbers) {
      const word = this.model.words[n];
      const option = make(
        list,
        "span",
        { role: "option", tabindex: n === numbers[0] ? 0 : -1, "aria-selected": "false", class: named.has(n) ? "named" : "" },
        word.text,
      );
      option.dataset.word = n;
      this.options[n] = option;
      list.append(word.space);
    }
    list.addEventListener("keydown", (event) => this.press(event, numbers));
    list.addEventListener("focusin", (event) => this.stopAt(Number(event.target.dataset.word), numbers));
  }

  /** A list is one stop of the tab key: the word that has the focus, else the first that is chosen. */
  stopAt(word, numbers) {
    for (const n of numbers) this.options[n].tabIndex = n === word ? 0 : -1;
  }

  /** Pointing at words shows them, a click or tap chooses one, and a drag all from where it began, also across lists. */
  listenToPointers(root) {
    const wordAt = (event) => {
      const option = document.elementFromPoint(event.clientX, event.clientY)?.closest("[role=option]");
      return option && root.contains(option) ? Number(option.dataset.word) : null;
    };
    let start = null; // of the drag that goes on
    let reached = null; // the word that it or the mouse was last over
    const chooseTo = (word) => {
      if (word === null || word === reached) return;
      reached = word;
      this.options[word].focus({ preventScroll: true });
      this.choose(this.range(word));
    };
    const begin = () => {
      start.isDrag = true;
      if (!start.isShift) this.anchor = start.word;
      reached = null;
      chooseTo(start.word);
    };
    root.addEventListener("pointerdown", (event) => {
      const word = wordAt(event);
      if (word === null || event.button !== 0 || !event.isPrimary) return;
      start = { x: event.clientX, y: event.clientY, word, isShift: event.shiftKey, isDrag: false };
      root.setPointerCapture(event.pointerId); // else nobody says that it was released outside of a frame
      if (event.pointerType !== "touch") begin();
    });
    root.addEventListener("pointermove", (event) => {
      if (!event.isPrimary) return;
      if (!(event.buttons & 1)) start = null;
      const word = wordAt(event);
      if (start) {
        // A finger that moves up or down first scrolls the page, which leaves what is chosen.
        if (!start.isDrag && Math.abs(event.clientX - start.x) > Math.abs(event.clientY - start.y)) begin();
        if (start.isDrag) chooseTo(word);
      } else if (event.pointerType === "mouse" && word !== reached) {
        reached = word;
        this.draw(word === null ? this.chosen : [word]);
      }
    });
    root.addEventListener("pointerup", (event) => {
      if (!event.isPrimary) return;
      if (start && !start.isDrag) begin();
      start = null;
    });
    root.addEventListener("pointercancel", () => (start = null));
    root.addEventListener("pointerleave", () => {
      if (start) return;
      reached = null;
      this.draw(this.chosen);
    });
    // Else the mouse marks text as well. What is marked from beside the words, or with all of the page, can be copied.
    root.addEventListener("mousedown", (event) => {
      if (event.button !== 0 || wordAt(event) === null) return;
      event.preventDefault();
      getSelection().removeAllRanges();
    });
  }

  /** The words from the anchor to this one, of the question and the answer. */
  range(word) {
    const first = Math.min(word, this.anchor);
    return Array.from({ length: Math.abs(word - this.anchor) + 1 }, (_, n) => first + n);
  }

  press(event, numbers) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's
    const here = numbers.indexOf(Number(event.target.dataset.word));
    const last = numbers.length - 1;
    const isLeftward = getComputedStyle(event.currentTarget).direction === "rtl";
    const [next, previous] = isLeftward ? ["ArrowLeft", "ArrowRight"] : ["ArrowRight", "ArrowLeft"];
    const to = { [next]: here + 1, ArrowDown: here + 1, [previous]: here - 1, ArrowUp: here - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.choose([]);
    else if (event.key === " " || event.key === "Enter") {
      this.anchor = numbers[here];
      this.choose([numbers[here]]);
    } else if (to !== undefined) {
      const word = numbers[Math.min(last, Math.max(0, to))];
      this.options[word].focus();
      if (!event.shiftKey) this.anchor = word;
      this.choose(this.range(word));
    } else return;
    event.preventDefault();
  }

  makeTools(root) {
    const tools = make(root, "div", { class: "tools" });
    if (this.model.layers.length > 1) {
      const label = make(tools, "label", {}, "Attention of ");
      const select = make(label, "select");
      make(select, "option", { value: "" }, "all guided layers");
      this.model.layers.forEach((name, n) => make(select, "option", { value: n }, name));
      select.addEventListener("change", () => {
        this.layer = select.value === "" ? null : Number(select.value);
        this.draw(this.chosen);
      });
    }
    const words = this.model.words.flatMap((word, n) => (word.part === "answer" ? [n] : []));
    if (words.length > 1) {
      this.player = make(tools, "button", { type: "button" }, PLAY);
      this.player.addEventListener("click", () => (this.timer === null ? this.play(words) : this.stop()));
    }
  }

  /** Chooses the words in the order in which they came; whatever else is chosen stops it. */
  play([word, ...rest]) {
    this.choose([word]);
    if (!rest.length) return;
    this.timer = setTimeout(() => this.play(rest), 500);
    this.player.textContent = "Stop";
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.player) this.player.textContent = PLAY;
  }

  makePhrases(root) {
    if (!this.model.phrases.length) return;
    make(root, "p", { class: "part" }, "Phrases");
    const chips = make(root, "div", { class: "tools" });
    for (const phrase of this.model.phrases) {
      const inside = phrase.inside === null ? "" : ` (${percent(phrase.inside)} inside)`;
      const chip = make(chips, "button", { type: "button", dir: "auto" }, phrase.text + inside);
      chip.addEventListener("click", () => this.choose(phrase.words));
    }
  }

  makeTable(root) {
    const details = make(root, "details");
    make(details, "summary", {}, "Where each word looks, in numbers");
    const table = make(make(details, "div", { class: "table", tabindex: 0, role: "region", "aria-label": "Numbers" }), "table");
    this.model.words.forEach((word, n) => {
      const row = make(table, "tr");
      make(row, "th", { scope: "row", dir: "auto" }, word.text);
      make(row, "td", {}, inNumbers(lookOf(this.model, [n], null), this.model));
    });
  }

  choose(words, isTold = false) {
    this.stop();
    this.chosen = words;
    const isChosen = new Set(words);
    this.options.forEach((option, n) => option.setAttribute("aria-selected", String(isChosen.has(n))));
    for (const numbers of this.lists) {
      const first = numbers.find((n) => isChosen.has(n));
      const isFocused = numbers.some((n) => this.options[n] === document.activeElement);
      if (first !== undefined && !isFocused) this.stopAt(first, numbers);
    }
    this.draw(words);
    if (!isTold) this.tell(this, words.filter((n) => this.model.words[n].part === "question"));
  }

  draw(words) {
    if (!words.length) {
      this.canvas.getContext("2d").putImageData(this.plain, 0, 0);
      this.canvas.setAttribute("aria-label", "the picture");
      this.said.textContent = "Point at a word, click it, or drag over several, to see where they look.";
      return;
    }
    const look = lookOf(this.model, words, this.layer);
    paint(this.canvas, this.gray, look, this.model.cells, this.data);
    const regions = this.layer === null ? this.regionsOf(words) : [];
    outline(this.canvas, regions);
    const quote = this.quote(words);
    const scores = regions.map((region) => percent(region.score)).join(", ");
    const boxed = ["", `; boxed, score ${scores}`][regions.length] ?? `; boxed, scores ${scores}`;
    this.said.textContent = `${quote}: ${inNumbers(look, this.model)}${boxed}.`;
    this.canvas.setAttribute("aria-label", `the picture, and where ${quote} looks`);
  }

  /** What a word looks at, or the words of a phrase together. */
  regionsOf(words) {
    if (words.length === 1) return this.model.words[words[0]].regions;
    const isChosen = (phrase) => phrase.words.length === words.length && phrase.words.every((word, n) => word === words[n]);
    return this.model.phrases.find(isChosen)?.regions ?? [];
  }

  /** Words as they are said: of many, which nobody would listen to, the first, the last and their number. */
  quote(words) {
    const texts = words.map((n) => this.model.words[n].text);
    if (texts.length <= 10) return `“${texts.join(" ")}”`;
    return `“${texts.slice(0, 4).join(" ")} … ${texts.slice(-4).join(" ")}” (${texts.length} words)`;
  }
}

async function makeAnswers(parent, data) {
  data = { ...data, colors: bytesOf(data.colors) };
  // Whatever the maps' bytes mean: 0 is nothing, and each 16 of the others are a doubling.
  const values = Float32Array.from({ length: 256 }, (_, byte) => (byte ? 2 ** ((byte - 1) / 16 - 6) : 0));
  const image = new Image();
  image.src = data.picture;
  await image.decode();
  const answers = [];
  const tell = (from, words) => answers.filter((other) => other !== from).forEach((other) => other.choose(words, true));
  for (const model of data.models) {
    model.maps = await inflate(bytesOf(model.maps));
    answers.push(new Answer(parent, { ...model, values }, image, data, tell));
  }
}

/** In the place of what stands there, which stays where a browser lacks something that this needs. */
async function showAnswers(parent, data) {
  const made = document.createDocumentFragment();
  try {
    await makeAnswers(made, data);
  } catch (error) {
    const text = `Where the words look cannot be shown here, perhaps in a newer browser: ${error.message}`;
    make(parent, "p", { role: "alert" }, text);
    return;
  }
  parent.replaceChildren(made);
}
