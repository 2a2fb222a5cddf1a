"""Where uploads lie until they are answered: each in a folder of its own.

Gradio's own upload route names a folder by what is in the file. Two visitors
who send the same recording would then share a file, which goes with the first
answer; and what is left of an upload that was broken off would stay.
"""

import asyncio
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from gradio.route_utils import API_PREFIX
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".webm"}
_AROUND_A_FILE = 10_000  # bytes of a request that are not the file's


class Uploads:
    """A folder of uploads, and the routes by which they come.

    Arguments
    ---------
    folder : str or Path
        Gradio's folder of temporary files.
    max_bytes : int
        A larger upload is refused.
    kept_s : float
        An upload that nobody asks about is removed after so many seconds.
    """

    def __init__(self, folder, max_bytes, kept_s=600.0):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.kept_s = kept_s

    @property
    def routes(self):
        """What stands in the place of Gradio's routes for uploads."""
        return [
            Route(f"{API_PREFIX}/upload", self._receive, methods=["POST"]),
            Route(f"{API_PREFIX}/upload_progress", _no_progress),
        ]

    async def _receive(self, request):
        # The server reads no more of a request than its header says.
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            raise HTTPException(411, "Say how large the upload is.")
        if int(length) > self.max_bytes + _AROUND_A_FILE:
            raise self._too_large()
        try:
            path = await self._store(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        asyncio.get_running_loop().call_later(self.kept_s, self.remove, path)
        return JSONResponse([str(path)])

    async def _store(self, request):
        async with request.form(max_files=1, max_fields=1) as form:
            upload = form.get("files")
            if not isinstance(upload, UploadFile):
                raise HTTPException(400, "Send a file, in the field 'files'.")
            if upload.size > self.max_bytes:
                raise self._too_large()
            path = self._place(upload.filename)
            with path.open("wb") as file:
                await run_in_threadpool(shutil.copyfileobj, upload.file, file)
        return path

    def _too_large(self):
        return HTTPException(
            413, f"More than {self.max_bytes / 1e6:g} MB are not taken here."
        )

    def _place(self, name):
        """A path that nobody can guess; of the name only a usual suffix."""
        suffix = Path(name or "").suffix.lower()
        known = suffix if suffix in _SUFFIXES else ""
        folder = tempfile.mkdtemp(dir=self.folder)
        return Path(folder) / f"recording{known}"

    def remove(self, path):
        """Removes an upload with its folder, if it is still there."""
        own = Path(path).parent
        if own.parent == self.folder:  # programs may name any path
            shutil.rmtree(own, ignore_errors=True)

    @contextmanager
    def removed_afterwards(self, path):
        """Removes an upload when the context ends; None is no upload."""
        try:
            yield
        finally:
            if path is not None:
                self.remove(path)


async def _no_progress(request):
    """Tells a page that asks how far an upload is not to ask again."""
    return PlainTextResponse(
        'data: {"msg": "done"}\n\n', media_type="text/event-stream"
    )


@contextmanager
def upload_folder():
    """A folder for Gradio's temporary files, for this user alone.

    Yields
    ------
    str
        Its name; it is removed afterwards, with all that is in it.
    """
    name = "GRADIO_TEMP_DIR"  # read when a page is built, and at each request
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="emoq-serve-") as folder:
        os.environ[name] = folder
        try:
            yield folder
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before
