"""``emoq serve``: a trained model as a web page, and as a service."""

import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from emoq_modules.commands.options import (
    add_command,
    add_model_options,
    load_recognizer,
)
from emoq_modules.errors import ConfigurationError

# What encoders hear at once; that of dataio.recordings takes seconds to import.
_SHORTEST_S = 0.025
_UPLOADS_KEPT = 40  # of the largest size; with more there, none is taken
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DESCRIPTION = """\
Serves a web page on which speech is uploaded or recorded, and which shows the
emotion that a trained model recognizes in it. Programs get the same as JSON
from its endpoint /recognize. What is sent is removed within minutes. Ctrl-C
stops it.
"""
_EXAMPLES = """\
examples:
  emoq serve --model RUN/recognizer
      for this machine alone, at http://127.0.0.1:7860/
  emoq serve --model RUN/recognizer --host 0.0.0.0 --max_seconds 20
      for whoever reaches this machine: there is no password. Browsers give a
      page the microphone by https alone: put a proxy that speaks it before

exit status: 0 when it was stopped; 2 if the command is wrong.
"""
_HELP = {
    "max_mb": "largest upload, in MB (%(default)g)",
    "max_seconds": "longest recording, in seconds (%(default)g)",
    "max_concurrent": "recordings recognized at a time, while others wait "
    "(%(default)d)",
    "abstain_below": "give no answer where the confidence is below, from 0 to "
    "1",
    "window_s": "longer recordings get a time line, of windows of so many "
    "seconds (%(default)g)",
    "hop_s": "from the start of a window to that of the next (%(default)g)",
}


@dataclass(frozen=True)
class ServeSettings:
    """What a server takes, and how it answers."""

    max_mb: float = 25.0  # size of an upload, in MB of 10^6 bytes
    max_seconds: float = 60.0  # length of a recording
    max_concurrent: int = 1  # recognized at a time; others wait in a queue
    abstain_below: float | None = None  # None leaves it to the model
    window_s: float = 2.0  # a longer recording gets a time line too
    hop_s: float = 0.5  # from the start of one window to that of the next

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name == "abstain_below":
                if value is not None and not 0 <= value <= 1:
                    raise ConfigurationError(
                        f"--{name} is {value}; a confidence is from 0 to 1."
                    )
            elif name in ("window_s", "hop_s") and not (
                _SHORTEST_S <= value < float("inf")
            ):
                raise ConfigurationError(
                    f"--{name} is {value}; it has to be {_SHORTEST_S} s at "
                    "least."
                )
            elif not 0 < value < float("inf"):
                raise ConfigurationError(
                    f"--{name} is {value}; it has to be above 0."
                )


def add_serve(commands):
    """Adds ``serve`` to the commands of ``emoq``."""
    command = add_command(
        commands,
        "serve",
        _serve,
        "show a trained model as a web page",
        _DESCRIPTION,
        _EXAMPLES,
    )
    add_model_options(command)
    command.add_argument(
        "--host",
        default=_LOOPBACK[0],
        help="address to listen at (%(default)s, this machine alone)",
    )
    command.add_argument(
        "--port", type=int, default=7860, help="port to listen at (%(default)s)"
    )
    for name, text in _HELP.items():
        default = getattr(ServeSettings, name)
        command.add_argument(
            f"--{name}",
            type=int if isinstance(default, int) else float,
            default=default,
            metavar="N",
            help=text,
        )


def _serve(own):
    if find_spec("gradio") is None:
        raise ConfigurationError(
            "The page is made with Gradio, which is not installed: "
            "pip install -e '.[serve]'"
        )
    settings = ServeSettings(**{name: getattr(own, name) for name in _HELP})
    _check_address(own.host, own.port)  # loading a model may take minutes

    recognizer = load_recognizer(own)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with serving(recognizer, settings, own.host, own.port) as url:
        print(f"The page is at {url} until Ctrl-C.", flush=True)
        if own.host not in _LOOPBACK:
            print("Anybody who reaches this machine can use it.", flush=True)
        stop.wait()
    print("\nstopped")


def _check_address(host, port):
    try:
        (family, *_), *_ = socket.getaddrinfo(host, None)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"No page can be served at {host}, port {port} ({reason}): give "
            "another --port, or another --host."
        ) from error


@contextmanager
def serving(recognizer, settings, host="127.0.0.1", port=7860, kept_s=300.0):
    """Serves a recognizer's page while the context lasts; yields its address.

    Uploads lie in a folder of its own, for this user alone; each goes after
    ``kept_s`` seconds, and the folder with the server. Before they fill the
    disk, others are refused. OSError if the port is
    taken.
    """
    from starlette.middleware import Middleware

    from emoq_modules.commands.serve_limits import Limits
    from emoq_modules.commands.serve_page import CSS, THEME, build_page

    with _upload_folder(kept_s) as folder:
        max_kept = int(_UPLOADS_KEPT * settings.max_mb * 1e6)
        limits = Middleware(Limits, folder=folder, max_kept=max_kept)
        page = build_page(recognizer, settings, kept_s)
        try:
            _, url, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                max_file_size=int(settings.max_mb * 1e6),
                app_kwargs={"middleware": [limits]},
                show_error=True,  # else it is null for programs
                # Else 34 KB stay in memory of each of the last 10,000 requests.
                state_session_capacity=50,
                theme=THEME,
                css=CSS,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=["api"],
                # Nothing leaves this machine, and nothing is kept on it or in
                # the visitor's browser.
                share=False,
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
            )
            yield url
        finally:
            page.close(verbose=False)


@contextmanager
def _upload_folder(kept_s):
    """A folder for Gradio's files, swept of what has been there too long.

    Gradio's own ``delete_cache`` knows the uploads that have arrived, and not
    those that were broken off, which would stay.
    """
    name = "GRADIO_TEMP_DIR"  # read when a page is built, and at each request
    before, stop = os.environ.get(name), threading.Event()

    def sweep():
        while not stop.wait(0.1 * kept_s):
            for path in sorted(Path(folder).rglob("*"), reverse=True):
                with suppress(OSError):  # what is not empty, or gone already
                    if time.time() - path.stat().st_mtime > 0.9 * kept_s:
                        path.rmdir() if path.is_dir() else path.unlink()

    with tempfile.TemporaryDirectory(prefix="emoq-serve-") as folder:
        os.environ[name] = folder
        threading.Thread(target=sweep, daemon=True).start()
        try:
            yield folder
        finally:
            stop.set()
            del os.environ[name]
            if before is not None:
                os.environ[name] = before
