"""What the scheduler may give out, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What there is to give out.

    running: requests that are computed at once, a slot each; step_tokens: tokens of one step;
    blocks of block_tokens tokens; snapshots: states kept for reuse, one more every `snapshot_every` tokens.
    saved_bytes: for the states of preempted requests, of slot_bytes and block_bytes a block each.
    """

    running: int
    step_tokens: int
    blocks: int
    block_tokens: int
    snapshots: int
    snapshot_every: int
    saved_bytes: int
    slot_bytes: int
    block_bytes: int


@dataclass
class Counters:
    """What has happened so far, in tokens, requests or steps.

    cached_tokens: that requests did not have to compute; stored_tokens: those of them that came from disk.
    """

    steps: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    stored_tokens: int = 0
    preempted: int = 0
    dropped_tokens: int = 0
