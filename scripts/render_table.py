"""Render a table again from its table.json: python scripts/render_table.py results/tiny_imagenet

Recomputes the table's errors, differences, intervals and p-values from the stored predictions first, without models or
images. The same table.json gives the same bytes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from engine import cli
from engine.comparison import report
from engine.logging import print_line

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="folder with table.json")
    with cli.one_line_errors():
        print_line(report.render(parser.parse_args().directory))
