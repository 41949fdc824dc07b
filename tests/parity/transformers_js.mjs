// Runs an exported folder in transformers.js: node transformers_js.mjs NODE_MODULES JOB.json
// The job names the folder, dtype, prompts, an image and pixel values (float32, [1, 3, R, R]);
// what is printed is JSON: token ids, generated ids and texts for both kinds of pixels.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";

const require = createRequire(join(resolve(process.argv[2]), "index.js"));
const { AutoProcessor, PaliGemmaForConditionalGeneration, RawImage, Tensor, env } =
  require("@huggingface/transformers");

const job = JSON.parse(readFileSync(process.argv[3], "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(job.folder);
const name = basename(job.folder);

const processor = await AutoProcessor.from_pretrained(name);
const texts = (job.texts ?? []).map((text) =>
  Array.from(processor.tokenizer(text).input_ids.data, Number),
);
const model = await PaliGemmaForConditionalGeneration.from_pretrained(
  name,
  job.dtype ? { dtype: job.dtype } : {},
);

const bytes = readFileSync(job.pixels);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
const side = Math.sqrt(values.length / 3);
const pixels = new Tensor("float32", values, [1, 3, side, side]);
const image = await RawImage.read(job.image);

async function generate(inputs) {
  const output = await model.generate({ ...inputs, max_new_tokens: job.max_new_tokens });
  const ids = output.slice(null, [inputs.input_ids.dims[1], null]);
  const [text] = processor.batch_decode(ids, { skip_special_tokens: true });
  return { ids: Array.from(ids.data, Number), text };
}

const rows = [];
for (const prompt of job.prompts) {
  const inputs = await processor(image, "<image>" + prompt);
  if (rows.length === 0) {
    writeFileSync(job.own_pixels, new Uint8Array(inputs.pixel_values.data.buffer));
  }
  rows.push({
    input_ids: Array.from(inputs.input_ids.data, Number),
    same_pixels: await generate({ ...inputs, pixel_values: pixels }),
    own_pixels: await generate(inputs),
  });
}
console.log(JSON.stringify({ texts, rows }));
