"""Which model answers a request of Text Embeddings Inference, over REST and gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from headrace.server.codecs.tei_info import TEXT_TASKS
from headrace.server.errors import ModelNotFoundError, TaskNotSupportedError
from headrace.server.repository.lookup import DEFAULT_NAMES
from headrace.server.repository.model import Task
from headrace.server.tasks.rerank import is_cross_encoder, ranking_settings

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call

RANKING: Final = (Task.RERANK, Task.EMBED, Task.CLASSIFY)
LABELLING: Final = (Task.CLASSIFY, Task.RERANK)
NO_EMBEDDER: Final = "Model is not an embedding model"
NO_CLASSIFIER: Final = "model is not a classifier model"
NO_RANKER: Final = "model is not a re-ranker model"


def embeds(model: Model) -> bool:
    """Whether ``tei.v1.Embed`` has something to do with a model."""
    return model.text is not None and model.task is Task.EMBED


def labels(model: Model) -> bool:
    """Whether ``tei.v1.Predict`` has something to do with a model."""
    return model.text is not None and model.task in LABELLING


def ranks(model: Model) -> bool:
    """Whether ``tei.v1.Rerank`` has something to do with a model."""
    return model.text is not None and (model.token_vectors or is_cross_encoder(model))


def resolve_ranker(repository: Repository, call: Call, name: str) -> Model:
    """Return the model of that name, else the default one, that ranks; raises as :func:`resolve_encoder`."""
    return resolve_encoder(repository, call, name, RANKING, NO_RANKER, ranking_settings)


def resolve_sparse(repository: Repository, call: Call, name: str) -> Model:
    """Return the model of that name, else a SPLADE model where there is one; raises as the others."""
    model = resolve_encoder(repository, call, name, (Task.EMBED,), NO_EMBEDDER)
    if name in DEFAULT_NAMES and not _sparse(model):
        model = call.model = next(filter(_sparse, repository.ready_models()), model)
    return model


def _sparse(model: Model) -> bool:
    return model.text is not None and model.text.sparse


def resolve_encoder(
    repository: Repository,
    call: Call,
    name: str,
    tasks: Sequence[Task],
    otherwise: str = "",
    fits: Callable[[Model], object] = lambda _: None,
) -> Model:
    """Return the model of that name, else the default of the first task that has one; ``call`` notes it.

    ``otherwise`` is what Text Embeddings Inference says of a model that does something else, or that ``fits``
    refuses; the name and the task follow it. A server whose only encoders do something else says the same
    where no model is named.

    Raises:
        TaskNotSupportedError: the model, or every encoder there is, does none of ``tasks``.
        ModelNotFoundError: there is no such model, or no encoder at all.
        ModelNotReadyError: it is there but is not ready.
    """
    try:
        model = call.model = _resolve(repository, name, tasks)
        fits(model)
    except TaskNotSupportedError as error:
        if not otherwise:
            raise
        raise TaskNotSupportedError(f"{otherwise}: {error.message}", **error.metadata) from None
    return model


def _resolve(repository: Repository, name: str, tasks: Sequence[Task]) -> Model:
    try:
        return repository.resolve(name, *tasks)
    except ModelNotFoundError:
        others = [model for model in repository.ready_models() if model.task in TEXT_TASKS and model.text]
        if name not in DEFAULT_NAMES or not others:
            raise
        return repository.resolve(others[0].name, *tasks)
