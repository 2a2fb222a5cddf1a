"""How much a server takes: of a request, and of all uploads together."""

from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

# What is no upload is a question about one: a transcript, a name, a path.
_MAX_QUESTION = 1_000_000  # bytes
_MAX_AT_ONCE = 10  # uploads on their way


class Limits:
    """ASGI middleware that refuses what would fill the memory or the disk.

    A request is refused that is larger than its kind may be, and an upload
    while ``folder`` holds ``max_kept`` bytes, or others are on their way: what
    lies there is removed after some minutes, whoever it is from.
    """

    def __init__(self, app, folder, max_kept):
        self.app, self.folder, self.max_kept = app, Path(folder), max_kept
        self.on_their_way = 0

    async def __call__(self, scope, receive, send):
        """Passes a request on, or answers it with why not."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            return await self.app(scope, receive, send)
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        if is_upload and self._is_full():
            refusal = PlainTextResponse(
                "There are too many recordings here for now: try again in some "
                "minutes.",
                503,
            )
            return await refusal(scope, receive, send)
        self.on_their_way += is_upload
        most = self.max_kept if is_upload else _MAX_QUESTION
        try:
            if int(Headers(scope=scope).get("content-length", 0)) > most:
                raise _TooLarge
            return await self.app(scope, _counted(receive, most), send)
        except _TooLarge:
            refusal = PlainTextResponse(
                f"A request has {most:,} bytes at most here.", 413
            )
            return await refusal(scope, receive, send)
        finally:
            self.on_their_way -= is_upload

    def _is_full(self):
        kept = 0
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # removed since
                kept += path.stat(follow_symlinks=False).st_size
        return self.on_their_way >= _MAX_AT_ONCE or kept > self.max_kept


class _TooLarge(Exception):
    """The body of a request is."""


def _counted(receive, most):
    """Reads the body of a request, as long as it is not too large."""
    read = 0

    async def counted():
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise _TooLarge
        return message

    return counted
