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
    verified: times that drafts of a request were verified; drafted, accepted: tokens of those drafts.
    """

    steps: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    stored_tokens: int = 0
    preempted: int = 0
    dropped_tokens: int = 0
    verified: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """The part of the drafted tokens that was right; 0 before there was one."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def draft_length(self) -> float:
        """Mean length of a draft."""
        return self.drafted / self.verified if self.verified else 0.0
