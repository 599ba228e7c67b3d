"""The command line: answers on stdout, everything else on stderr, exit codes 0, 1 failed, 2 wrong usage."""
