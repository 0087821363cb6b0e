"""A sentiment classifier: MiniLM, mean pooling and a logistic regression in one ONNX graph.

The regression is fitted here, on a seeded sample of human-rated snippets; the encoder stays as it is.
"""

from __future__ import annotations

import json
import shutil
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer

from headrace.runtimes.convert import sentence_encoder as encoder
from headrace.runtimes.convert import sentiment_data
from headrace.runtimes.convert.classifier import write_config
from headrace.runtimes.convert.job import Checks, ConversionError, Job, require
from headrace.runtimes.convert.sessions import open_session

PER_FILE: Final = 1200
TRAINING_TOKENS: Final = 64
HELD_OUT: Final = 0.2
INVERSE_REGULARISATION: Final = 1.0
TOLERANCE: Final = 1e-4
CLEAR_CASES: Final = (
    ("I love this, it is wonderful!", "positive"),
    ("What a fantastic day!", "positive"),
    ("This is the worst purchase I have ever made.", "negative"),
    ("I am so sad and disappointed.", "negative"),
    ("The box contains three cables.", "neutral"),
)


def build(job: Job) -> Checks:
    """``sentiment``: input_ids, attention_mask, token_type_ids -> logits [batch, 3]."""
    source = job.repository / "minilm" / "1"
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    hidden = open_session(source / "model.onnx")
    texts, labels = sentiment_data.load(job.packages["vaderSentiment"], PER_FILE)
    job.say(f"embedding {len(texts)} texts")
    vectors = encoder.embed(hidden, tokenizer, texts, max_tokens=TRAINING_TOKENS)
    fit_x, test_x, fit_y, test_y = train_test_split(
        vectors, labels, test_size=HELD_OUT, random_state=0, stratify=labels
    )
    job.say("fitting")
    head = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000).fit(fit_x, fit_y)
    guesses, scores = head.predict(test_x), head.predict_proba(test_x)
    polar = np.asarray(test_y) != sentiment_data.LABELS.index("neutral")
    polarity = (scores[:, 2] > scores[:, 0]) == (
        np.asarray(test_y) == sentiment_data.LABELS.index("positive")
    )

    job.say("writing the graph")
    graph = with_head(
        onnx.load(source / "model.onnx"), head.coef_.T.astype(np.float32), head.intercept_.astype(np.float32)
    )
    onnx.save(graph, job.version / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(source / name, job.version / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings = {key: value for key, value in encoder.parameters("classify").items() if key != "pooling"}
    write_config(
        job,
        sentiment_data.LABELS,
        max_batch_size=encoder.MAX_BATCH_SIZE,
        config=config | {"architectures": ["BertForSequenceClassification"]},
        settings={**settings, "default": "true"},
    )
    session = open_session(job.version / "model.onnx")
    logits = classify(session, tokenizer, [text for text, _ in CLEAR_CASES])
    reference = head.decision_function(encoder.embed(hidden, tokenizer, [text for text, _ in CLEAR_CASES]))
    found = [sentiment_data.LABELS[index] for index in logits.argmax(1)]
    if found != [label for _, label in CLEAR_CASES]:
        msg = f"clear sentences are classified as {found}: {CLEAR_CASES}"
        raise ConversionError(msg)
    return {
        "max_abs_difference": require(
            "difference to scikit-learn", float(np.abs(logits - reference).max()), below=TOLERANCE
        ),
        "training_texts": len(fit_y),
        "held_out_texts": len(test_y),
        "held_out_accuracy": round(float((guesses == test_y).mean()), 4),
        "held_out_macro_f1": round(float(f1_score(test_y, guesses, average="macro")), 4),
        "held_out_polarity_accuracy": round(float(polarity[polar].mean()), 4),
    }


def classify(session: Any, tokenizer: Tokenizer, texts: list[str]) -> npt.NDArray[np.float32]:
    """Logits [texts, 3] of the finished graph."""
    logits = np.zeros((len(texts), len(sentiment_data.LABELS)), np.float32)
    for chosen, inputs in encoder.batches(tokenizer, texts, max_tokens=encoder.MAX_TOKENS, size=32):
        logits[chosen] = session.run(["logits"], inputs)[0]
    return logits


def with_head(
    model: onnx.ModelProto, weights: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> onnx.ModelProto:
    """The encoder's graph, ended by masked mean pooling, L2 normalisation and a linear layer.

    ``weights`` is [384, classes], ``bias`` [classes]; the output ``logits`` [batch, classes] replaces
    ``last_hidden_state``.
    """
    graph = model.graph
    constants: dict[str, npt.NDArray[Any]] = {
        "head_weights": weights,
        "head_bias": bias,
        "head_tiny": np.array(1e-9, np.float32),
        "head_tokens": np.array([1], np.int64),
        "head_features": np.array([-1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["attention_mask"], "head_mask_2d", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["head_mask_2d", "head_features"], "head_mask", {}),
        ("Mul", [encoder.OUTPUT, "head_mask"], "head_masked", {}),
        ("ReduceSum", ["head_masked", "head_tokens"], "head_sum", {"keepdims": 0}),
        ("ReduceSum", ["head_mask", "head_tokens"], "head_count", {"keepdims": 0}),
        ("Max", ["head_count", "head_tiny"], "head_count_safe", {}),
        ("Div", ["head_sum", "head_count_safe"], "head_mean", {}),
        ("ReduceL2", ["head_mean"], "head_norm", {"axes": [-1], "keepdims": 1}),
        ("Max", ["head_norm", "head_tiny"], "head_norm_safe", {}),
        ("Div", ["head_mean", "head_norm_safe"], "head_vector", {}),
        ("MatMul", ["head_vector", "head_weights"], "head_product", {}),
        ("Add", ["head_product", "head_bias"], "logits", {}),
    ]
    graph.node.extend(
        helper.make_node(kind, inputs, [output], name=output, **attributes)
        for kind, inputs, output, attributes in nodes
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)]))
    return model
