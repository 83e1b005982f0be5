"""An engine that outlives its own death: started again, once, and asked again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxhpc.engines.base import Completion, Engine, EngineDiedError, Request
from proxhpc.errors import ProxError

log = logging.getLogger(__name__)

RESTARTS = 1  # what kills two engines is likely to kill the third


class RestartingEngine:
    """Passes requests on to an engine, and to its successor what was under way when it died."""

    def __init__(self, engine: Engine, start: Callable[[], Awaitable[Engine]]) -> None:
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.max_model_len, self.cache_tokens = engine.max_model_len, engine.cache_tokens
        self._engine, self._start = engine, start
        self._starting = asyncio.Lock()
        self._left = RESTARTS
        self._closed = False

    async def complete(self, request: Request) -> Completion:
        """Answer one request. EngineDiedError when the last engine has died."""
        while True:
            engine = self._engine
            try:
                return await engine.complete(request)
            except EngineDiedError as error:
                async with self._starting:
                    if self._engine is engine:
                        await self._replace(error)

    async def _replace(self, error: EngineDiedError) -> None:
        if self._closed:
            raise error
        if self._left == 0:
            raise EngineDiedError(
                f"the engine died again after {RESTARTS} restart: {error.message}",
                hint="its log says why; the next worker goes on behind what is committed",
            ) from error
        self._left -= 1
        log.warning("%s; it is started again", error.message)
        await self._engine.close()
        try:
            self._engine = await self._start()
        except Exception as failure:  # no document's fault, whatever it is
            what = failure.message if isinstance(failure, ProxError) else repr(failure)
            raise EngineDiedError(
                f"{error.message}, and no other did start: {what}",
                hint=getattr(failure, "hint", ""),
            ) from failure

    async def close(self) -> None:
        """Close the engine for good. Never raises."""
        self._closed = True
        await self._engine.close()
