"""Benchmarks of text generation: our paths beside peers, interleaved, each in a process of its own."""
