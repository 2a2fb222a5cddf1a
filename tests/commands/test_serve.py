"""A trained model as a web page: what visitors see, and what is kept of them.

The model is a real one, if tiny. The page is looked at with Chromium.
"""

import csv
import io
import json
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from docs.picture_of_page import ask, chromium, free_port
from emoq_modules import EmotionRecognizer, Recording
from emoq_modules.commands.cli import main
from emoq_modules.commands.serve import ServeSettings, serving
from emoq_modules.commands.serve_answer import answer, answer_all
from emoq_modules.errors import UploadError

SETTINGS = ServeSettings(
    max_mb=0.5, max_seconds=4, max_concurrent=2, window_s=1, hop_s=0.5
)
TEXT = "no, <b>leave</b> me alone"
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
NASTY = "<img src=x onerror=alert(1)>.wav"


@pytest.fixture(scope="module")
def recognizer(recognizer_folder):
    return EmotionRecognizer.from_hparams(recognizer_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where whatever is written to a temporary file would be."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def url(recognizer, folder):
    with serving(recognizer, SETTINGS, port=free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def browser():
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium, which is not here: apt install chromium")
    with chromium(
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"
    ) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    page = browser.new_page()
    page.set_default_timeout(10_000)
    page.requests, page.dialogs = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("dialog", lambda dialog: page.dialogs.append(dialog.message))
    page.goto(url)
    yield page
    page.close()


def recording(path, seconds=0.7):
    """Writes a recording of a voice-like tone that grows louder."""
    times = np.arange(round(seconds * 16000)) / 16000
    samples = 0.2 * np.sin(2 * np.pi * 220 * times) * times / seconds
    soundfile.write(path, samples, 16000)
    return path


def kept_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def upload(url, name, content):
    return httpx.post(
        f"{url}gradio_api/upload", files={"files": (name, content)}
    )


# --- What programs get ---


def test_programs_get_what_the_recognizer_says(client, recognizer, tmp_path):
    path = recording(tmp_path / "hello.wav")
    found = client.predict(handle_file(path), TEXT, "Ross")
    (expected,) = recognizer.recognize([Recording(path, TEXT, "Ross")])
    assert found["posteriors"] == pytest.approx(expected.posteriors, abs=1e-6)
    assert found["label"] == expected.label
    assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert (found["start"], found["end"]) == (0, 0.7)
    assert not found["abstained"]
    assert found["prompt"] == recognizer.prompt_text(TEXT, "Ross")
    assert found["windows"] == []  # it is shorter than one


def test_recording_longer_than_a_window_gets_a_time_line(
    client, recognizer, tmp_path
):
    path = recording(tmp_path / "long.wav", 2.2)
    found = client.predict(handle_file(path))
    expected = recognizer.timeline(path, window_s=1, hop_s=0.5)
    assert [w["start"] for w in found["windows"]] == [0, 0.5, 1, 1.2]
    for window, other in zip(found["windows"], expected, strict=True):
        assert window["posteriors"] == pytest.approx(other.posteriors, abs=1e-6)
        assert window["label"] == other.label


def test_upload_is_decoded_once(recognizer, tmp_path, monkeypatch):
    path = recording(tmp_path / "long.wav", 2.2)
    read, frames = soundfile.SoundFile.read, []

    def counted(*arguments, **options):
        block = read(*arguments, **options)
        frames.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    found = answer(recognizer, SETTINGS, str(path))
    assert len(found["windows"]) == 4
    # A look at the last frame shows whether it is cut off.
    assert 2.2 * 16000 <= sum(frames) <= 2.2 * 16000 + 1


def test_model_that_is_not_sure_enough_abstains(recognizer, tmp_path):
    path = recording(tmp_path / "a.wav")
    found = answer(recognizer, ServeSettings(abstain_below=1.0), str(path))
    assert found["abstained"]
    assert found["label"] is None
    assert sum(found["posteriors"].values()) == pytest.approx(1, abs=1e-5)


def no_audio(path):
    path.write_text("not audio")


def no_byte(path):
    path.touch()


def too_long(path):
    recording(path, 4.2)


def nothing(path):
    """Nothing is sent."""


@pytest.mark.parametrize(
    ("write", "text", "message"),
    [
        (nothing, "", "There is no recording"),
        (no_audio, "", "The recording cannot be read as audio"),
        (no_byte, "", "The recording is an empty file"),
        (too_long, "", "The recording is longer than 4 s: cut it up"),
        (recording, "no " * 1000, "transcript has 2,999 characters"),
    ],
)
def test_what_cannot_be_recognized_is_refused(
    client, folder, tmp_path, write, text, message
):
    path = tmp_path / "secret-name.wav"
    write(path)
    sent = handle_file(path) if path.exists() else None
    with pytest.raises(AppError, match=message) as error:
        client.predict(sent, text)
    assert "secret-name" not in str(error.value)
    assert str(folder) not in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://example.org/hello.wav", "no address is fetched"),
        (__file__, ""),
        ("/etc/passwd", ""),
    ],
)
def test_only_what_was_uploaded_is_read(url, path, message):
    events = call(url, path)
    assert events.startswith("event: error")
    assert message in events
    # Nor does the host give any of its files away.
    assert httpx.get(f"{url}gradio_api/file={path}").status_code == 403


