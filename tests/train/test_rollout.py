"""Learning from one's own answers: rewards, costs against their definitions, rounds that resume to the same
bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

import fourfold
from fourfold import kernels
from fourfold.errors import ConfigError, TrainError
from fourfold.train.config import TrainConfig
from fourfold.train.data import IGNORE
from fourfold.train.divergence import head_cost
from fourfold.train.grpo import advantages, policy_cost
from fourfold.train.on_policy import Desk, RolloutObjective, reverse_kl
from fourfold.train.record import read_metrics
from fourfold.train.rewards import REWARDS
from fourfold.train.rollout import RolloutBatch, Rollouts
from fourfold.train.rollout_log import RolloutLog
from fourfold.train.trainer import Trainer, train
from tests.train.test_trainer import weights_hash

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("name", "record", "answer", "earned"),
    [
        ("exact", {"expected": "yes"}, " yes\n", 1.0),
        ("exact", {"expected": ["yes", "Yes."]}, "Yes.", 1.0),
        ("exact", {"expected": "yes"}, "yes.", 0.0),
        ("numeric", {"expected": "1200"}, "2 + 3 make 1,200.", 1.0),
        ("numeric", {"expected": "-3"}, "-3.0", 1.0),
        ("numeric", {"expected": "19"}, "19 or 20", 0.0),
        ("numeric", {"expected": "19"}, "nineteen", 0.0),
        ("numeric", {"expected": "1"}, "0 + 1 = .", 0.0),
        ("numeric", {"expected": "9"}, "18.9", 0.0),
        ("numeric", {"expected": "0.5"}, "It is 0.5!", 1.0),
        ("regex", {"pattern": r"^\w+\.$"}, "Yes.", 1.0),
        ("regex", {"pattern": r"^\w+\.$"}, "Oh yes.", 0.0),
    ],
)
def test_rewards(name: str, record: dict[str, Any], answer: str, earned: float) -> None:
    reward = REWARDS[name]
    assert reward(answer, reward.wanted(record)) == earned


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("exact", {}),
        ("exact", {"expected": []}),
        ("numeric", {"expected": "ten"}),
        ("regex", {"pattern": "("}),
    ],
)
def test_a_record_that_a_reward_cannot_use_is_refused(name: str, record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed|could not convert|no regular expression"):
        REWARDS[name].wanted(record)


def test_advantages_are_in_standard_deviations_of_the_group() -> None:
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 3.0, 3.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0, -1.0, 1.0], [0.0] * 4]))


def test_clipped_tokens_have_no_gradient() -> None:
    """Where the probability has moved as the advantage wants, and further than the clip."""
    logp = torch.tensor([0.3, -0.3, 0.3, -0.3, 0.1]).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    cost, clipped = policy_cost(logp, torch.zeros(5), advantage, 0.2)
    (gradient,) = torch.autograd.grad(cost.sum(), logp)
    assert clipped.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert ((gradient == 0) == clipped.bool()).all()
    torch.testing.assert_close(cost[4], -torch.exp(torch.tensor(0.1)))


def test_reverse_kl_and_its_gradient_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    teacher = torch.randn(11, 48)  # a vocabulary that is padded further
    weights = torch.rand(11)

    def costs(logits: torch.Tensor, part: slice) -> torch.Tensor:
        return (weights[part] * reverse_kl(logits, logits.log_softmax(-1), teacher[part])).unsqueeze(0)

    total, _ = head_cost(hidden, weight, costs, torch.float32)
    student, theirs = (hidden @ weight.T).log_softmax(-1), teacher[:, :40].log_softmax(-1)
    expected = (weights * F.kl_div(theirs, student, log_target=True, reduction="none").sum(-1)).sum()
    torch.testing.assert_close(total, expected)
    found = torch.autograd.grad(total, (hidden, weight))
    for mine, definition in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, definition, atol=1e-5, rtol=1e-4)


@pytest.fixture
def make_rollouts(make_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """make_rollouts(section={key: value}): two domains of prompts, rounds of 4 prompts, 2 answers each."""
    animals, colours = tmp_path / "animals.txt", tmp_path / "colours.jsonl"
    animals.write_text("Where is the cat?\nWhere is the dog?\nWhere is the hen?\n")
    records = [{"prompt": f"Is it {c}?", "expected": "yes", "pattern": "dog"} for c in ("red", "blue")]
    colours.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(**changes: dict[str, Any]) -> TrainConfig:
        files = [{"path": str(animals), "domain": "animal"}, {"path": str(colours), "domain": "colour"}]
        section = {"prompts": files, "batch": 4, "samples": 2, "max_tokens": 12} | changes.pop("rollout", {})
        run = {"eval_every": 0} | changes.pop("run", {})
        return make_config(rollout=section, data={"files": []} | changes.pop("data", {}), run=run, **changes)

    return make


@pytest.fixture
def on_policy(make_rollouts: MakeConfig, teacher_folder: Path) -> MakeConfig:
    """The same with a teacher."""

    def make(**changes: dict[str, Any]) -> TrainConfig:
        return make_rollouts(**{"on_policy": {"teachers": [{"path": str(teacher_folder)}]}} | changes)

    return make


def grpo(make_rollouts: MakeConfig, **changes: dict[str, Any]) -> TrainConfig:
    """Only the domain whose records a reward can use."""
    files = [vars(file) for file in make_rollouts(grpo={"reward": ""}, on_policy=ANY).rollout.prompts[1:]]
    section = {"prompts": files, "batch": 2, "samples": 4} | changes.pop("rollout", {})
    return make_rollouts(rollout=section, **{"grpo": {"reward": "regex"}} | changes)


def lines_of(folder: Path) -> list[str]:
    """The log of a run's first round."""
    return (folder / "rollouts" / "00000000.jsonl").read_text(encoding="utf-8").splitlines()


