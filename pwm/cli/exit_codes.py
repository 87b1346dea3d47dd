"""What the program ends with, so that scripts can tell what happened without reading sentences.

`run`, `shell` and `attach` end with the container's own code instead; 125 says that it never started, 255 that a
command in it was lost sight of, as ssh has it.
Plain integers, not an enum: they are read on every start of the program.
"""

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
REFUSED = 5
NO_SERVER = 6
TIMED_OUT = 7

NEVER_STARTED = 125
# 128 + the number of the signal, as shells do it.
INTERRUPTED = 130
BROKEN_PIPE = 141
LOST_SIGHT = 255
