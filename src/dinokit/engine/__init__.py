"""Other forms of a network: fast. One table decides how it is run on a machine; the same `Tokens` come out."""

from dinokit.engine.decision import ROWS, Asked, Plan, decide
from dinokit.engine.fast import FastTransformer, optimize
from dinokit.engine.machine import Machine, look
from dinokit.engine.memory import keep_large_blocks

__all__ = ["ROWS", "Asked", "FastTransformer", "Machine", "Plan", "decide", "keep_large_blocks", "look", "optimize"]
