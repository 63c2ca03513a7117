"""sensevoiced: a resident speech recognition daemon; this module holds the version and imports nothing."""

__version__ = "0.1.0"
