"""How long tests wait for what is to come.

Only a failure waits that long, so it is far beyond what a busy machine needs; speed is measured in `bench/`.
"""

PATIENCE_S = 60.0
