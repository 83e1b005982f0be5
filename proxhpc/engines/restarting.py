"""An engine that is restarted once if it dies."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxhpc.engines.base import Completion, Engine, EngineDiedError, Request
from proxhpc.errors import ProxError

_log = logging.getLogger(__name__)

_MAX_RESTARTS = 1  # what kills two engines is likely to kill the third


class RestartingEngine:
    """Passes requests to an engine; after its death, repeats the open ones to a new engine."""

    def __init__(self, engine: Engine, start: Callable[[], Awaitable[Engine]]) -> None:
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.max_model_len, self.cache_tokens = engine.max_model_len, engine.cache_tokens
        self.min_in_flight = engine.min_in_flight
        self._engine, self._start = engine, start
        self._restarting = asyncio.Lock()
        self._restarts_left = _MAX_RESTARTS
        self._closed = False

    async def complete(self, request: Request) -> Completion:
        """Answer one request. EngineDiedError when the last engine has died."""
        while True:
            engine = self._engine
            try:
                return await engine.complete(request)
            except EngineDiedError as error:
                async with self._restarting:
                    if self._engine is engine:
                        await self._restart(error)

    async def _restart(self, error: EngineDiedError) -> None:
        if self._closed:
            raise error
        if self._restarts_left == 0:
            raise EngineDiedError(
                f"the engine died again after {_MAX_RESTARTS} restart: {error.message}",
                hint="its log has the cause; the next worker resumes after the last commit",
            ) from error
        self._restarts_left -= 1
        _log.warning("%s; restarting it", error.message)
        await self._engine.close()
        try:
            self._engine = await self._start()
        except Exception as failure:  # no error of a start may be blamed on a document
            reason = failure.message if isinstance(failure, ProxError) else repr(failure)
            raise EngineDiedError(
                f"{error.message}, and the restart failed: {reason}",
                hint=getattr(failure, "hint", ""),
            ) from failure

    async def close(self) -> None:
        """Close the engine for good. Never raises."""
        self._closed = True
        await self._engine.close()
