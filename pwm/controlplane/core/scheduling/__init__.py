"""Scheduling: which waiting replica starts on which node, and why the others do not.

Everything here is a pure function of its arguments. The same code places containers while leading, predicts
for `--dry-run`, answers `pwm why`, and replays in the simulator. Read it in this order:

    demand.py    what one replica asks for, as a value that equal workloads share
    nodes.py     what one node is and has, and who holds it
    filters.py   the filters that look at what a node *is*; each says no with a reason
    shares.py    the CPU and memory that a replica gets when it did not say
    table.py     all nodes as columns of numbers; scratch.py, a copy of them to plan on
    cluster.py   the one owner of "what is free", kept up to date change by change
    queue.py     who is first; scores.py, which node is best; devices.py, which GPUs and cores on it
    plan.py      puts the above together
    survey.py    how far each node got; explain.py, why not in one sentence; suggest.py, the smallest change that
                 would help; verdicts.py, the words of all three
    spec.py      the full container that a placement becomes
"""
