"""The report of a machine: results/benchmark/MACHINE.json, and Markdown rendered from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.runs import environment
from engine.runs.atomic_io import atomic_write

Section = dict[str, Any]  # `about`: a paragraph; `rows`: dicts with the same keys; `measured`: circumstances


def circumstances(device: torch.device) -> dict[str, Any]:
    """Return the circumstances of a measurement. Call it right after the section is measured."""
    made = environment.collect_env(device)
    return {key: made[key] for key in ("device", "threads", "code_revision")} | {"torch": made["packages"]["torch"]}


def write(folder: Path, machine: str, sections: Mapping[str, Section]) -> str:
    """Write sections to a machine's report; its other sections are kept.

    Returns:
        The report as Markdown.
    """
    file = folder / f"{machine}.json"
    report: dict[str, Any] = {"machine": machine, "sections": {}}
    if file.is_file():
        report = json.loads(file.read_text())
    report["sections"] |= sections
    markdown, text = _markdown(report), json.dumps(report, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda out: out.write(text.encode()))
    atomic_write(file.with_suffix(".md"), lambda out: out.write(markdown.encode()))
    return markdown


def _markdown(report: dict[str, Any]) -> str:
    lines = [f"# Benchmark: {report['machine']}", ""]
    for name, section in report["sections"].items():
        titles = list(section["rows"][0])
        on = section["measured"]
        computing = f"{on['threads']} computing thread{'s' if on['threads'] > 1 else ''}"
        revision = (on["code_revision"] or "unknown")[:7]
        lines += [f"## {name}", "", section["about"]]
        lines += [f"{on['device']}, {computing}, torch {on['torch']}, revision {revision}.", ""]
        lines += [f"| {' | '.join(titles)} |", f"|{' --: |' * len(titles)}"]
        lines += [f"| {' | '.join(_text(value) for value in row.values())} |" for row in section["rows"]]
        lines.append("")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
