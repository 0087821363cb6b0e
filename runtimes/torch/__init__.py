"""Torch: Hugging Face text encoders, TorchScript files and ``torch.export`` programs, on the CPU or CUDA."""
