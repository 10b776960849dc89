"""leeml export: a trained run as a folder that needs no leeml: its network as torch.export or ONNX, facts, an example.

The network takes batches and sequences of any size. Each file is held against the network it was made from; one that
says something else is not left behind. Written are all networks but non-autoregressive translators; recurrent ones as
ONNX alone.
"""

import os
import shutil
from pathlib import Path
from typing import get_args

from datamodules.errors import DataError
from scripts.cli.mistakes import Parser, UsageError
from scripts.run.checkpoint import load_checkpoint, load_model
from scripts.run.folder import RunFolder


def main(args: list[str]) -> int:
    """Write the folder with the graphs, their facts, an example and a model card."""
    from scripts.exports.folder import write_folder
    from scripts.exports.writing import Format, need_packages

    parser = Parser(prog="leeml export", description=__doc__)
    parser.add_argument("--run_dir", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--format", choices=get_args(Format), default="onnx", help="default: onnx")
    parser.add_argument("--ckpt_path", default="", help="best (default) or last of the run, or a file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: RUN/export_FORMAT)")
    parser.add_argument("--trust", action="store_true", help="allow the run to use classes that leeml does not know")
    own = parser.parse_args(args[1:])
    if own.run_dir is None:
        raise UsageError("leeml export needs a trained run: leeml export --run_dir runs/...")
    need_packages(own.format)
    run = RunFolder(own.run_dir.expanduser().absolute())
    if own.ckpt_path in ("best", "last"):
        path = run.checkpoint(own.ckpt_path)
    else:
        path = Path(own.ckpt_path).expanduser() if own.ckpt_path else run.kept()
    output = (own.output or run.path / f"export_{own.format}").expanduser().absolute()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"{output}: is there already; delete it, or choose another folder with --output")
    model = load_model(path, trust=own.trust)
    scratch = output.with_name(f".{output.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    try:
        largest = write_folder(model, load_checkpoint(path), own.format, run.path, scratch)
        if output.is_dir():
            output.rmdir()
        os.replace(scratch, output)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    print(f"  {output}: {', '.join(sorted(part.name for part in output.iterdir()))}")
    print(f"  the network and its files differ by {largest:.1e} at most; README.md says how to use them")
    return 0
