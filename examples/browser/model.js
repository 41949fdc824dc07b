// The three graphs of an export and its tokenizer, run by onnxruntime: prompt and pixels to text.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that static hosts rarely send
ort.env.logLevel = "error";

const json = async (url) => (await fetch(url)).json();
const int64 = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);

export class Model {
  /** Load an export from the address of its folder. `suffix` is that of the variant. */
  static async load(folder, suffix, onProgress = () => {}) {
    const model = new Model();
    model.config = await json(`${folder}/config.json`);
    model.tokenizer = new Tokenizer(
      await json(`${folder}/tokenizer.json`),
      await json(`${folder}/tokenizer_config.json`),
    );
    const names = ["embed_tokens", "vision_encoder", "decoder_model_merged"];
    model.sessions = {};
    for (const name of names) {
      onProgress(name);
      const path = `${folder}/onnx/${name}${suffix}.onnx`;
      model.sessions[name] = await ort.InferenceSession.create(path);
    }
    onProgress("mask_decoder");
    model.maskDecoder = await ort.InferenceSession.create(`${folder}/onnx/mask_decoder.onnx`);
    return model;
  }

  get side() {
    return this.config.vision_config.image_size;
  }

  /** float32 pixels [3, R, R] -> image features, which serve any number of prompts. */
  async encodeImage(pixels) {
    const tensor = new ort.Tensor("float32", pixels, [1, 3, this.side, this.side]);
    return (await this.sessions.vision_encoder.run({ pixel_values: tensor })).image_features;
  }

  /** Generate greedily. `onText` gets the text after every token. Returns the token ids. */
  async generate(features, prompt, { maxNewTokens = 60, onText = () => {} } = {}) {
    const imageTokens = Array(features.dims[1]).fill(this.config.image_token_index);
    const text = this.tokenizer.encode(`<bos>${prompt.replace(/\n$/, "")}\n`);
    let embeds = await this.embed([...imageTokens, ...text.ids]);
    embeds.data.set(features.data); // the image comes first
    let past = this.emptyCache();
    let length = 0;
    const ids = [];
    while (ids.length < maxNewTokens) {
      const count = embeds.dims[1];
      const positions = Array.from({ length: count }, (_, i) => length + i + 1);
      length += count;
      const { logits, ...present } = await this.sessions.decoder_model_merged.run({
        inputs_embeds: embeds,
        attention_mask: int64(Array(length).fill(1), [1, length]),
        position_ids: int64(positions, [1, count]),
        num_logits_to_keep: int64([1], []),
        ...past,
      });
      const id = logits.data.indexOf(logits.data.reduce((a, b) => Math.max(a, b)));
      if (id === this.config.eos_token_id) break;
      ids.push(id);
      onText(this.text(ids));
      past = {};
      for (const [name, tensor] of Object.entries(present)) {
        past[name.replace("present", "past_key_values")] = tensor;
      }
      embeds = await this.embed([id]);
    }
    return ids;
  }

  text(ids) {
    return ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: true }) : "";
  }

  /** Sixteen codes per mask -> one float32 array [64 * 64] per mask, above 0 inside. */
  async decodeMasks(codes) {
    const { masks } = await this.maskDecoder.run({ codes: int64(codes.flat(), [codes.length, 16]) });
    return codes.map((_, i) => masks.data.subarray(i * 64 * 64, (i + 1) * 64 * 64));
  }

  async embed(ids) {
    return (await this.sessions.embed_tokens.run({ input_ids: int64(ids, [1, ids.length]) }))
      .inputs_embeds;
  }

  emptyCache() {
    const text = this.config.text_config;
    const cache = {};
    for (let layer = 0; layer < text.num_hidden_layers; layer++) {
      for (const part of ["key", "value"]) {
        const dims = [1, text.num_key_value_heads, 0, text.head_dim];
        cache[`past_key_values.${layer}.${part}`] = new ort.Tensor("float32", [], dims);
      }
    }
    return cache;
  }
}

const OBJECT = /((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})?([^<;]*)/g;

/** "<loc0100>... frog ; ..." -> [{ box: [x0, y0, x1, y1] in [0, 1], codes, label }] */
export function readObjects(text) {
  return Array.from(text.matchAll(OBJECT), ([, locations, segments, label]) => {
    const numbers = (part) => Array.from((part ?? "").matchAll(/\d+/g), Number);
    const [y0, x0, y1, x1] = numbers(locations).map((bin) => bin / 1023);
    return { box: [x0, y0, x1, y1], codes: segments ? numbers(segments) : null, label: label.trim() };
  }).filter(({ box: [x0, y0, x1, y1] }) => x0 < x1 && y0 < y1);
}
