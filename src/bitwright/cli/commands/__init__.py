"""Commands, found by file name. A file defines ``command`` (a typer function) or ``app`` (a ``typer.Typer`` group).

Its docstring's first sentence is the line in ``bitwright --help``. Files import torch and the rest of Bitwright inside
the function, so that ``--help`` stays quick.
"""
