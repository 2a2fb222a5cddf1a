"""The web page of ``emoq serve``, and what programs call in its place."""

from html import escape

import gradio as gr

from emoq_modules.commands.serve_answer import answer
from emoq_modules.commands.serve_plots import label_colors, plot_timeline
from emoq_modules.errors import UploadError

# Fonts that are on the visitor's machine: none is fetched.
THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto; }
#heading h1 { margin: 0 0 .2em; }
#heading p, #limits p, .emoq .note { margin: 0;
    color: var(--body-text-color-subdued); }
.emoq { padding: var(--block-padding); min-height: 15.5em; }
.emoq .word { font-size: 2.4em; font-weight: 700; line-height: 1.2; }
.emoq .bars { margin-top: 1.2em; font-size: .85em; }
.emoq ul { list-style: none; margin: 0; padding: 0; }
.emoq li { display: grid; grid-template-columns: 6.5em 1fr 4em; gap: .7em;
    align-items: center; margin: .55em 0; }
.emoq .track { height: .9em; border-radius: .45em; overflow: hidden;
    background: var(--border-color-primary); }
.emoq .bar { height: 100%; border-radius: .45em; }
.emoq .percent { text-align: right; font-variant-numeric: tabular-nums; }
.emoq .refused { border-left: .3em solid #dc2626; padding: .8em 1em;
    background: #dc262618; }
#limits p { font-size: .85em; }
#prompt textarea { font-family: var(--font-mono); font-size: .85em; }
"""
# Asked about the same recording again, say with another transcript, the page
# sends it once more: the server has removed it with its answer.
_SEND_AGAIN = """
async (recording, ...others) => {
    const sent = window.emoqSent;
    if (recording && sent && sent.path === recording.path) {
        const form = new FormData();
        form.append("files", sent.blob, recording.orig_name);
        const address = new URL("gradio_api/upload", document.baseURI);
        const response = await fetch(address, { method: "POST", body: form });
        const [path] = await response.json();
        return [{ ...recording, path }, ...others];
    }
    if (recording) {
        const response = await fetch(recording.url);
        if (response.ok) {
            const { path } = recording;
            window.emoqSent = { path, blob: await response.blob() };
        }
    }
    return [recording, ...others];
}
"""
_MAX_WAITING = 100
_API_DESCRIPTION = (
    "Recognizes the emotion in a recording. Give the transcript and the "
    'speaker as far as they are known, else "". Returns label (null where the '
    "model abstains), confidence, abstained, posteriors, start and end in "
    "seconds, the same of each window of a long recording, and the prompt."
)


def build_page(recognizer, settings, uploads):
    """The page, not yet served.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        The trained system.
    settings : ServeSettings
        What it may take.
    uploads : Uploads
        Where recordings come to, to be removed when they are answered.

    Returns
    -------
    gradio.Blocks
        To be launched with ``THEME`` and ``CSS``. Its endpoint ``/recognize``
        answers programs with JSON.
    """

    show, recognize = _handlers(recognizer, settings, uploads)
    shared = {
        "concurrency_id": "recognizer",
        "concurrency_limit": settings.max_concurrent,
    }
    with gr.Blocks(title="EmoQ", analytics_enabled=False) as page:
        gr.Markdown(_heading(recognizer), elem_id="heading")
        with gr.Row():
            with gr.Column():
                inputs = _inputs(recognizer, settings)
                button = gr.Button("Recognize", variant="primary")
            with gr.Column():
                verdict = gr.HTML(_WAITING, container=True)
                prompt = gr.Textbox(
                    label="Prompt, as the model sees it",
                    interactive=False,
                    lines=11,
                    max_lines=11,
                    elem_id="prompt",
                )
        picture = gr.Plot(
            show_label=False, visible=False, format="png", elem_id="over-time"
        )
        button.click(
            show,
            inputs,
            [verdict, picture, prompt],
            js=_SEND_AGAIN,
            api_visibility="private",
            **shared,
        )
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


def _handlers(recognizer, settings, uploads):
    """What the page shows of an upload, and what programs get of it."""

    def show(recording, text, speaker):
        with uploads.removed_afterwards(recording):
            try:
                found = answer(recognizer, settings, recording, text, speaker)
            except UploadError as error:
                return _refusal(error), gr.Plot(visible=False), ""
        picture = gr.Plot(visible=False)
        if found.windows:
            labels = recognizer.hparams.labels
            figure = plot_timeline(found.samples, found.windows, labels)
            picture = gr.Plot(figure, visible=True)
        return _verdict(found.whole, recognizer), picture, found.prompt

    def recognize(recording, text="", speaker=""):
        with uploads.removed_afterwards(recording):
            try:
                found = answer(recognizer, settings, recording, text, speaker)
            except UploadError as error:
                message = escape(str(error))
                raise gr.Error(message, print_exception=False) from error
        return found.as_json()

    return show, recognize


def _inputs(recognizer, settings):
    recording = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Recording",
        buttons=[],
    )
    _never_fetched(recording)
    gr.Markdown(
        f"At most {settings.max_seconds:g} s and {settings.max_mb:g} MB. The "
        "recording is removed once it is answered.",
        elem_id="limits",
    )
    text = gr.Textbox(
        "", label="Transcript", placeholder="What was said, if it is known"
    )
    heeded = recognizer.hparams.speaker_in_prompt
    speaker = gr.Textbox(
        "",
        label="Speaker",
        placeholder="Who said it, if it is known"
        if heeded
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


def _heading(recognizer):
    words = ", ".join(map(escape, recognizer.hparams.labels))
    return (
        "# EmoQ\n\nSpeech emotion recognition with a speech-aware Q-Former "
        f"and a large language model.\n\nThis one tells apart: {words}."
    )


_WAITING = (
    '<div class="emoq"><p class="note">Upload a recording, or record one, and '
    "press <b>Recognize</b>.</p></div>"
)


def _refusal(error):
    return (
        '<div class="emoq" role="alert"><div class="refused">'
        f"{escape(str(error))}</div></div>"
    )


def _verdict(whole, recognizer):
    colors = label_colors(recognizer.hparams.labels)
    if whole.abstained:
        word = "no answer"
        note = "the model abstains: it is not sure enough"
    else:
        word, note = whole.label, "is the most likely emotion"
    how, bars = "calibrated", "Posteriors, before calibration"
    if recognizer.hparams.temperature == 1:
        how, bars = "not calibrated", "Posteriors"
    note = f"{note}; confidence {100 * whole.confidence:.0f} %, {how}"
    rows = "".join(
        f'<li><span>{escape(label)}</span><span class="track"><div class="bar" '
        f'style="width: {100 * value:.1f}%; background: {colors[label]}">'
        f'</div></span><span class="percent">{100 * value:.1f} %</span></li>'
        for label, value in whole.posteriors.items()
    )
    return (
        f'<div class="emoq" role="status"><div class="word">{escape(word)}'
        f'</div><p class="note">{note}</p><p class="bars note">{bars}</p>'
        f"<ul>{rows}</ul></div>"
    )
