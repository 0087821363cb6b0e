"""Runs a task of lm-evaluation-harness: argv has base URL, model and a file of questions; prints JSON.

Each line of the file is ``{"question": ..., "choices": [...], "answer": index}``.
"""

import json
import sys

import lm_eval

base, model, questions = sys.argv[1:]
task = {
    "task": "questions",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": questions}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "base_url": f"{base}/v1/completions",
        "model": model,
        "tokenizer_backend": "remote",
        "num_concurrent": 4,
        "batch_size": 2,
    },
    tasks=[task],
    bootstrap_iters=0,
    log_samples=True,
)
samples = sorted(found["samples"]["questions"], key=lambda sample: sample["doc_id"])
answers = [[[float(value), bool(greedy)] for value, greedy in sample["filtered_resps"]] for sample in samples]
sys.stdout.write(json.dumps({"accuracy": found["results"]["questions"]["acc,none"], "answers": answers}))
