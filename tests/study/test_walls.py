"""The walls of the room: what importing the study may bring along."""

from __future__ import annotations

import subprocess
import sys


def test_the_study_imports_no_agents_no_models_no_llm_library_and_no_jax():
    code = "import sys, jaxresearch.study.study, jaxresearch.study.summary; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & {"agents", "models", "pydantic_ai", "jax", "jaxlib", "flax", "optax"}
