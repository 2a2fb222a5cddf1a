"""The web page of ``emoq serve``, and what programs call in its place."""

import io
import os
import tempfile
from html import escape
from pathlib import Path

import gradio as gr
import pandas as pd

from emoq_modules.commands.serve_answer import answer, answer_all
from emoq_modules.errors import UploadError
from emoq_modules.inference.export import read_card

# Fonts that are on the visitor's machine: none is fetched.
THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto; }
#limits p { font-size: .85em; color: var(--body-text-color-subdued); }
#prompt textarea { font-family: var(--font-mono); font-size: .85em; }
"""
# Okabe and Ito's, which color-blind readers can tell apart.
_COLORS = "#D55E00 #E69F00 #009E73 #0072B2 #CC79A7 #56B4E9 #F0E442".split()
_MAX_WAITING = 100
_API_DESCRIPTION = (
    "Recognizes the emotion in a recording. Give the transcript and the "
    'speaker as far as they are known, else "". Returns label (null where the '
    "model abstains), confidence, abstained, posteriors, start and end in "
    "seconds, the same of each window of a long recording, and the prompt."
)


def build_page(recognizer, settings, kept_s):
    """The page, to be launched with ``THEME`` and ``CSS``.

    Its endpoint ``/recognize`` answers programs with JSON. ``kept_s`` is how
    long a recording stays, in seconds.
    """

    def recognize(recording, text="", speaker=""):
        try:
            return answer(recognizer, settings, recording, text, speaker)
        except UploadError as error:
            # Programs alone ask here, and get it as JSON.
            raise gr.Error(str(error), print_exception=False) from error

    def show(recording, text, speaker):
        try:
            found = answer(recognizer, settings, recording, text, speaker)
        except UploadError as error:
            refusal = f"**{escape(str(error))}**"
            return refusal, None, "", gr.LinePlot(visible=False)
        return _shown(found, recognizer.hparams)

    def show_all(files):
        try:
            content = answer_all(recognizer, settings, files)
        except UploadError as error:
            hidden = gr.File(visible=False), gr.Dataframe(visible=False)
            return f"**{escape(str(error))}**", *hidden
        rows = pd.read_csv(io.BytesIO(content))
        told = rows[["path", "label", "confidence", "error"]].round(2)
        return (
            "",
            gr.File(_as_file(content), visible=True),
            gr.Dataframe(told.dropna(axis=1, how="all"), visible=True),
        )

    shared = {
        "concurrency_id": "recognizer",
        "concurrency_limit": settings.max_concurrent,
    }
    with gr.Blocks(title="EmoQ", analytics_enabled=False) as page:
        words = ", ".join(map(escape, recognizer.hparams.labels))
        gr.Markdown(
            "# EmoQ\n\nSpeech emotion recognition with a speech-aware Q-Former "
            f"and a large language model. This one tells apart: {words}."
        )
        with gr.Row():
            with gr.Column():
                inputs = _inputs(recognizer.hparams, settings, kept_s)
                button = gr.Button("Recognize", variant="primary")
            with gr.Column():
                outputs = _outputs(recognizer.hparams)
        timeline = _timeline(recognizer.hparams.labels)
        button.click(
            show,
            inputs,
            [*outputs, timeline],
            api_visibility="private",
            **shared,
        )
        with gr.Accordion("Several recordings", open=False):
            files = gr.File(
                file_count="multiple",
                label="Recordings, and a table (path, text) if their words are "
                "known",
            )
            _never_fetched(files)
            together = gr.Button("Recognize all", variant="primary")
            all_outputs = [
                gr.Markdown(elem_id="note-of-all"),
                gr.File(label="The table", visible=False),
                gr.Dataframe(interactive=False, visible=False),
            ]
        together.click(
            show_all, files, all_outputs, api_visibility="private", **shared
        )
        card = read_card(recognizer.hparams.pretrained_path)
        if card:
            with gr.Accordion("Model card", open=False):
                gr.Markdown(card)
        gr.on(
            [],
            recognize,
            inputs,
            gr.JSON(visible=False, label="answer"),
            api_name="recognize",
            api_description=_API_DESCRIPTION,
            **shared,
        )
    # Nobody gets past the queue, and it does not grow without end.
    return page.queue(max_size=_MAX_WAITING, api_open=False)


def _inputs(hparams, settings, kept_s):
    recording = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Recording",
        buttons=[],
    )
    _never_fetched(recording)
    gr.Markdown(
        f"At most {settings.max_seconds:g} s and {settings.max_mb:g} MB. It "
        f"is removed from the server within {kept_s / 60:g} minutes. A video "
        "goes under *Several recordings*.",
        elem_id="limits",
    )
    text = gr.Textbox(
        "", label="Transcript", placeholder="What was said, if it is known"
    )
    speaker = gr.Textbox(
        "",
        label="Speaker",
        placeholder="Who said it, if it is known"
        if hparams.speaker_in_prompt
        else "This model was trained without: it makes no difference",
    )
    return [recording, text, speaker]


def _never_fetched(recording):
    """Has a component refuse addresses.

    Gradio would download what a program names by ``https://...``, of any size.
    """
    to_cache = recording.async_move_resource_to_block_cache

    async def uploads_alone(path):
        if "://" in str(path):
            raise gr.Error("Upload the recording: no address is fetched.")
        return await to_cache(path)

    recording.async_move_resource_to_block_cache = uploads_alone


def _as_file(content):
    """A CSV of bytes as a file, which goes when uploads do."""
    folder = tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])
    path = Path(folder, "emotions.csv")
    path.write_bytes(content)
    return str(path)


def _outputs(hparams):
    note = gr.Markdown(
        "Upload a recording, or record one, and press **Recognize**.",
        elem_id="note",
    )
    verdict = gr.Label(label="Posteriors", elem_id="verdict")
    prompt = gr.Textbox(
        label="Prompt, as the model sees it",
        interactive=False,
        lines=9,
        max_lines=9,
        elem_id="prompt",
    )
    return [note, verdict, prompt]


def _timeline(labels):
    return gr.LinePlot(
        x="time (s)",
        y="posterior",
        color="emotion",
        color_map={
            label: _COLORS[number % len(_COLORS)]
            for number, label in enumerate(labels)
        },
        y_lim=[0, 1],
        y_axis_format=".0%",
        title="Over time, by the voice alone",
        visible=False,
        elem_id="over-time",
    )


def _shown(found, hparams):
    """The values of the outputs, and of the time line, for an answer."""
    if not found["posteriors"]:
        note = "**No answer**: the recording is silent."
        return note, None, found["prompt"], gr.LinePlot(visible=False)
    how = "calibrated" if found["calibrated"] else "not calibrated"
    note = f"Confidence {100 * found['confidence']:.0f} %, {how}."
    if found["abstained"]:
        note = f"**No answer**: the model is not sure enough. {note}"
    rows = [
        # A window without sound has no posteriors.
        ((w["start"] + w["end"]) / 2, w["posteriors"].get(label, 0), label)
        for w in found["windows"]
        for label in hparams.labels
    ]
    table = pd.DataFrame(rows, columns=["time (s)", "posterior", "emotion"])
    return (
        note,
        gr.Label(found["posteriors"], show_heading=not found["abstained"]),
        found["prompt"],
        gr.LinePlot(table, x_lim=[0, found["end"]], visible=bool(rows)),
    )
