"""Training: `train(load_config("CONFIG.toml", ["run.steps=100"]))`, which `fourfold train` calls.

config.py     the strict TOML file
sources.py    records on disk                          corpus.py      records -> token samples
store.py      samples kept on disk                     data.py        samples -> packed batches
objective.py  what is trained: V4, or the yardstick    losses.py      what is minimised
optim.py      Muon and AdamW                           schedule.py    the rate over a run
quantise.py   FP4 and FP8 rounding while training      fused.py       operations arranged for training
experts.py    the routed experts                       trainer.py    the loop
checkpoint.py resuming                                 record.py     metrics, plot and progress
finish.py     export to the official layout            parallel.py   torchrun's processes
divided.py    their optimiser                          expert_parallel.py  their routed experts
distil.py     learning from a teacher's logits         teacher.py     who is learnt from
rollout.py    batches that the student writes itself   policy.py      the student while it writes
on_policy.py  learning from those                      grpo.py        what they cost by what they earned
rewards.py    what an answer earns                     rollout_log.py answers, token by token
"""

from fourfold.train.config import TrainConfig, load_config
from fourfold.train.trainer import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "load_config", "train"]
