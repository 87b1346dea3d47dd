"""Loops that run core's decisions while this replica leads. Each looks, decides by a pure function, appends
with the leader's fence, and looks again; none keeps state that it could not rebuild by a full pass."""
