"""Write docs/api.md, the reference of the package cbam, from its docstrings.

python scripts/write_api.py [file=docs/api.md]
"""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import cbam
from engine import cli
from engine.logging import print_line

_TITLE = """# API of the package cbam

`pip install .` installs the package; it requires only torch. [Any CNN](any_cnn.md) explains where and how to insert
attention. `scripts/write_api.py` generates this page from the docstrings.
"""
_MODULES = re.compile(r"torch\.nn\.modules\.module\.|collections\.abc\.|cbam\.\w+\.|\btorch\.(?=Tensor)")
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def page() -> str:
    """Return the reference of everything that cbam exports, as Markdown."""
    return "\n".join([_TITLE, *(entry(name) for name in sorted(cbam.__all__, key=str.lower))])


def entry(name: str) -> str:
    """Return the section of one exported class or function."""
    exported = getattr(cbam, name)
    is_plain = inspect.isclass(exported) and issubclass(exported, Exception)
    signature = "" if is_plain else re.sub(r" -> None$", "", str(inspect.signature(exported)))
    code = f"```python\ncbam.{name}{_MODULES.sub('', signature)}\n```"
    return f"## {name}\n\n{code}\n\n{text(inspect.getdoc(exported) or '')}\n"


def text(docstring: str) -> str:
    """Return a docstring as Markdown: a list for each section of arguments, and code for its examples."""
    blocks, title = [], ""
    for line in docstring.replace("``", "`").splitlines():
        if line.removesuffix(":") in _SECTIONS:
            title = line.removesuffix(":")
            blocks.append(f"**{title}**\n")
        elif title and line.startswith("    "):
            blocks.append(_item(line) if title not in ("Returns", "Yields") else line.strip())
        else:
            title = "" if line else title
            blocks.append(line)
    return re.sub(r"(?m)((?:^>>> .*\n?(?:^(?!>>>).+\n?)*)+)", r"```python\n\1\n```", "\n".join(blocks).strip())


def _item(line: str) -> str:
    """Return a line of a section: `    name: text` begins an item, a line indented further continues it."""
    if line.startswith("        "):
        return f"  {line.strip()}"
    name, _, rest = line.strip().partition(": ")
    return f"- {', '.join(f'`{one}`' for one in name.split(', '))}: {rest}"


def main(file: str = "docs/api.md") -> None:
    Path(file).write_text(page(), encoding="utf-8")
    print_line(f"Written to {file}.")


if __name__ == "__main__":
    cli.run_script(main)
