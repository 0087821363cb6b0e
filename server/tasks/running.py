"""The requests that generate now, by the name that their callers gave them."""

from __future__ import annotations

from typing import Protocol


class Abortable(Protocol):
    """A request that somebody else than its caller may end."""

    def abort(self) -> None:
        """End it; its caller receives what there is, with finish ``abort``."""


class RunningRequests:
    """Finds running requests by their id. Several may have the same one: it is the callers' choice."""

    def __init__(self) -> None:
        self._requests: dict[str, list[Abortable]] = {}

    def add(self, request_id: str, request: Abortable) -> None:
        """Make a request known; one without an id cannot be found."""
        if request_id:
            self._requests.setdefault(request_id, []).append(request)

    def remove(self, request_id: str, request: Abortable) -> None:
        """Forget a request that is over; idempotent."""
        requests = self._requests.get(request_id)
        if requests is None:
            return
        requests[:] = [other for other in requests if other is not request]
        if not requests:
            del self._requests[request_id]

    def abort(self, request_id: str) -> int:
        """End the requests of this id and return how many there were."""
        requests = list(self._requests.get(request_id, ()))
        for request in requests:
            request.abort()
        return len(requests)

    def __len__(self) -> int:
        return sum(map(len, self._requests.values()))
