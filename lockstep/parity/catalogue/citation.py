"""Where a fault was met: the short form of a catalogue's `source`, as links.

In: nothing of ours. Out: `Citation`, `citations`.

>>> citations("TRL #4159; Read in vLLM's source")[0]
Citation(text='TRL #4159', url='https://github.com/huggingface/trl/issues/4159')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TRACKERS: Mapping[str, str] = {
    "AITER": "ROCm/aiter",
    "NeMo-RL": "NVIDIA-NeMo/RL",
    "OpenVINO GenAI": "openvinotoolkit/openvino.genai",
    "PipelineRL": "ServiceNow/PipelineRL",
    "SGLang": "sgl-project/sglang",
    "SkyRL": "NovaSky-AI/SkyRL",
    "TRL": "huggingface/trl",
    "llm-d-benchmark": "llm-d/llm-d-benchmark",
    "lmdeploy": "InternLM/lmdeploy",
    "mini-sglang": "sgl-project/mini-sglang",
    "ms-swift": "modelscope/ms-swift",
    "nano-vllm": "GeeeekExplorer/nano-vllm",
    "open-instruct": "allenai/open-instruct",
    "prime-rl": "PrimeIntellect-ai/prime-rl",
    "rLLM": "rllm-org/rllm",
    "slime": "THUDM/slime",
    "tokenspeed": "lightseekorg/tokenspeed",
    "transformers": "huggingface/transformers",
    "vLLM": "vllm-project/vllm",
    "verifiers": "PrimeIntellect-ai/verifiers",
    "verl": "verl-project/verl",
}
"""Issues and pull requests of a project share one row of numbers, and one address that finds either."""

MIGRATION = "vLLM V0 to V1: Correctness Before Corrections in RL"
"""The published migration, in which SEM01, CAC01, CAC02 and NUM01 came together."""

PAGES: Mapping[str, str] = {MIGRATION: "https://huggingface.co/blog/ServiceNow-AI/correctness-before-corrections"}

_NUMBERED = re.compile(r"(?P<project>[\w -]+?) #(?P<number>\d+)")
_PAPER = re.compile(r"arXiv (?P<paper>\d{4}\.\d{5})$")


@dataclass(frozen=True, slots=True)
class Citation:
    """One source, and its address if it has one."""

    text: str
    url: str | None = None


def citations(source: str) -> tuple[Citation, ...]:
    """The sources that `source` names, separated by semicolons, in their order."""
    return tuple(Citation(text, _url(text)) for text in source.split("; "))


def _url(text: str) -> str | None:
    if paper := _PAPER.search(text):
        return f"https://arxiv.org/abs/{paper['paper']}"
    if (numbered := _NUMBERED.fullmatch(text)) and numbered["project"] in TRACKERS:
        return f"https://github.com/{TRACKERS[numbered['project']]}/issues/{numbered['number']}"
    return PAGES.get(text)
