"""Imported last by what forks processes: all that is there by now is not searched for garbage in any of them.

A collection in a process that has seen PyTorch takes 0.3 s, and to search a page of memory copies it.
"""

import gc

gc.collect()
gc.freeze()