def call(url, path, text=""):
    """What the README does with curl; the events that come back."""
    recording = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    address = f"{url}gradio_api/call/recognize"
    event = httpx.post(address, json={"data": [recording, text, ""]}).json()
    return httpx.get(f"{address}/{event['event_id']}").text


def test_plain_requests_will_do_but_none_passes_the_queue(url, tmp_path):
    content = recording(tmp_path / "hello.wav").read_bytes()
    (path,) = upload(url, "hello.wav", content).json()
    events = call(url, path)
    assert events.startswith("event: complete")
    assert '"posteriors"' in events
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "", ""]
    reply = httpx.post(f"{url}gradio_api/run/recognize", json={"data": data})
    assert reply.status_code >= 400


def test_same_recording_sent_at_once_is_answered_each_time(
    client, recognizer, tmp_path, monkeypatch
):
    path = recording(tmp_path / "hello.wav")
    running, most, lock = 0, 0, threading.Lock()
    recognize = recognizer.recognize

    def counted(*arguments, **options):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        found = list(recognize(*arguments, **options))
        with lock:
            running -= 1
        return found

    monkeypatch.setattr(recognizer, "recognize", counted)
    jobs = [client.submit(handle_file(path)) for _ in range(8)]
    labels = {job.result()["label"] for job in jobs}
    assert len(labels) == 1
    assert most == SETTINGS.max_concurrent


# --- What is taken, and what is kept ---


def test_too_large_an_upload_is_refused_and_not_kept(url, folder):
    before = kept_in(folder)
    reply = upload(url, "large.wav", bytes(500_001))
    assert reply.status_code == 413
    assert "500000 bytes" in reply.text
    assert kept_in(folder) == before


@pytest.mark.parametrize(
    "name",
    ["../../x.wav", "/etc/cron.d/x", NASTY, "x.flac/../../y.sh", 300 * "x"],
)
def test_uploaded_names_lead_nowhere_else(url, folder, name):
    (path,) = upload(url, name, b"anything").json()
    (root,) = folder.glob("emoq-serve-*")
    assert Path(path).resolve().parents[1] == root
    assert Path(path) in kept_in(folder)
    assert "<" not in Path(path).name


def broken_off(url):
    """Sends half of an upload, and hangs up."""
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: multipart/form-data; boundary=X\r\n"
        "Content-Length: 100000\r\n\r\n--X\r\nContent-Disposition: form-data; "
        'name="files"; filename="x.wav"\r\n\r\n'
    )
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as visitor:
        visitor.sendall(head.encode() + bytes(50_000))
        time.sleep(0.3)


def test_uploads_that_nobody_asks_about_do_not_fill_the_disk(
    recognizer, folder
):
    small = ServeSettings(max_mb=0.01)
    with serving(recognizer, small, port=free_port()) as url:
        codes = [
            upload(url, f"{n}.wav", bytes([n]) * 9000).status_code
            for n in range(60)
        ]
    taken = codes.count(200)  # 45 hold more than 40 of 10 KB, less the folders
    assert 30 <= taken <= 45
    assert codes == taken * [200] + (60 - taken) * [503]


def test_a_question_is_no_larger_than_one(url):
    asked = urlsplit(url)
    path = "/gradio_api/call/recognize"
    with socket.create_connection((asked.hostname, asked.port)) as visitor:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"
        visitor.sendall(f"{head}Content-Length: 600000000\r\n\r\n".encode())
        assert visitor.recv(1000).startswith(b"HTTP/1.1 413 ")

    def body():  # of a length that is not told
        for _ in range(20):
            yield bytes(100_000)

    with suppress(httpx.WriteError):  # it is not read to its end
        reply = httpx.post(f"{url}{path[1:]}", content=body())
        assert reply.status_code in (400, 413)
    assert httpx.get(url).status_code == 200


