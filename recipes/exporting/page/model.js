// The graphs of a model, run by onnxruntime-web.

import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that a server of files does not send
ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };

const long = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
const { port1, port2 } = new MessageChannel();

/** Lets the page draw and hear its buttons, without a timer's wait. */
const pause = () =>
  new Promise((resolve) => {
    port1.onmessage = resolve;
    port2.postMessage(null);
  });

export class Model {
  static async load(about) {
    const open = (file) => ort.InferenceSession.create(new URL(file, import.meta.url).href, { executionProviders: ["wasm"] });
    const model = new Model();
    model.about = about;
    model.vision = await open(about.files.vision);
    model.text = await open(about.files.text);
    return model;
  }

  /** What the cross-attention layers read of a picture, by name. */
  async encode(pixels) {
    const { height, width } = this.about.image;
    return this.vision.run({ pixel_values: new ort.Tensor("float32", pixels, [1, 3, height, width]) });
  }

  /** Reads `tokens` behind `past`, the keys and values of `length` tokens; each of `queries` marks tokens whose maps are meant. */
  async read(tokens, length, visual, placeholder, past = null, queries = []) {
    const count = tokens.length;
    const inputs = {
      input_ids: long(tokens, [1, count]),
      attention_mask: long(new Array(length + count).fill(1), [1, length + count]),
      visible_from: long(new Array(this.about.num_image_tokens).fill(placeholder), [1, this.about.num_image_tokens]),
      query_masks: new ort.Tensor("bool", Uint8Array.from(queries.flat(), Number), [1, queries.length, count]),
      ...visual,
    };
    for (const [name, [, heads, , size]] of Object.entries(this.about.past)) {
      inputs[name] = past?.[name.replace("past", "present")] ?? new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, size]);
    }
    return this.text.run(inputs);
  }

  /** The greedy answer to a prompt, token by token, without what ends it, until `isStopped()`. */
  async *answer(prompt, visual, isStopped) {
    const placeholder = prompt.indexOf(this.about.image_token_id);
    let [tokens, length, past] = [prompt, 0, null];
    for (let n = 0; n < this.about.max_new_tokens && !isStopped(); n++) {
      past = await this.read(tokens, length, visual, placeholder, past);
      length += tokens.length;
      const logits = past.logits.data;
      for (const id of this.about.suppressed_token_ids) logits[id] = -Infinity;
      const next = logits.reduce((best, value, id) => (value > logits[best] ? id : best), 0);
      if (this.about.end_token_ids.includes(next)) return;
      yield next;
      tokens = [next];
      await pause();
    }
  }

  /** Where the tokens of each query look: its grounding map of each layer, one after another, and how long each is. */
  async look(tokens, visual, queries) {
    const { grounding_maps: maps } = await this.read(tokens, 0, visual, tokens.indexOf(this.about.image_token_id), null, queries);
    return { values: maps.data, length: maps.dims[3] };
  }
}
