"""What happens to each request, step by step, as events of a trace: numbers and names, never texts."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.engine.job import Job, Phase, Share
from fourfold.engine.trace_file import STEPS, Event, TraceFile, now
from fourfold.engine.work import Work


def on_track(ph: str, track: str, name: str, ts: float, **args: Any) -> Event:
    """An event of a request's track; ph: "b" begins a span, "e" ends it, "n" is a moment."""
    return {"ph": ph, "cat": "request", "id": track, "pid": 1, "tid": 0, "name": name, "ts": ts, "args": args}


@dataclass
class _Track:
    """Of one choice.  open: the span that it is in: queued, preempted, decode, or none between chunks of the
    prompt."""

    name: str
    open: str | None = "queued"
    steps: int = 0
    drafted: int = 0
    accepted: int = 0


class Timeline:
    """Writes the events of one engine, on its thread.

    Of a request: `queued` until it is admitted, `prefill` for each chunk of its prompt (its cached tokens in
    the first), `first token`, `decode` up to its end, `preempted` where it was put aside, and `finished`.
    Of the engine: each step, with the tokens that it computed.
    """

    def __init__(self, file: TraceFile) -> None:
        self._file = file
        self._tracks: dict[Job, _Track] = {}
        self._unnamed = 0

    def came(self, work: Work) -> None:
        """A choice of a request waits from now on."""
        name = work.answer.request.label
        if not name:
            self._unnamed += work.choice.index == 0
            name = f"request {self._unnamed}"
        track = _Track(name if work.choice.index == 0 else f"{name} choice {work.choice.index}")
        self._tracks[work.job] = track
        prompt = len(work.answer.prompt_ids)
        self._file.write(on_track("b", track.name, "queued", work.came, prompt_tokens=prompt))

    def step(
        self, start: float, shares: Sequence[Share], begun: Container[Job], accepted: Mapping[Job, int]
    ) -> None:
        """A step has been computed since `start`.

        begun: jobs that had a token before; accepted: how many drafts were right of those that have got one.
        """
        end = now()
        events: list[Event] = []
        for share in shares:
            if (track := self._tracks.get(share.job)) is not None:
                events += self._share(track, share, start, end, share.job in begun, accepted)
        prompt = sum(share.new for share in shares if share.job not in begun)
        args = {
            "requests": len(shares),
            "prompt_tokens": prompt,
            "tokens": sum(share.new for share in shares) - prompt,
            "drafted": sum(len(share.drafts) for share in shares),
            "accepted": sum(accepted.values()),
        }
        whole = {"ph": "X", "pid": 1, "tid": STEPS, "name": "step", "ts": start, "dur": end - start}
        self._file.write(*events, {**whole, "args": args})

    def planned(self) -> None:
        """A step is planned: some may have been put aside for it."""
        for job, track in self._tracks.items():
            if track.open not in ("queued", "preempted") and job.phase in (Phase.WAITING, Phase.SAVED):
                self._file.write(
                    *_ended(track, now()),
                    on_track("b", track.name, "preempted", now(), saved=job.phase is Phase.SAVED),
                )
                track.open = "preempted"

    def ended(self, work: Work, error: Exception | None = None) -> None:
        """A choice is finished, failed, or not wanted any more."""
        track = self._tracks.pop(work.job, None)
        if track is None:
            return
        reason = work.choice.finish_reason or ("cancelled" if error is None else type(error).__name__)
        end = now()
        self._file.write(
            *_ended(track, end),
            on_track("n", track.name, "finished", end, reason=reason, tokens=len(work.choice.ids)),
        )

    def close(self) -> None:
        self._file.close()

    def _share(
        self,
        track: _Track,
        share: Share,
        start: float,
        end: float,
        begun: bool,
        accepted: Mapping[Job, int],
    ) -> list[Event]:
        events = _ended(track, start) if track.open in ("queued", "preempted") else []
        if track.open == "queued":
            events.append(on_track("n", track.name, "admitted", start, cached_tokens=share.job.cached or 0))
        if track.open in ("queued", "preempted"):
            track.open = None
        track.steps += begun
        track.drafted += len(share.drafts)
        track.accepted += accepted.get(share.job, 0)
        if not begun or share.new > 1:
            name = "recomputed" if begun else "prefill"
            events += [
                on_track("b", track.name, name, start, tokens=share.new),
                on_track("e", track.name, name, end),
            ]
        if track.open is None and share.job in accepted:
            if not begun:
                events.append(on_track("n", track.name, "first token", end))
            events.append(on_track("b", track.name, "decode", end))
            track.open = "decode"
        return events


def _ended(track: _Track, ts: float) -> list[Event]:
    """The end of the span that a track is in, if it is in one."""
    if track.open is None:
        return []
    args = {}
    if track.open == "decode":
        args = {"steps": track.steps, "drafted": track.drafted, "accepted": track.accepted}
    return [on_track("e", track.name, track.open, ts, **args)]
