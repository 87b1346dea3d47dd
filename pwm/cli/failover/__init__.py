"""`pwm admin failover`: a leader is made to fail on a live cluster, and what that cost is proven from the log.

line      one client's line to the servers, which moves on when one of them does not answer
ledger    writes and reads without a pause, and remembers everything that was acknowledged
watch     follows the events of the whole cluster, from each server
world     what the cluster says of itself: status, containers, and what their drivers say
rounds    one round: calm, failure, next leader, calm again
evidence  PURE: judges what was acknowledged, seen and found, against the log
report    what it looks like
drill     all of it, one after the other
"""
