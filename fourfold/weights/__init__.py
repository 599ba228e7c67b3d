"""Checkpoints: names, number formats, reading, writing, making and inspecting them.

names.py        which tensors a model has, and the official name <-> parameter table
formats.py      float -> FP8, FP4, int8 and int4 storage, rounded or without loss
quantise.py     float -> int8 and int4 with a searched range, and what it costs
recipes.py      which matrices the Ascend recipes convert
modelslim.py    checkpoints that ModelSlim and vllm-ascend converted
shards.py       the safetensors file format: headers checked, tensors read and written as a stream
layout.py       a checkpoint folder checked against its config.json, from headers only
load.py         validated checkpoint -> stored tensors, experts stacked
export.py       the writer: official layout, sharded, atomic, with conversions
adapter.py      low-rank adapters: their folder, their base
merge.py        base + adapter -> checkpoint
synth.py        random checkpoints of any size in the official layout
inspect.py      what a checkpoint is, from headers only
hub.py          a folder or a Hugging Face repository id -> a folder
"""
