"""A page in the browser to play with three things: a latent counterfactual, a CGN, the memory of a VAE.

    make demo                     # installs what the page needs, apart from the rest, and opens http://127.0.0.1:7860
    python demo.py --port 8000    # with a Python that has what requirements-demo.txt lists

It runs on the committed checkpoints, each of which is read when it is first needed, and shows at once what the models
make of other choices. What is measured over many images is in README.md, not here. The page asks no other host for
anything; it answers this machine only, unless --host says otherwise. demo_actions.py does the work.
"""

import base64
import functools
import io
import os
import secrets
from html import escape
from typing import Annotated

from PIL import Image

import demo_actions as actions
import experiment

Port = Annotated[int, experiment.Check(lambda v: 1 <= v <= 65535, "a whole number from 1 to 65535")]

HOST: str = "127.0.0.1"  # address to listen on; 0.0.0.0 lets other machines in
PORT: Port = 7860  # port of the page

FIRST = (3, 1, 5)  # digit, its number, target: picked because it works
STEPS = 100  # of the search, unless asked otherwise: as many as an answer within 2 s allows
WAITING = 32  # requests that may wait; later ones are refused
REMOVED, ADDED = 0.01, 2e-4  # percentage and strength at first: those that parts 1 and 2 recommend

CSS = """
.demo-said {margin: 0 0 12px; font-size: 1.05em}
.demo-took, .demo-row figcaption span {opacity: .7}
.demo-took {white-space: nowrap}
.demo-wrong {margin: 0; padding: 8px 12px; border-left: 4px solid #D55E00; font-size: 1.05em}
.demo-head {margin: 14px 0 6px; font-weight: 600}
.demo-row {display: grid; gap: 10px; grid-template-columns: repeat(var(--columns), minmax(0, 224px))}
.demo-row figure {margin: 0}
.demo-row img {width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--border-color-primary);
  border-radius: 4px; background: white; display: block; box-sizing: border-box}
.demo-row figcaption {font-size: .85em; line-height: 1.35; margin-top: 4px}
.demo-row figcaption span {display: block}
.demo-bars {border-collapse: collapse; font-size: .85em; line-height: 1.2; width: 100%; max-width: 560px}
.demo-bars, .demo-bars tr {border: none !important}
.demo-bars th, .demo-bars td {border: none !important; text-align: left; padding: 2px 10px 2px 0 !important}
.demo-bars td {width: 45%}
.demo-bars i {display: inline-block; height: 10px; min-width: 1px; margin-right: 6px; background: #0072B2}
.demo-bars td + td i {background: #D55E00}
@media (max-width: 640px) {.demo-row {grid-template-columns: repeat(min(var(--columns), 3), minmax(0, 224px))}}
footer {display: none !important}
"""

LATENT = """The image is moved in the **latent space** of a generative model, by gradient ascent, until a classifier is
99 % sure of another class. The film and the strip show it on the way; the map, what has changed. A counterfactual that
convinces the classifier need not convince you: in README.md, part 4, independent judges agree with half of them. The
first one here was picked because it works."""
CGN = """A **counterfactual generative network** makes an image of three independent parts: mask *m*, object *f* and
background *b* become *m f + (1 - m) b*. It was trained on images whose three labels agree; with labels that differ it
makes what it has never seen. README.md, part 5."""
MEMORY = """A VAE, trained on 512 digits without a zero. On the left, the parameters that one **training sample** marks
most are set to zero, and the model should forget it: others suffer, too (README.md, part 1). On the right, every
parameter moves once to fit one **zero**, and the model should learn what a zero is (part 2). Both start from the
untouched model each time."""


# --- answers as HTML -----------------------------------------------------------------------------------