ANY = {"teachers": [{"path": "t"}]}


@torch.no_grad()
def divergence(
    objective: RolloutObjective, batch: RolloutBatch, judged: list[tuple[float, int | None, Any]]
) -> float:
    """Mean over the targets, by the definition and sample by sample.

    judged: weight, domain (None: all) and logits [1, n, V] of ids [1, n] of each teacher.
    """
    with kernels.replaced("cpu", objective.operations):
        hidden, _, _ = objective.model.hidden(batch.ids, batch.segments)
    student = (hidden @ objective.model.head.weight.T).log_softmax(-1)
    total, wanted = 0.0, batch.targets != IGNORE
    for row, domain in enumerate(batch.domains.tolist()):
        for number in batch.segments[row].unique():
            here = batch.segments[row] == number
            for weight, only, logits in judged:
                if only in (None, domain):
                    theirs = logits(batch.ids[row, here][None])[0].log_softmax(-1)
                    gap = F.kl_div(theirs, student[row, here], log_target=True, reduction="none").sum(-1)
                    total += weight * float(gap[wanted[row, here]].sum())
    return total / int(wanted.sum())


def test_student_comes_nearer_to_its_teacher(on_policy: MakeConfig, teacher_folder: Path) -> None:
    config = on_policy(
        run={"steps": 10}, optimizer={"lr": 0.01, "adamw_lr": 0.01}, loss={"mtp": 0.0, "mtp_final": 0.0}
    )
    trainer = Trainer(config)
    assert isinstance(trainer.objective, RolloutObjective) and isinstance(trainer.data, Rollouts)
    teacher = fourfold.load(teacher_folder)
    judged = [(1.0, None, lambda ids: teacher(ids).logits)]
    batch = trainer.data.next()
    trainer.data.position = (0, 0)
    before = divergence(trainer.objective, batch, judged)
    result = trainer.run()
    trainer.close()
    assert divergence(trainer.objective, batch, judged) < 0.7 * before
    rows = read_metrics(result.folder / "metrics.csv")
    assert rows[0]["kl"] == pytest.approx(before, rel=0.02)  # states are kept in bf16
    assert rows[0]["answer_tokens"] > 1 and rows[0]["rollout_seconds"] > 0
    first = [json.loads(line) for line in lines_of(result.folder)]
    assert sum("ended" in line for line in first) == 8 and all("text" in x for x in first if "ended" in x)


