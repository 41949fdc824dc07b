"""Files to weights in the model, and back.

json_file.py      small JSON files, read with distrust
weight_files.py   safetensors shards, read one tensor at a time; knows no names
hf.py             Hugging Face tensor names <-> ours
hf_config.py      config.json <-> PaliGemmaConfig
hub.py            fetch a model from the hub; no other file speaks to it
load.py           folder -> model
save.py           model -> folder, whole or not at all
adapter.py        adapters in peft's format, both ways
"""