def inline(data, kind):
    """Bytes of an image as an address of its own, so that the page fetches nothing."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def figure(address, title, caption, alt):
    return (f'<figure><img src="{address}" alt="{escape(alt)}"><figcaption>{escape(title)}'
            f"<span>{escape(caption)}</span></figcaption></figure>")  # fmt: skip


def picture(shown):
    """A demo_actions.Picture as HTML."""
    buffer = io.BytesIO()
    Image.fromarray(shown.pixels).save(buffer, format="png")
    return figure(inline(buffer.getvalue(), "png"), shown.title, shown.caption, shown.alt)


def bars(before, after):
    """A table of the classifier's confidence in each class, with bars."""
    cell = lambda value: f'<td><i style="width: {70 * value:.0f}%"></i>{value:.1%}</td>'
    rows = "".join(f"<tr><th>{digit}</th>{cell(a)}{cell(b)}</tr>"
                   for digit, (a, b) in enumerate(zip(before, after, strict=True)))  # fmt: skip
    return ('<p class="demo-head">Confidence of the classifier</p><table class="demo-bars">'
            f"<tr><th>class</th><th>before</th><th>after</th></tr>{rows}</table>")  # fmt: skip


def page_of(answer):
    """A demo_actions.Answer as HTML."""
    parts = [f'<p class="demo-said" role="status">{escape(answer.said)} '
             f'<span class="demo-took">({answer.seconds:.2f} s)</span></p>']  # fmt: skip
    for number, (heading, pictures) in enumerate(answer.rows):
        figures = [picture(shown) for shown in pictures]
        if number == 0 and answer.film:
            figures.append(figure(inline(answer.film, "gif"), "film", "from start to end",
                                  "A film of the image on its way"))  # fmt: skip
        parts.append(f'<p class="demo-head">{escape(heading)}</p>'
                     f'<div class="demo-row" style="--columns: {len(figures)}">{"".join(figures)}</div>')  # fmt: skip
    return "".join(parts + ([bars(*answer.confidences)] if answer.confidences else []))


def shown(action, *values):
    """HTML of what an action answers, or of the one sentence that says why it does not."""
    try:
        return page_of(action(*values))
    except experiment.UserError as error:
        return f'<p class="demo-wrong" role="alert">{escape(" ".join(str(error).split()))}</p>'


# --- the tabs; gr is the module gradio ----------------------------------------------------------------------


def answers(triggers, action, inputs, output):
    """Show in `output` what the action makes of the inputs, whenever one of the triggers fires."""
    for trigger in triggers:
        trigger(functools.partial(shown, action), inputs, output, show_progress="minimal", trigger_mode="always_last",
                concurrency_limit=1, concurrency_id="models", api_visibility="private")


def sets(button, function, outputs):
    """The button gives these inputs new values, which then count as if they had been typed."""
    return button.click(function, None, outputs, show_progress="hidden", api_visibility="private")


def random_digit():
    """(digit, its number, no upload, a target that is another digit)."""
    digit = secrets.randbelow(10)
    return digit, secrets.randbelow(actions.DIGITS), None, (digit + 1 + secrets.randbelow(9)) % 10


def latent_tab(gr, page):
    with gr.Tab("Another class"):
        gr.Markdown(LATENT)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                with gr.Row():
                    digit = gr.Dropdown(list(range(10)), value=FIRST[0], label="Test digit of class", min_width=100)
                    position = gr.Number(FIRST[1], label=f"number, 0 to {actions.DIGITS - 1}", precision=0,
                                         min_width=100)  # fmt: skip
                another = gr.Button("A random digit", size="sm")
                upload = gr.File(label="or your own: PNG or JPEG, at most 5 MB", type="filepath", height=150,
                                 file_types=[".png", ".jpg", ".jpeg"])  # fmt: skip
                target = gr.Dropdown(list(range(10)), value=FIRST[2], label="Target class")
                model = gr.Radio(list(actions.SEARCHES), value="RealNVP", label="Generative model")
                steps = gr.Slider(1, actions.MOST_STEPS, STEPS, step=1, label="Steps, at most")
                search = gr.Button("Search", variant="primary", elem_id="search")
            with gr.Column(scale=3, min_width=320):
                output = gr.HTML(elem_id="latent")
    drawn = sets(another, random_digit, [digit, position, upload, target])
    inputs = [digit, position, upload, target, model, steps]
    picked = [part.input(lambda: None, None, upload, show_progress="hidden", api_visibility="private")
              for part in (digit, position)]  # a digit that is picked takes the place of an upload
    triggers = [page.load, search.click, drawn.then, *(event.then for event in picked), upload.upload, model.input,
                target.input, steps.release]  # fmt: skip
    answers(triggers, actions.search_latent, inputs, output)


