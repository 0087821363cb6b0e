"""Decoder-only models for the generation engine: networks, KV caches and attention, on the CPU or CUDA."""
