"""leeml demo: try trained runs by hand, on a page in the browser.

One tab for each homework that a run is given for: a sentence to translate (HW5), a photo (HW3), a recording or the
microphone (HW4, HW2), the days of a state (HW1). Examples are what the run held out, where its data is found. The page
is served on this machine alone, sends nothing elsewhere, and shows no files.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import DataError
from scripts.cli.mistakes import Parser, UsageError

INSTALL = 'pip install "gradio>=6"'
LARGEST = "20mb"  # of a file that is uploaded
STYLE = """
.message p { color: #b91c1c; font-weight: 600; margin: 4px 0; }
.note, .note p { color: var(--body-text-color-subdued); font-size: 13px; }
.big { font-size: 26px; font-weight: 600; line-height: 1.35; margin-bottom: 8px; overflow-wrap: anywhere; }
.scrolled { overflow: auto; max-width: 100%; max-height: 560px; }
.scrolled img.whole { width: 100%; max-width: 640px; } .scrolled img.wide { max-width: none; }
.phones { font-family: var(--font-mono); overflow-wrap: anywhere; }
table.leeml { width: 100%; border-collapse: collapse; }
table.leeml, table.leeml tr, table.attention, table.attention tr { border: 0 !important; }
table.leeml th { text-align: left; font-size: 13px; color: var(--body-text-color-subdued); }
table.leeml td, table.leeml th { padding: 3px 8px; border: 0 !important; }
table.leeml tr { background: linear-gradient(90deg, #3b82f633 var(--share), transparent var(--share)); }
table.attention { border-collapse: collapse; font-size: 13px; }
table.attention th { font-weight: 400; border: 0 !important; padding: 1px 5px; text-align: right; white-space: nowrap; }
table.attention tr:first-child th { vertical-align: bottom; padding: 4px 1px; }
table.attention tr:first-child span { writing-mode: vertical-rl; transform: rotate(180deg); }
table.attention td { min-width: 22px; height: 22px; border: 1px solid #8883; background: rgb(29 78 216 / var(--w)); }
.races { display: flex; flex-wrap: wrap; gap: 16px; } .race { flex: 1 1 280px; min-width: 0; }
.race small, .race i { color: var(--body-text-color-subdued); }
.chips { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 4px; margin: 6px 0; min-height: 32px; }
.chips span { padding: 2px 7px; border-radius: 6px; background: #8882; } .chips span.new { background: #60a5fa88; }
.examples .grid-wrap { min-height: 0 !important; }
svg.days { max-width: 420px; width: 100%; } svg.days text { font-size: 10px; text-anchor: middle; fill: currentColor; }
svg.days polyline { fill: none; stroke: #94a3b8; stroke-width: 2; } svg.days .old { fill: #64748b; }
svg.days .new { fill: #2563eb; }
"""


def library() -> Any:
    """Gradio, told to send nothing, before it is imported.

    Raises:
        DataError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # telemetry, and the question for a newer version
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # of a library that gradio brings along
    try:
        import gradio
    except ImportError:
        raise DataError(f"leeml demo needs gradio, which is not installed: {INSTALL}") from None
    return gradio


def page_of(runs: Sequence[Any]) -> Any:
    """The page (gr.Blocks) with a tab for each homework among the opened runs."""
    gr = library()
    homeworks = sorted({run.model.homework for run in runs})
    with gr.Blocks(title="leeml demo", analytics_enabled=False) as page:
        gr.Markdown("# leeml demo\n" + ", ".join(f"`{run.name}`" for run in runs))
        for homework in homeworks:
            tab = importlib.import_module(f"scripts.demos.{homework}")
            with gr.Tab(tab.TITLE, id=homework):
                gr.Markdown(tab.SUBTITLE)
                tab.add_tab([run for run in runs if run.model.homework == homework])
    return page


def serve(page: Any, host: str, port: int | None, block: bool = True) -> str:
    """Serve it, without a share link, MCP, or files of the disk; returns the address.

    Raises:
        DataError: the port is taken.
    """
    gr = library()
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, css=STYLE,
            theme=gr.themes.Default(), footer_links=[], ssr_mode=False, mcp_server=False, enable_monitoring=False,
            pwa=False, max_file_size=LARGEST, allowed_paths=[], show_error=False, run_history=False,
        )  # fmt: skip
    except OSError as error:
        raise DataError(f"--port {port or 7860}: taken, or not on {host}; choose another one") from error
    print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
    if block:
        page.block_thread()
    return address


def main(args: list[str]) -> int:
    """Open the runs and serve the page until it is stopped."""
    parser = Parser(
        prog="leeml demo", description=__doc__,
        epilog="--data.KEY VALUE changes where the examples come from, such as --data.root DIR.",
    )  # fmt: skip
    parser.add_argument(
        "--run_dir", type=Path, nargs="+", action="extend", required=True, metavar="RUN",
        help="folders of trained runs, of one or several homeworks",
    )  # fmt: skip
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--trust", action="store_true", help="allow runs to use classes that leeml does not know")
    own, flags = parser.parse_known_args(args[1:])
    if other := [word for word in flags if word.startswith("-") and not word.startswith("--data.")]:
        raise UsageError(f"{other[0]}: no such flag; see leeml demo --help")
    library()
    from scripts.demos.parts import open_run

    opened = [open_run(run, flags, own.trust) for run in own.run_dir]
    for run in opened:
        if run.note:
            print(f"leeml: {run.name}: {run.note}")
    serve(page_of(opened), own.host, own.port)
    return 0
