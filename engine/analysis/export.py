"""Export of a network to a file for other runtimes, checked against the network's outputs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.runs.atomic_io import DRAFT

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit


def export(model: nn.Module, image_size: int, file: Path) -> float:
    """Write the network in evaluation mode, for ONNX Runtime (.onnx) or torch.export (.pt2), depending on the suffix.

    The batch size is dynamic. The file is read back and run on a batch of a size other than the example's.

    Returns:
        The largest difference between its logits and the network's, relative to the largest logit.

    Raises:
        UserError: if a package is missing, the file cannot be written, or the difference exceeds `TOLERANCE`.
    """
    if not file.parent.is_dir():
        raise UserError(f"The folder {file.parent} for {file.name} does not exist; create it first.")
    draft = file.with_stem(f".{file.stem}{DRAFT}")  # the suffix decides the format
    try:
        draft.touch()  # rather than fail after the minutes that an export may take
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); set file to another path.") from error
    model.eval()
    example, images = torch.randn(2, 3, image_size, image_size), torch.randn(3, 3, image_size, image_size)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    run = _through_onnx if file.suffix == ".onnx" else _through_torch
    try:
        with torch.inference_mode():
            expected = model(images)
            outputs = run(program, draft, images)
        difference = ((outputs - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE:
            raise UserError(f"{file} was not written: its outputs differ from the network's by {difference:.1e}.")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return difference


def _through_torch(program: torch.export.ExportedProgram, file: Path, images: Tensor) -> Tensor:
    torch.export.save(program, file)
    outputs: Tensor = torch.export.load(file).module()(images)
    return outputs


def _through_onnx(program: torch.export.ExportedProgram, file: Path, images: Tensor) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise UserError(f"{error}; for ONNX, run pip install onnx onnxscript onnxruntime.") from error
    torch.onnx.export(
        program, f=file, input_names=["images"], output_names=["logits"], external_data=False, verbose=False
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(outputs)
