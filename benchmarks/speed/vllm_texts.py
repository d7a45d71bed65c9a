"""Runs in vLLM's own environment: reads prompt embeddings, decodes them each time it is asked.

Arguments: the merged verbalizer's directory, a safetensors file with ``prompts`` [n, T, d], the
most new tokens. For each line on standard input, one line of JSON on the last standard output that
the parent gave: seconds and texts. vLLM writes to standard output too, so that goes elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from safetensors.torch import load_file
    from vllm import LLM, SamplingParams

    model, file, max_new_tokens = sys.argv[1:]
    prompts = [{"prompt_embeds": row} for row in load_file(file)["prompts"]]
    engine = LLM(
        model,
        dtype="float32",
        enable_prompt_embeds=True,
        enable_prefix_caching=False,
        max_model_len=512,
        block_size=32,
        max_num_seqs=128,
        distributed_executor_backend="uni",
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=int(max_new_tokens),
        stop=["</explanation>"],
        include_stop_str_in_output=True,
    )
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        started_s = time.perf_counter()
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started_s
        texts = [output.outputs[0].text for output in outputs]
        print(json.dumps({"seconds": seconds, "texts": texts}), file=answers, flush=True)


if __name__ == "__main__":
    main()