def test_each_teacher_judges_its_domains(on_policy: MakeConfig, teacher_folder: Path, tmp_path: Path) -> None:
    """One of ours for all prompts, one of transformers for some."""
    shape = transformers.LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    folder = tmp_path / "llama"
    llama = transformers.LlamaForCausalLM(shape)
    llama.save_pretrained(folder)
    teachers = [
        {"path": str(teacher_folder), "weight": 0.5},
        {"path": str(folder), "weight": 2.0, "domains": ["colour"]},
    ]
    trainer = Trainer(on_policy(on_policy={"teachers": teachers}))
    batch, objective = trainer.data.next(), trainer.objective
    trainer.close()
    assert isinstance(batch, RolloutBatch) and isinstance(objective, RolloutObjective)
    assert set(batch.domains.tolist()) == {0, 1}
    with kernels.replaced("cpu", objective.operations):
        _, values = objective._next_token(objective.model.hidden(batch.ids, batch.segments)[0], batch)
    v4 = fourfold.load(teacher_folder)
    judged = [(0.5, None, lambda ids: v4(ids).logits), (2.0, 1, lambda ids: llama(input_ids=ids).logits)]
    assert values["kl"] == pytest.approx(divergence(objective, batch, judged), rel=0.02)


def test_one_teacher_is_in_memory_at_a_time() -> None:
    class Big:
        head = torch.zeros(1, 1)

    alive: list[weakref.ref[Big]] = []

    def open_one(folder: Path) -> Any:
        assert not any(ref() for ref in alive)
        alive.append(weakref.ref(big := Big()))
        return big

    desk = Desk(open_one)
    for name in ("a", "a", "b", "a"):
        desk.call(Path(name))
    assert len(alive) == 3


def test_resumed_run_ends_with_the_same_bits(
    make_rollouts: MakeConfig, teacher_folder: Path, tmp_path: Path
) -> None:
    """With a reward and a reference, and two steps a round; killed runs below have a teacher."""

    def config(name: str) -> TrainConfig:
        return grpo(
            make_rollouts,
            grpo={"reward": "regex", "kl": 0.1},
            model={"init_from": str(teacher_folder)},
            rollout={"steps": 2},
            run={"dir": str(tmp_path / name), "steps": 4, "checkpoint_every": 2, "eval_every": 0},
        )

    train(config("whole"))
    first = Trainer(config("cut"))
    for _ in range(2):
        first.step()
    first.save()
    first.step()  # of the next round, whose answers are found again
    first.close()
    train(config("cut"))
    assert weights_hash(tmp_path / "whole") == weights_hash(tmp_path / "cut")


@pytest.mark.parametrize("kept", [1, 6])
def test_answers_go_on_where_they_stopped(on_policy: MakeConfig, tmp_path: Path, kept: int) -> None:
    """A log cut off after so many lines, and in the middle of one, is completed to the same answers."""

    def answers(cut: bool) -> dict[int, list[int]]:
        trainer = Trainer(on_policy())
        path = tmp_path / "run" / "rollouts" / "00000000.jsonl"
        if cut:
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[:kept]) + lines[kept][:5])
        trainer.data.next()
        trainer.close()
        owner = json.loads(path.read_text().splitlines()[0])["owner"]
        log = RolloutLog(path, owner)
        log.close()
        assert len(log.ended) == 8
        return log.tokens

    whole = answers(False)
    assert answers(True) == whole


def test_answers_of_other_weights_are_dropped(on_policy: MakeConfig, tmp_path: Path) -> None:
    owners = []
    for seed in (0, 1):
        trainer = Trainer(on_policy(model={"seed": seed}))
        trainer.data.next()
        trainer.close()
        owners.append(lines_of(tmp_path / "run")[0])
    assert owners[0] != owners[1]


