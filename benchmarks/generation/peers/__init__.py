"""What generation is related to: one file a contender, each run by its own Python with :mod:`.child`.

Files of contenders import nothing of this project but :mod:`benchmarks.generation.work` and
:mod:`benchmarks.generation.peers.child`, which need the standard library only.
"""
