"""Readable names for workloads that nobody named: `brave-otter`."""

# ruff: noqa: SIM905  (a list of words reads best as one)
from __future__ import annotations

import secrets

ADJECTIVES = (
    "able agile amber azure bold brave brisk bright calm clever crisp daring deft eager early fair fast fine "
    "fleet fond free fresh gentle glad golden grand green happy hardy honest humble jolly keen kind light lively "
    "loyal lucky mellow merry mild modest neat nimble noble patient plain polite prime proud quick quiet rapid "
    "ready sharp silent silver sleek smart snug solid spry steady stout sunny sure swift tidy true warm wise "
    "witty young zesty"
).split()
NOUNS = (
    "acorn alder aspen badger beaver birch bison brook cedar comet condor coral crane delta eagle elm falcon fern "
    "finch fjord forest fox gecko glacier grove harbor hawk heron ibis island jaguar juniper kestrel kiwi lagoon "
    "lark laurel lemur linden lotus lynx maple marten meadow meteor moose nebula newt oak ocelot orca osprey "
    "otter owl panda pebble pine plover prairie quail quartz raven reef river robin salmon sequoia sparrow spruce "
    "stork summit swan tern thistle tiger tundra turtle valley walrus willow wren yak"
).split()


def readable_name() -> str:
    """An adjective and a noun, of about 6,000 pairs."""
    return f"{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}"
