"""Manifests as text: documents that users write, not yet what they mean.

`cutting` finds where one document ends and the next begins, and imports nothing: the command line does no more with a
file of `pwm apply` than this. `reading` makes values of a document and knows line and column of each; the server does
that with what it is sent, and the command line with files that it needs itself. What a document means is the
server's business alone (`controlplane/core/manifest.py`).
"""
