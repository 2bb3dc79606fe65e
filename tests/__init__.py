import os

import torch

if not torch.cuda.device_count():  # not is_available(): after that no forked process could use CUDA
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported, which torchvision does
