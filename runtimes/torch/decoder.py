"""Decoders on torch for the generation engine: what kind of model a folder holds, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Decoder, GenerationSpec
from headrace.runtimes.torch import options
from headrace.runtimes.torch.generation.architecture import Architecture, architecture, read_config
from headrace.runtimes.torch.generation.dtypes import chosen_dtype
from headrace.runtimes.torch.generation.llama import Llama
from headrace.runtimes.torch.generation.network import Network
from headrace.runtimes.torch.generation.paged_decoder import PagedDecoder
from headrace.runtimes.torch.generation.slot_decoder import SlotDecoder, set_threads
from headrace.runtimes.torch.generation.weights import Checkpoint


def load(instance: InstanceSpec) -> Decoder:
    """Load a decoder-only model from a Hugging Face folder with ``config.json`` and safetensors.

    The Llama family (``architecture.FAMILY``) has code of its own; other models are computed by transformers
    with this engine's attention, and are refused when that would not compute what transformers itself does.

    Options: ``dtype`` (``auto``, ``float32``, ``bfloat16``, ``float16``); ``sampling`` (``host``, ``device``,
    ``ahead``), who chooses tokens on a GPU, see ``generation.base.DeviceSampling``. Nothing is downloaded and
    no code of the folder is run.

    Raises:
        ModelError: the folder is incomplete, the model cannot be served, or an option is wrong.
    """
    if instance.generation is None:
        msg = f"'{instance.model}' is not set up for generation"
        raise ModelError(msg)
    folder = Path(instance.path)
    config = read_config(folder)
    if config.get("quantization_config"):
        msg = f"'{folder.name}' is quantised, which the torch runtime does not compute"
        raise ModelError(msg)
    device = options.device(instance)
    sampling = options.sampling(instance.options)
    set_threads(instance)
    decoder: Callable[[Network, GenerationSpec], Decoder] = SlotDecoder
    if device.type == "cuda":
        from headrace.runtimes.torch.generation.cuda_kernel import decode

        decoder = partial(PagedDecoder, device=device, decode=decode, sampling=sampling)
    sizes = architecture(config)
    if sizes is not None:
        return decoder(_fused(folder, sizes, instance, device), instance.generation)
    from headrace.runtimes.torch.generation import auto

    network = auto.load(folder, instance, instance.generation, device, decoder)
    return decoder(network, instance.generation)


def _fused(folder: Path, sizes: Architecture, instance: InstanceSpec, device: torch.device) -> Network:
    length = instance.generation.max_tokens if instance.generation else 0
    if length > sizes.longest:
        msg = f"sequences of {length} tokens are longer than the model's {sizes.longest}"
        raise ModelError(msg)
    with Checkpoint(folder) as checkpoint, torch.inference_mode():
        dtype = chosen_dtype(instance, device, checkpoint.dtype("model.embed_tokens.weight"))
        return Llama(checkpoint, sizes, length, dtype, device)
