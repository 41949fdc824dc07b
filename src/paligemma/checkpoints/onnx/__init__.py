"""Export a checkpoint to ONNX, for transformers.js and onnxruntime.

graph.py      nodes, constants and weights of a graph, and the file they are written to
weights.py    matrices and the embedding table in each variant: float32, float16, 8 and 4 bits
model.py      the three graphs: vision_encoder, embed_tokens, decoder_model_merged
mask_codec.py the decoder of the mask codec, as mask_decoder
folder.py     the whole folder, with configs and the tokenizer

Weights are copied into the files a few megabytes at a time, so a model of any size is exported
with little memory.
"""
