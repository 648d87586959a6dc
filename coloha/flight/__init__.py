"""The flight record: what the machine was told and decided, kept, repeated and explained.

`codec` writes any value of the core as JSON, `record` is the file's format, `replay` repeats the
decisions, `explain` puts them into words. `coloha.runtime.recorder` makes the files.
"""
