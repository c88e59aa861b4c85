"""Finds the peers: installed packages first, else a folder of their files, unpacked into a temporary one.

The folder (`--peers`) may hold, compressed or not: the two vLLM operator libraries
(`*_C_stable_libtorch.abi3.so`), `deep_gemm/` or `deep_gemm.tar.xz`, `vllm_triton_moe.py`, `vllm_dg_utils.py`
and `configs/*.json`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import torch

VLLM_OPS = {
    "_C": ("cutlass_moe_mm", "dynamic_per_token_scaled_fp8_quant", "silu_and_mul",
           "per_token_group_fp8_quant", "silu_and_mul_per_block_quant", "persistent_masked_m_silu_mul_quant",
           "get_cutlass_moe_mm_problem_sizes_from_expert_offsets"),
    "_moe_C": ("moe_permute_with_scratch", "moe_permute_sort_workspace_size", "moe_unpermute",
               "moe_align_block_size", "moe_sum"),
}
FUSED_MOE = "vllm.model_executor.layers.fused_moe."


class Sources:
    """Where each peer's code comes from. All processes of one run share the unpacked folder.

    Its path depends on the files' names and sizes alone: DeepGEMM's cache of compiled kernels may depend on
    the path of its headers, so with a constant path a later run on the same machine compiles nothing anew.
    """

    def __init__(self, peers: str | None):
        self.folder = Path(peers).resolve() if peers else None
        self.vllm = importlib.util.find_spec("vllm")
        if self.folder and not self.folder.is_dir():
            raise SystemExit(f"--peers {self.folder}: no such folder")
        names = [(p.name, p.stat().st_size) for p in sorted(self.folder.iterdir())] if self.folder else []
        digest = hashlib.sha256(repr(names).encode()).hexdigest()[:12]
        self.unpacked = Path(tempfile.gettempdir(), f"fp8-moe-peers-{os.getuid()}-{digest}")

    def unpack(self) -> None:
        """Decompress the folder's files, unless an earlier run has; called before other processes use
        them.
        """
        complete = self.unpacked / ".complete"
        if self.folder is None or complete.exists():
            return
        shutil.rmtree(self.unpacked, ignore_errors=True)
        self.unpacked.mkdir(mode=0o700)
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(".tar.xz"):
                with tarfile.open(path) as tar:
                    tar.extractall(self.unpacked, filter="data")
            elif path.suffix == ".xz":
                with lzma.open(path) as packed, open(self.unpacked / path.stem, "wb") as plain:
                    shutil.copyfileobj(packed, plain)
            elif path.is_dir():
                shutil.copytree(path, self.unpacked / path.name)
            else:
                shutil.copy(path, self.unpacked)
        complete.touch()

    def load_vllm_ops(self) -> None:
        """Register vLLM's operators with torch; `import vllm` itself is not needed."""
        where = [self.unpacked]
        if self.vllm and self.vllm.submodule_search_locations:
            where.insert(0, Path(self.vllm.submodule_search_locations[0]))
        libraries = next((found for folder in where if (found := sorted(folder.glob("*_C*.abi3.so")))), None)
        if not libraries:
            raise FileNotFoundError("vLLM is not installed, and its operator libraries are not in the "
                                    "--peers folder")
        for library in libraries:
            if library.name.startswith(("_C.", "_C_stable", "_moe_C")):
                torch.ops.load_library(str(library))
        for namespace, names in VLLM_OPS.items():
            missing = [n for n in names if not hasattr(getattr(torch.ops, namespace), n)]
            if missing:
                raise ImportError(f"these vLLM libraries lack {namespace}: {', '.join(missing)}")

    def triton_moe(self) -> ModuleType:
        return self._module(FUSED_MOE + "fused_moe", "vllm_triton_moe")

    def dg_utils(self) -> ModuleType:
        return self._module(FUSED_MOE + "deep_gemm_utils", "vllm_dg_utils")

    def deep_gemm(self) -> ModuleType:
        if importlib.util.find_spec("deep_gemm") is None:
            self._folder_on_path()
        return importlib.import_module("deep_gemm")

    def configs(self) -> Path | None:
        """Folder of vLLM's tuned configurations for its Triton kernel."""
        if self.vllm and self.vllm.submodule_search_locations:
            return Path(self.vllm.submodule_search_locations[0], *FUSED_MOE.split(".")[1:-1], "configs")
        folder = self.unpacked / "configs"
        return folder if folder.is_dir() else None

    def _module(self, installed: str, in_folder: str) -> ModuleType:
        if self.vllm:
            return importlib.import_module(installed)
        self._folder_on_path()
        return importlib.import_module(in_folder)

    def _folder_on_path(self) -> None:
        if str(self.unpacked) not in sys.path:
            sys.path.insert(0, str(self.unpacked))