def test_what_a_program_has_asked_wrongly_is_said(url):
    address = f"{url}gradio_api/call/recognize"
    event = httpx.post(address, json={"data": [5, "", ""]}).json()
    events = httpx.get(f"{address}/{event['event_id']}").text
    assert events.startswith("event: error") and "null" not in events


def test_nothing_of_an_upload_stays_longer_than_is_said(recognizer, folder):
    before, others = kept_in(folder), set(folder.iterdir())
    with serving(recognizer, SETTINGS, port=free_port(), kept_s=2) as url:
        (path,) = upload(url, "x.wav", b"anything").json()
        broken_off(url)
        (own,) = set(folder.iterdir()) - others
        assert own.stat().st_mode & 0o077 == 0  # for this user alone
        assert len(kept_in(folder)) == len(before) + 2
        time.sleep(2.2)
        assert kept_in(folder) == before
        assert "not here any more" in call(url, path)
        upload(url, "y.wav", b"anything")
    assert not own.exists()


def test_more_connections_than_files_may_be_open_wait(url, caplog):
    asked, limit = urlsplit(url), resource.RLIMIT_NOFILE
    before, connections = resource.getrlimit(limit), []
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(limit, (opened + 20, before[1]))
    try:
        with suppress(OSError):  # both ends are in this process
            for _ in range(40):
                address = asked.hostname, asked.port
                connections.append(socket.create_connection(address, 1))
        time.sleep(0.5)
    finally:
        resource.setrlimit(limit, before)
        for connection in connections:
            connection.close()
    assert connections and not [x for x in caplog.records if x.exc_info]
    assert httpx.get(url).status_code == 200


def test_page_is_for_this_machine_alone(url):
    # All of 127.0.0.0/8 is this machine; the page is at one address of it.
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", urlsplit(url).port), timeout=1)


def test_nothing_is_reported_shared_or_recorded(url):
    config = httpx.get(f"{url}config").json()
    assert not config["analytics_enabled"]
    assert not config["run_history"]
    assert config["space_id"] is None


# --- What visitors see ---


def shown(page, recognition):
    """Whether the page shows a recognition; its bars are in whole percents."""
    texts = page.locator("#verdict .confidence").all_inner_texts()
    values = sorted(recognition.posteriors.values(), reverse=True)
    return [float(text.strip(" %")) for text in texts] == pytest.approx(
        [100 * value for value in values], abs=0.51
    )


def test_page_shows_posteriors_prompt_and_time_line(page, recognizer, tmp_path):
    path = recording(tmp_path / "long.wav", 2.2)
    ask(page, path, TEXT)
    picture = page.locator("#over-time svg")
    picture.wait_for()
    (expected,) = recognizer.recognize([Recording(path, TEXT)])
    heading = page.get_by_test_id("label-output-value")
    assert heading.inner_text().strip() == expected.label
    assert shown(page, expected)
    assert page.locator("#note").inner_text().endswith("%, calibrated.")
    prompt = page.locator("#prompt textarea").input_value()
    assert prompt == recognizer.prompt_text(TEXT)
    for label in expected.posteriors:
        assert picture.get_by_text(label, exact=True).is_visible()

    page.get_by_role("textbox", name="Transcript").fill("great yes")
    page.get_by_role("button", name="Recognize").click()
    page.wait_for_function(
        "document.querySelector('#prompt textarea').value.includes('great')"
    )
    (again,) = recognizer.recognize([Recording(path, "great yes")])
    assert shown(page, again)

    hosts = {
        urlsplit(address.removeprefix("blob:")).netloc
        for address in page.requests
    }
    assert hosts == {urlsplit(page.url).netloc}


