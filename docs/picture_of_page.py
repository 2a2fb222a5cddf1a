"""Takes docs/page.png, the picture of the page of ``emoq serve``.

    python docs/picture_of_page.py RECOGNIZER RECORDING "What is said in it."

needs Chromium and the extra ``dev``.
"""

import argparse
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

from emoq_modules import EmotionRecognizer
from emoq_modules.commands.serve import ServeSettings, serving

PICTURE = Path(__file__).with_name("page.png")
# Without a sandbox it runs as root too, as in a container; the others keep
# Chromium from calling home.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium(*arguments):
    """The system's Chromium, without a window.

    Arguments
    ---------
    *arguments : str
        Further arguments of its command line.

    Yields
    ------
    playwright.sync_api.Browser

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = shutil.which("chromium")
    if path is None:
        raise FileNotFoundError(
            "There is no Chromium on this machine: apt-get install chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*_ARGUMENTS, *arguments]
        )
        yield browser
        browser.close()


def ask(page, recording, text=""):
    """Uploads a recording on the page, and presses the button.

    Arguments
    ---------
    page : playwright.sync_api.Page
        Which shows the page of ``emoq serve``.
    recording : str or Path
        The file to upload.
    text : str
        What is said in it.
    """
    page.get_by_role("textbox", name="Transcript").fill(text)
    page.set_input_files("input[type=file]", recording)
    page.get_by_role("button", name="Play", exact=True).wait_for()
    page.get_by_role("button", name="Recognize").click()


def free_port():
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main():
    """Reads the command line, and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recognizer", help="the folder of a trained model")
    parser.add_argument("recording")
    parser.add_argument("text", help="what is said in the recording")
    own = parser.parse_args()
    recognizer = EmotionRecognizer.from_hparams(own.recognizer)
    settings = ServeSettings()
    with (
        serving(recognizer, settings, port=free_port()) as url,
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 1120, "height": 600})
        page.goto(url)
        ask(page, own.recording, own.text)
        page.locator("#over-time svg, #over-time canvas").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until nothing moves
        page.screenshot(path=PICTURE, full_page=True)


if __name__ == "__main__":
    main()
