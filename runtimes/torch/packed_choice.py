"""Whether a text encoder computes its texts packed or padded."""

from __future__ import annotations

import sys
from typing import Any

from headrace.runtimes.base import InstanceSpec, ModelError, TensorSpec
from headrace.runtimes.torch import options
from headrace.runtimes.torch.packed_attention import takes_varlen_on
from headrace.runtimes.torch.packed_encoder import PackedEncoder


def choose(
    module: Any, output: TensorSpec, instance: InstanceSpec, longest: int | None
) -> PackedEncoder | None:
    """Return what computes the packed texts of ``module``, or None when they are padded.

    Option ``packed`` is ``on``, ``off`` or ``auto``. ``on`` and ``auto`` differ in what is said only: a model
    that cannot compute packed texts is served padded, and standard error, the server's log, says why.
    ``auto`` leaves a CUDA device padded where its flash attention does not take the dtype.

    Raises:
        ModelError: the option is something else, or ``on`` together with option ``compile``.
    """
    wanted = options.packed(instance.options)
    if wanted == "on" and options.switch(instance.options, "compile"):
        msg = "option 'packed' is on and so is 'compile': packed texts are not compiled, choose one"
        raise ModelError(msg)
    if wanted == "off" or (wanted == "auto" and not _worthwhile(module, output, instance)):
        return None
    reason = _obstacle(output, instance)
    if not reason:
        try:
            return PackedEncoder(module, output.name, longest)
        except ModelError as error:
            reason = f"{error}"
    sys.stderr.write(
        f"{instance.model}: texts are padded, {type(module).__name__} cannot pack them: {reason}\n"
    )
    return None


def _worthwhile(module: Any, output: TensorSpec, instance: InstanceSpec) -> bool:
    """Whether it is expected to be faster, and nobody will miss it where it is not possible."""
    if options.switch(instance.options, "compile") or _obstacle(output, instance):
        return False
    # Not measured: a call for each length that texts have, on a GPU.
    return module.device.type == "cpu" or takes_varlen_on(module.device, module.dtype)


def _obstacle(output: TensorSpec, instance: InstanceSpec) -> str:
    """Say what in the way a model is served is in the way; empty for nothing."""
    if instance.text is None:
        return "it is served as tensors, whose masks may be any"
    if len(output.shape) < 3:
        return "its head reads certain tokens of padded rows"
    return ""
