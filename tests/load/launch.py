"""Becomes another program, on the given cores, that dies with whoever started it: launch.py CORES COMMAND...

A program of its own, and not code between fork and exec: there gRPC's own handlers, of a harness that has gRPC
running, can abort the child.
"""

import os
import sys

from nst_server.supervisor import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
    os.execvp(sys.argv[2], sys.argv[2:])
