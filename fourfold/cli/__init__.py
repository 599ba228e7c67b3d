"""The command line: answers on stdout, everything else on stderr, and one of these exit codes."""

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
