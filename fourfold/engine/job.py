"""What the scheduler knows of a request, and what it asks to be done with memory.  No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from fourfold.engine.radix import TokenIds

SHORT = 16
"""So many tokens are computed sooner than a snapshot of them is worth its place."""


class Phase(Enum):
    """waiting: holds nothing; loading: its beginning comes from disk; running: holds a slot and blocks;
    saved: its state was put aside, or has come from disk."""

    WAITING = auto()
    LOADING = auto()
    RUNNING = auto()
    SAVED = auto()
    ENDED = auto()


@dataclass(eq=False)
class Job:
    """A request as the scheduler sees it: tokens that are known, and how many of them are computed.

    priority: higher goes first.  boundaries: positions at which a snapshot is worth keeping.
    blocks: those of its first tokens, in order; slot: where its windows and open blocks lie.
    scored_tokens: the logits of so many first tokens are wanted, too, so that none of them may be left out.
    watched: what the model chooses at its last known token is wanted, too; no state of it is kept for others.
    cached: tokens that it did not have to compute when it first started.
    drafts: guesses of what follows its last known token, for the next step it takes part in.
    adapter: digest of the adapter that its tokens are computed with; "" is none.
    """

    tokens: TokenIds
    priority: int = 0
    boundaries: set[int] = field(default_factory=set)
    scored_tokens: int = 0
    adapter: str = ""
    watched: bool = False
    number: int = 0
    phase: Phase = Phase.WAITING
    computed: int = 0
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    cached: int | None = None
    drafts: tuple[int, ...] = ()
    waited: int = 0
    """Steps that it could not run."""
    overtaken: int = 0
    """Requests that were let past it because it did not fit."""
    saved_bytes: int = 0
    loaded: bool = False
    """Its state came from disk and has not been in memory yet."""

    @property
    def scored(self) -> bool:
        """Whether tokens that come next are scored; the last one's logits are given anyway."""
        return self.computed + 1 < self.scored_tokens

    @property
    def pending(self) -> int:
        """Tokens known and not computed; when none is left the next one can be sampled."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Share:
    """So many tokens of a job are computed in this step, and these guesses behind them."""

    job: Job
    new: int
    drafts: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the pass."""
        return self.new + len(self.drafts)


@dataclass(frozen=True)
class Restart:
    """Copy a snapshot's state to the job's slot, and its partial block (if it has one) to the job's."""

    job: Job
    slot: int
    snapshot_slot: int
    blocks: tuple[int, int] | None


@dataclass(frozen=True)
class Save:
    """Put the state in this slot and these blocks aside."""

    job: Job
    slot: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Resume:
    """Bring back what was put aside, to this slot and these blocks."""

    job: Job
    slot: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Discard:
    """What was put aside is not needed any more."""

    job: Job


@dataclass(frozen=True)
class Load:
    """Read the state after `position` tokens, and the blocks up to there, from disk: it is then put aside."""

    job: Job
    position: int


Action = Restart | Save | Resume | Discard | Load


@dataclass(frozen=True)
class Keep:
    """Keep the state that the job has after `position` tokens in the slot of a snapshot.

    blocks: those with the entries of these tokens.
    """

    job: Job
    position: int
    snapshot_slot: int
    blocks: tuple[int, ...]
