"""The decisions of coloha: a state machine without I/O, clock, randomness or logging.

`machine.PairMachine` is the way in. Nothing here imports asyncio, time, random, socket, os or
logging, nor any other part of coloha but `coloha.errors`; a test holds that.
"""
