"""The engine in a process of its own: what it is told and what it tells, in frames of JSON over a socket."""
