"""The serving wing: who asks, may they, and what do we answer. Imports neither frontend nor engine.

The daemon hands it callables.
"""
