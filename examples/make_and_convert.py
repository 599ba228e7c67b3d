"""Write a small random checkpoint with V4-Flash's pattern, look at it, convert its experts from FP4 to FP8.

python examples/make_and_convert.py FOLDER
"""

import sys
from pathlib import Path

from fourfold.weights.export import export_checkpoint
from fourfold.weights.inspect import inspect_checkpoint
from fourfold.weights.synth import synthesise

folder = Path(sys.argv[1])
small = {"vocab_size": 512, "num_attention_heads": 8, "o_lora_rank": 128, "moe_intermediate_size": 128}
config = synthesise(folder / "fp4", like="flash", layers=4, experts=8, hidden=256, overrides=small)
print(f"layers: {', '.join(config.layer_kinds)}")
export_checkpoint(folder / "fp4", folder / "fp8", experts="fp8")
for name in ("fp4", "fp8"):
    report = inspect_checkpoint(folder / name)
    print(f"{name}: {report.parameters_total:,} parameters, {report.bytes_total:,} bytes")
