"""Files to weights in the model, and back.

json_file.py      small JSON files, parsed strictly
reader.py         safetensors shards, read a few rows at a time
writer.py         safetensors files, written a few rows at a time
checksums.py      SHA-256 sums of these files
hf.py             Hugging Face tensor names <-> ours
hf_config.py      config.json <-> PaliGemmaConfig
quantized.py      what a quantized checkpoint stores
hub.py            fetch a model from the hub: the only file that uses the network
match.py          tensors in the files <-> parameters of the model
weight_form.py    the form and dtype of the weights: the only file that decides
load.py           folder -> model
save.py           model -> folder, whole or not at all
adapter.py        adapters in peft's format, both ways
"""
