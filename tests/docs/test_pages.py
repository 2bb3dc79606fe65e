"""Commands and links in README.md and docs/: commands are accepted, links lead to files."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from engine.config import presets
from engine.config.presets import CONFIGS
from engine.runs import sweeps
from tests.processes import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LAUNCHERS = {"torchrun", "srun", "sbatch", "bash"}


def commands() -> list[str]:
    """Return the lines of the pages' code blocks that start with a program, joined, without comments."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        fenced = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        for line in [*re.findall(r"^    (.*)$", text, re.MULTILINE), *fenced.splitlines()]:
            command = re.sub(r"\s+#.*| \| bash -e.*", "", line).strip()
            if re.match(r"(python|torchrun|srun|sbatch|bash|make|tensorboard|conda) ", command):
                found.append(command)
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_is_accepted(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] in ("tensorboard", "conda"):
        return
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
        return
    program = next(word for word in words if word.endswith((".py", ".sh", ".sbatch")))
    assert (REPOSITORY / program).is_file()
    arguments = words[words.index(program) + 1 :]
    check(program, arguments)


def check(program: str, arguments: list[str]) -> None:
    name = Path(program).stem
    if program.startswith("scripts/slurm/"):
        name = "sweep" if name == "submit_table" else name
    if name == "sweep" or (name == "status" and any(argument.startswith("sweep=") for argument in arguments)):
        # tests/scripts/test_sweep.py composes the runs of every sweep.
        (sweep,) = (argument.removeprefix("sweep=") for argument in arguments if argument.startswith("sweep="))
        assert (CONFIGS / "sweep" / f"{sweep}.yaml").is_file()
        compose_all("train", [argument for argument in arguments if not argument.startswith("sweep=")])
    elif name in ("train", "evaluate", "hash_batches", "export", "check_data"):
        compose_all("train" if name == "hash_batches" else name, arguments)
    elif name in (
        "download_weights",
        "convert_official",
        "convert_lite",
        "show_attention",
        "show_detections",
        "plan",
        "simulate_verdict",
        "prepare_imagenet",
    ):
        text = (REPOSITORY / program).read_text()
        for argument in arguments:
            assert argument.partition("=")[0] in text, argument
    else:
        assert name in (
            "list_models",
            "verify_run",
            "repair_run",
            "status",
            "render_table",
            "benchmark",
            "first_gpu",
            "stage_imagenet",
        ), program


def compose_all(primary: str, arguments: list[str]) -> None:
    """Composes and checks every configuration that the arguments stand for, those of a sweep too."""
    given = [argument for argument in arguments if not argument.startswith(("-", "hydra"))]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for overrides in sweeps.expand(given):
            given = presets.with_usual_presets(overrides) if primary == "train" else overrides
            presets.parse(presets.compose(primary, given))


def test_the_pages_hold_commands() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_architecture_page_lists_every_module() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    for folder in ("engine", "models"):
        for file in (REPOSITORY / folder).rglob("[!_]*.py"):
            if file.stem != "errors":
                assert f"`{file.stem}`" in page, file
