"""The agents' side of a replica: sessions, orders out, reports in, byte streams between.

`dispatcher.py` serves the two rpcs and knows the sessions of this replica; `session.py` is one agent's
session; `reports.py` turns what it reports into commands; `relay.py` pairs byte streams with those who
asked for them.
"""
