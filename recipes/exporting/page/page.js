// The page: a picture, a question, an answer token by token, and where its words look.

import { Model } from "./model.js";
import { pixelsOf, readPicture } from "./pictures.js";
import { Tokenizer } from "./tokenizer.js";
import { answerData, phrasesOf, wordsOf } from "./words.js";

const at = (id) => document.getElementById(id);
const state = { picture: null, loading: Promise.resolve(), isStopped: false, isBusy: true };

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

function setBusy(isBusy) {
  state.isBusy = isBusy;
  at("ask").disabled = isBusy;
  at("stop").disabled = !isBusy || !state.model;
}

async function getJson(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file} is not beside the page. Write the page again.`);
  return response.json();
}

/** Takes a picture, also one that is yet to come, behind those before it; whoever asks meanwhile waits for it. */
function setPicture(coming) {
  state.loading = state.loading.then(() => showPicture(coming));
}

async function showPicture(coming) {
  let read;
  try {
    const blob = await coming;
    if (at("file").files[0] !== blob) at("file").value = ""; // it names another picture
    read = await readPicture(blob);
  } catch (error) {
    say(error.message, true);
    return;
  }
  const { canvas } = read;
  const preview = at("preview");
  const scale = Math.min(1, 480 / Math.max(canvas.width, canvas.height));
  [preview.width, preview.height] = [canvas.width, canvas.height].map((side) => Math.max(1, Math.round(side * scale)));
  const context = preview.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, preview.width, preview.height);
  preview.hidden = false;
  state.picture = { ...read, shown: preview.toDataURL() };
  if (!state.isBusy) say("");
}

function makeExamples(examples) {
  for (const [n, example] of examples.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    Object.assign(image, { src: example.file, alt: `Example ${n + 1}: ${example.question}`, width: 96, height: 96 });
    button.append(image);
    button.addEventListener("click", () => {
      at("question").value = example.question;
      setPicture(fetch(example.file).then((response) => response.blob()));
    });
    at("examples").append(button);
  }
}

/** The answer to what is asked, and where its words look. Raises what is to be said when something is missing. */
async function answer({ model, tokenizer, about, picture }, question) {
  if (!picture) throw new Error("Choose a picture first.");
  if (!question) throw new Error("Type a question first.");
  const prompt = tokenizer.encodeBetween(about.chat[0], question, about.chat[1]);
  const longest = about.context - about.max_new_tokens;
  if (prompt.length > longest) {
    throw new Error(`The question takes ${prompt.length} tokens, and the model reads up to ${longest}. Ask a shorter one.`);
  }
  const started = performance.now();
  const seconds = (since) => (performance.now() - since) / 1000;
  const visual = await model.encode(pixelsOf(picture.data, about.image));
  const seen = seconds(started);
  const tokens = [];
  const times = [];
  for await (const token of model.answer(prompt, visual, () => state.isStopped)) {
    tokens.push(token);
    times.push(seconds(started));
    at("streaming").textContent = tokenizer.decode(tokens);
  }
  const all = [...prompt, ...tokens.filter((token) => !about.special_token_ids.includes(token))];
  const words = wordsOf(all, prompt.length, question, tokenizer, about.image_token_id);
  const look = await model.look(all, visual, words.map((word) => word.mask));
  const { canvas } = picture;
  const phrases = phrasesOf(words, about.function_words);
  const data = await answerData(picture.shown, [canvas.height, canvas.width], words, phrases, look, about);
  let told = `${seconds(started).toFixed(1)} s: ${seen.toFixed(1)} s for the picture`;
  if (tokens.length > 1) {
    const rate = (tokens.length - 1) / (times.at(-1) - times[0]);
    told += `, ${(times[0] - seen).toFixed(1)} s to the first token, then ${rate.toFixed(0)} tokens per second`;
  }
  return { data, told: state.isStopped ? `Stopped after ${told}.` : `Answered in ${told}.` };
}

async function ask() {
  if (state.isBusy) return;
  setBusy(true);
  state.isStopped = false;
  say("Looking ...");
  at("answers").replaceChildren();
  at("streaming").textContent = "";
  try {
    await state.loading;
    await new Promise(requestAnimationFrame);
    const { data, told } = await answer(state, at("question").value.trim());
    await showAnswers(at("answers"), data);
    at("streaming").textContent = "";
    say(told);
  } catch (error) {
    say(error.message, true);
  }
  setBusy(false);
}

function listen() {
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("stop").addEventListener("click", () => (state.isStopped = true));
  at("file").addEventListener("change", () => at("file").files[0] && setPicture(at("file").files[0]));
  const imageOf = (transfer) => Array.from(transfer?.files ?? [])[0];
  document.addEventListener("paste", (event) => imageOf(event.clipboardData) && setPicture(imageOf(event.clipboardData)));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (imageOf(event.dataTransfer)) setPicture(imageOf(event.dataTransfer));
  });
}

async function start() {
  say("Loading the model ...");
  try {
    state.about = await getJson("page.json");
    makeExamples(state.about.examples);
    listen();
    state.tokenizer = new Tokenizer(await getJson("tokenizer.json"));
    state.model = await Model.load(state.about);
    say("Ready. Choose a picture and ask.");
    setBusy(false);
  } catch (error) {
    say(`The model cannot be loaded: ${error.message}`, true);
  }
}

start();
