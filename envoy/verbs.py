"""Which verbs the known paths take: what turns Envoy's 404 for a known path into 405."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from headrace.envoy.descriptors import Binding


class KnownPaths(NamedTuple):
    """All paths that take exactly the same verbs.

    Args:
        verbs: the verbs, sorted.
        regex: RE2 expression for the paths, a trailing slash (the transcoder takes one) and a query.
    """

    verbs: tuple[str, ...]
    regex: str


def known_paths(bindings: Sequence[Binding]) -> tuple[KnownPaths, ...]:
    """The paths of all bindings, those with the most verbs first: several templates may match a path."""
    verbs_by_path: dict[str, set[str]] = defaultdict(set)
    for binding in bindings:
        verbs_by_path[binding.regex].add(binding.verb)
    paths_by_verbs: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, verbs in sorted(verbs_by_path.items()):
        paths_by_verbs[tuple(sorted(verbs))].append(path)
    order = sorted(paths_by_verbs.items(), key=lambda item: (-len(item[0]), item[0]))
    return tuple(KnownPaths(verbs, rf"(?:{'|'.join(paths)})/?(?:\?.*)?") for verbs, paths in order)