def test_killed_run_ends_with_the_same_bits(on_policy: MakeConfig, tmp_path: Path) -> None:
    """kill -9 while answers are being written."""

    def config(name: str) -> TrainConfig:
        return on_policy(
            rollout={"max_tokens": 30},
            run={"dir": str(tmp_path / name), "steps": 4, "checkpoint_every": 2, "eval_every": 0},
        )

    train(config("whole"))
    code = (
        "import json, sys; from fourfold.train.config import TrainConfig; "
        "from fourfold.train.trainer import train; train(TrainConfig.from_dict(json.loads(sys.argv[1])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(config("killed").to_dict())],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(fourfold.__file__).parents[1])},
    )
    third = tmp_path / "killed" / "rollouts" / "00000002.jsonl"
    limit = time.monotonic() + 120
    while not (third.exists() and third.stat().st_size > 200) and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(config("killed"))
    assert weights_hash(tmp_path / "whole") == weights_hash(tmp_path / "killed")


def test_rewarded_answers_become_likelier(make_rollouts: MakeConfig, teacher_folder: Path) -> None:
    config = grpo(
        make_rollouts,
        model={"init_from": str(teacher_folder)},
        rollout={"samples": 16, "max_tokens": 16, "steps": 2},
        optimizer={"matrices": "adamw", "adamw_lr": 0.003},
        loss={"mtp": 0.0, "mtp_final": 0.0},
        run={"steps": 12, "checkpoint_every": 0},
    )
    folder = train(config).folder
    rows = read_metrics(folder / "metrics.csv")
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.2
    assert rows[0]["clipped"] == 0 and any(row["clipped"] > 0 for row in rows)
    lines = [json.loads(line) for line in lines_of(folder)]
    earned = [line["by"] == "stop" and "dog" in line["text"] for line in lines if "ended" in line]
    assert rows[0]["reward"] == pytest.approx(sum(earned) / 32)


def test_reference_holds_the_student_back(make_rollouts: MakeConfig, teacher_folder: Path) -> None:
    config = grpo(make_rollouts, grpo={"reward": "regex", "kl": 0.5, "reference": str(teacher_folder)})
    rows = read_metrics(train(config).folder / "metrics.csv")
    assert rows[0]["kl"] > 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"on_policy": {}}, "without on_policy.teachers and grpo.reward"),
        ({"rollout": {"prompts": []}, "data": {"files": [{"path": "x"}]}}, "without rollout.prompts"),
        ({"data": {"files": [{"path": "x"}]}}, "data.files"),
        ({"rollout": {"steps": 3}}, "divides the 4 prompts"),
        ({"rollout": {"steps": 2}, "run": {"steps": 5}}, "multiples of rollout.steps"),
        ({"rollout": {"steps": 2}, "run": {"steps": 0, "seconds": 5.0}}, "rollout.steps 1"),
        ({"rollout": {"temperature": 0.0}}, "above 0"),
        ({"grpo": {"reward": "exact"}, "rollout": {"temperature": 0.7}}, "and 1 with grpo.reward"),
        ({"grpo": {"reward": "nice"}}, "allowed: exact, numeric, regex"),
        ({"grpo": {"reward": "exact"}, "rollout": {"samples": 1}}, "allowed here: 2 and more"),
        ({"grpo": {"kl": 0.1}}, "without a grpo.reference"),
        ({"on_policy": {"teachers": [{"path": "t", "domains": ["plants"]}]}}, "name the domains plants"),
        (
            {"on_policy": {"teachers": [{"path": "t", "domains": ["animal"]}]}},
            "no teacher judges .* 'colour'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_rollouts: MakeConfig, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_rollouts(**{"on_policy": ANY} | changes)


def test_prompts_must_fit_and_must_be_the_rewards(make_rollouts: MakeConfig) -> None:
    with pytest.raises(TrainError, match=r"has room for 3 beside rollout.max_tokens"):
        Trainer(grpo(make_rollouts, rollout={"max_tokens": 60}))
    with pytest.raises(TrainError, match=r"colours.jsonl, prompt 1 is none for grpo.reward numeric"):
        Trainer(grpo(make_rollouts, grpo={"reward": "numeric"}))


def test_teacher_with_another_tokenizer_is_refused_with_advice(
    on_policy: MakeConfig,
    teacher_folder: Path,
    tmp_path: Path,
) -> None:
    path = teacher_folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    vocab = spec["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match=r"distil from its answers instead \(fourfold distil\)"):
        Trainer(on_policy())
