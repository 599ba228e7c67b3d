"""Run by test_emulated.py: the shipped model, as published and converted, in `fourfold chat` and its logits.

FOURFOLD_TEST_EXPORTS names the folder of the converted ones.
"""

from __future__ import annotations

import gc
import io
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fourfold
from fourfold.cli.main import main
from fourfold.conformance.logits import Distance, distance
from tests.ascend.emulation import EXPORTS, MEASURED

CHIP = torch.get_device_module("npu").get_device_name(0)
FOLDERS = {
    "published": fourfold.shipped_model(),
    **{recipe: Path(os.environ[EXPORTS]) / recipe for recipe in ("w8a8", "w4a8")},
}
TURNS = "What is your name?\nTell me about a cat.\n"
TEXT = (
    "Once upon a time there was a little girl named Mia. She had a red ball and a small dog. One day the "
    "ball rolled into the river. Mia was sad, but the dog jumped into the water and brought it back. Her "
    "mother smiled and said that a good friend is worth more than any toy. They all went home together."
)
# Both devices round at the same places and add in another order, so that now and then a value falls to the
# next bf16 step: no more may come of it than what that rounding itself costs, 0.0021 nats.
SAME = 0.0021
# The cost of format and rounding together as docs/conversion.md has it over 4,919 tokens, and what a hundred
# tokens may differ from it.
COST = {"published": 0.0021, "w8a8": 0.0010, "w4a8": 0.0068}
MARGIN = 3.0


def said(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `fourfold chat` answers on stdout."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TURNS.encode())))
    options = ["--numerics", "deployed", "--temperature", "0", "--max-tokens", "8", "--device", device]
    assert main(["chat", str(folder), *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", FOLDERS)
def test_chat_answers_as_on_the_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = (said(FOLDERS[name], device, monkeypatch, capsys) for device in ("npu", "cpu"))
    assert here == there and here.count("\n") == 2


@pytest.mark.parametrize(
    ("name", "memory", "ram"),
    [("published", "15.1MiB", "1GiB"), ("published", "15.1MiB", "3MiB"), ("w8a8", "18MiB", "1GiB")],
)
def test_experts_beside_the_device_give_the_same_text(
    name: str, memory: str, ram: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 of 8 experts a layer on the device, the others in RAM; of 3 MiB not all."""
    texts = []
    for options in ([], ["--device", "npu"], ["--device", "npu", "--device-memory", memory, "--ram", ram]):
        how = ["--numerics", "deployed", "--temperature", "0", "--max-tokens", "16", "--stats", *options]
        assert main(["generate", "Once upon a time", "--model", str(FOLDERS[name]), *how]) == 0
        out = capsys.readouterr()
        texts.append(out.out)
    assert texts[0] == texts[1] == texts[2] != ""
    assert "the device holds 3 of 8 experts a layer" in out.err
    counts = re.search(r"experts: ([\d,]+) on the device, ([\d,]+) from RAM, .*", out.err)
    assert counts is not None and int(counts[1]) > 0 and int(counts[2]) > 0
    print(f"\n{MEASURED}{CHIP} {name} beside {ram} of RAM, {counts[0]}")


def test_experts_placed_by_counts_give_the_same_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run has the experts on the device that the first one used most."""
    options = ["--device", "npu", "--device-memory", "15.1MiB", "--ram", "1GiB", "--stats"]
    options += ["--expert-counts", str(tmp_path / "counts.json"), "--numerics", "deployed"]
    texts, shares = [], []
    for _ in range(2):
        how = [*options, "--temperature", "0", "--max-tokens", "16"]
        assert main(["generate", "Once upon a time", "--model", str(FOLDERS["published"]), *how]) == 0
        gc.collect()  # the counts are kept when the model goes
        out = capsys.readouterr()
        texts.append(out.out)
        counts = re.search(
            r"experts: (\d+) on the device, (\d+) from RAM, (\d+) read ahead.*, (\d+) not", out.err
        )
        assert counts is not None
        found = list(map(int, counts.groups()))
        shares.append(found[0] / sum(found))
    assert texts[0] == texts[1] != "" and shares[0] < shares[1]
    assert "of the uses counted so far" in out.err
    print(f"\n{MEASURED}{CHIP}: the device serves {shares[0]:.0%} of the experts, {shares[1]:.0%} by counts")


def logits(folder: Path, device: str, numerics: str) -> Tensor:
    model = fourfold.load(folder, device=device, numerics=numerics)
    assert model.tokenizer is not None
    ids = torch.tensor([model.tokenizer.encode(TEXT)], device=device)
    cache = model.new_cache()
    return torch.cat(
        [model(part, cache=cache).logits.cpu() for part in ids.split([60, 1, ids.shape[1] - 61], 1)], 1
    )


@pytest.fixture(scope="module")
def original() -> Tensor:
    return logits(FOLDERS["published"], "cpu", "exact")


@pytest.mark.parametrize("name", FOLDERS)
def test_what_the_format_costs(name: str, original: Tensor) -> None:
    here, there = (logits(FOLDERS[name], device, "deployed") for device in ("npu", "cpu"))
    apart, cost = distance(here, there), distance(here, original)
    print(f"\n{MEASURED}{CHIP} {name}: {_told(apart)} of the CPU's, {_told(cost)} of the original in exact")
    assert apart.kl <= SAME and apart.same_choice >= 0.95
    assert cost.kl <= MARGIN * COST[name]


def _told(found: Distance) -> str:
    return f"KL {found.kl:.4f} nats, first choice {found.same_choice:.0%}"