def cgn_tab(gr):
    names = actions.labels_of(actions.VARIANTS[0])
    options = lambda variant: list(zip(actions.labels_of(variant), range(10), strict=True))
    with gr.Tab("Shape, texture, background") as tab:
        gr.Markdown(CGN)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                known = [(name.replace("_", "-"), name) for name in actions.variants()]
                variant = gr.Radio(known, value="wildlife", label="Images")
                labels = [gr.Dropdown(list(zip(names, range(10), strict=True)), value=value, label=label)
                          for label, value in (("Shape", 3), ("Object's texture", 5), ("Background", 8))]  # fmt: skip
                seed = gr.Number(0, label="Seed of the latent", precision=0)
                new = gr.Button("A new latent", variant="primary", elem_id="new_latent")
            with gr.Column(scale=3, min_width=320):
                output = gr.HTML(elem_id="cgn")
    sets(new, lambda: secrets.randbelow(10_000), seed)
    variant.change(lambda name: [gr.Dropdown(choices=options(name)) for _ in labels], variant, labels,
                   show_progress="hidden", api_visibility="private")
    inputs = [variant, *labels, seed]
    answers([tab.select, *(part.change for part in inputs)], actions.compose, inputs, output)


def memory_tab(gr):
    with gr.Tab("Forget a sample, learn a sample") as tab:
        gr.Markdown(MEMORY)
        with gr.Row():
            with gr.Column(min_width=320):
                sample = gr.Number(0, label="Training sample to remove, 0 to 511", precision=0, elem_id="sample")
                percent = gr.Slider(0.001, 0.1, REMOVED, step=0.001, label="Parameters set to zero, in %")
                other = gr.Button("A random sample", size="sm")
                removed = gr.HTML(elem_id="removed")
            with gr.Column(min_width=320):
                zero = gr.Number(0, label=f"Zero to add, 0 to {actions.DIGITS - 1}", precision=0, elem_id="zero")
                strength = gr.Slider(5e-5, 2e-3, ADDED, step=5e-5, label="Strength of the step")
                another = gr.Button("A random zero", size="sm")
                added = gr.HTML(elem_id="added")
    sets(other, lambda: secrets.randbelow(512), sample)
    sets(another, lambda: secrets.randbelow(actions.DIGITS), zero)
    answers([tab.select, sample.change, percent.release], actions.remove_sample, [sample, percent], removed)
    answers([tab.select, zero.change, strength.release], actions.add_sample, [zero, strength], added)


def build(gr):
    """The page."""
    with gr.Blocks(title="Counterfactuals in images", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown("# Counterfactuals in images\nWhat would it look like, what would the model do, if ...?")
        latent_tab(gr, page)
        cgn_tab(gr)
        memory_tab(gr)
    return page.queue(max_size=WAITING, api_open=False)


def imported():
    """The module gradio, told to report nothing to its makers."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # here, so that everything else works without it
    except ImportError:
        raise experiment.UserError("gradio is not installed here: make demo installs it and opens the page") from None
    return gradio


def main(host, port):
    gr = imported()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build(gr)
    try:
        page.launch(server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme,
                    css=CSS, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False,
                    max_file_size=actions.UPLOAD_BYTES)  # fmt: skip
    except OSError:
        raise experiment.UserError(f"cannot listen on {host}:{port}: another program may be there, or the address is "
                                   "not of this machine; --port and --host take others") from None
    print(f"the page is at http://{host}:{port}; Ctrl-C ends it", flush=True)
    page.block_thread()


if __name__ == "__main__":
    experiment.run(main)