def test_page_fits_a_phone(page, tmp_path):
    page.set_viewport_size({"width": 320, "height": 640})
    ask(page, recording(tmp_path / "long.wav", 2.2))
    page.locator("#over-time svg").wait_for()
    beyond = """[...document.querySelectorAll("body *")].filter(
        x => x.checkVisibility() && x.getBoundingClientRect().right > 320
    ).map(x => x.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_page_says_what_is_wrong_with_a_file(page, tmp_path):
    path = tmp_path / NASTY
    path.write_text("not audio")
    page.set_input_files("input[type=file]", path)
    page.get_by_label("Clear").wait_for()
    page.get_by_role("button", name="Recognize").click()
    page.get_by_text("The recording cannot be read as audio").wait_for()
    path = recording(path, 16)
    page.get_by_label("Clear").click()
    page.set_input_files("input[type=file]", path)
    page.get_by_text("maximum allowed size").wait_for()
    assert page.dialogs == []


def test_page_takes_what_the_microphone_hears(page):
    page.get_by_role("button", name="Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    page.get_by_role("button", name="Recognize").click()
    page.locator("#verdict .confidence").first.wait_for()
    assert page.locator("#verdict .confidence").count() == 3


def test_several_recordings_come_back_as_a_csv(page, recognizer, tmp_path):
    """With the words that a table among them tells."""
    first, second = (
        recording(tmp_path / f"{name}.wav", seconds)
        for name, seconds in (("a", 0.7), ("b", 0.9))
    )
    (tmp_path / "c.wav").write_text("no audio")
    words = tmp_path / "words.csv"
    words.write_text(f'path,text\ncalls/a.wav,"{TEXT}"\n')
    page.get_by_role("button", name="Several recordings").click()
    files = page.locator("input[type=file][multiple]")
    files.set_input_files([first, second, tmp_path / "c.wav", words])
    page.locator("a[download='words.csv']").wait_for()
    page.get_by_role("button", name="Recognize all").click()
    with page.expect_download() as download:
        page.locator("a[download='emotions.csv']").first.click()
    text = Path(download.value.path()).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    expected = recognizer.recognize([Recording(first, TEXT), Recording(second)])
    for row, other in zip(rows, expected, strict=False):
        assert row["path"] == Path(other.path).name
        assert row["label"] == other.label and not row["error"]
        assert float(row["happy"]) == pytest.approx(
            other.posteriors["happy"], abs=1e-6
        )
    assert len(rows) == 3 and "c.wav cannot be read" in rows[2]["error"]
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "0 recordings and 0 tables"),
        (["words.csv"], "0 recordings and 1 tables"),
        (["a.wav", "words.csv"], "The transcripts in words.csv need"),
    ],
)
def test_what_is_no_set_of_recordings_is_refused(
    recognizer, tmp_path, names, message
):
    recording(tmp_path / "a.wav")
    (tmp_path / "words.csv").write_text("name,number\na,1\n")
    with pytest.raises(UploadError, match=message):
        answer_all(recognizer, SETTINGS, [tmp_path / name for name in names])


def test_page_shows_the_card_of_the_model(page, recognizer_folder):
    page.get_by_role("button", name="Model card").click()
    page.get_by_role("heading", name="Intended use and limits").wait_for()
    results = json.loads(
        (Path(recognizer_folder).parent / "results.json").read_bytes()
    )
    cells = page.locator("table").first.inner_text().split()
    assert f"{results['UA']:.1f}" in cells


# --- The command ---


@pytest.fixture
def signals():
    """Signals mean afterwards what they meant before."""
    before = {n: signal.getsignal(n) for n in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_command_serves_until_it_is_stopped(
    recognizer_folder, folder, capsys, signals, number
):
    port, answers = free_port(), []
    url = f"http://127.0.0.1:{port}/"

    def visit():
        patient = httpx.HTTPTransport(retries=10)
        try:
            with httpx.Client(transport=patient) as visitor:
                answers.append(visitor.get(url).status_code)
            upload(url, "x.wav", b"anything")
        finally:
            os.kill(os.getpid(), number)

    before = kept_in(folder)
    visitor = threading.Thread(target=visit)
    visitor.start()
    options = ["--model", recognizer_folder, "--port", str(port)]
    assert main(["serve", *options]) == 0
    visitor.join()
    assert answers == [200]
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"The page is at {url} until Ctrl-C.",
        "",
        "stopped",
    ]
    assert "Traceback" not in err
    assert kept_in(folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_second", "3"], "knows no --max_second 3"),
        (["--abstain_below", "2"], "a confidence is from 0 to 1"),
        (["--max_seconds", "0"], "--max_seconds is 0.0; it has to be above 0"),
        (["--max_mb", "nan"], "--max_mb is nan"),
        (["--window_s", "0.01"], "--window_s is 0.01; it has to be 0.025 s"),
        (["--port", "99999"], "port 99999"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_options_out_of_range_are_named(capsys, options, message):
    assert main(["serve", "--model", "nowhere", *options]) == 2
    assert message in capsys.readouterr().err


def test_port_that_is_taken_is_named_before_the_model_is_loaded(capsys, url):
    port = str(urlsplit(url).port)
    assert main(["serve", "--model", "nowhere", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"port {port} (Address already in use)" in error


def test_missing_gradio_is_named(capsys, monkeypatch):
    monkeypatch.setattr(
        "emoq_modules.commands.serve.find_spec", lambda name: None
    )
    assert main(["serve", "--model", "nowhere"]) == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err
