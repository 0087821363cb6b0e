"""A model that generates, with one engine that is never started: the test says what the engine answered."""

from __future__ import annotations

from typing import Any

import numpy as np
from metric_samples import scrape
from tokenizers import Tokenizer, models

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.messages import EngineStats, Event, Outputs
from headrace.runtimes.generation.parameters import Sampling
from headrace.server.repository.model import GenerationSettings, Model, SamplingDefaults, Task
from headrace.server.scheduling.generating import EngineGenerator
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.requests import RequestMetrics
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.workers.generation import GenerationInstance
from headrace.server.workers.supervised import RestartPolicy


class ToldEngine:
    """Model ``m`` with the limits of ``spec``, and the counts of RPCs beside it."""

    def __init__(self, spec: GenerationSpec, version: int = 1) -> None:
        totals = ModelStatistics()
        self.requests = RequestMetrics()
        self.statistics = GenerationStatistics(
            totals, spec.max_tokens, block_tokens=spec.block_tokens, draft_tokens=spec.draft_tokens
        )
        self.generator = EngineGenerator("m", self.statistics, 100)
        self.instance = GenerationInstance(
            InstanceSpec(model="m", runtime="none", path="", generation=spec),
            RestartPolicy(),
            on_restart=lambda: None,
            on_failed=lambda _: None,
        )
        self.generator.attach(self.instance)
        settings = GenerationSettings(
            Tokenizer(models.WordLevel({"a": 0}, "a")), spec.max_tokens, 1, (), {}, {}, SamplingDefaults()
        )
        self.model = Model(
            name="m",
            version=version,
            task=Task.GENERATE,
            platform="none",
            config=ModelConfig(),
            max_batch_size=0,
            inputs=(),
            outputs=(),
            batcher=None,
            statistics=totals,
            generation=settings,
            generator=self.generator,
        )

    def submit(self, count: int, **sampling: Any) -> list[int]:
        """Ask for texts of 20 tokens each, and return the requests' numbers."""
        prompt = np.arange(20, dtype=np.int32)
        return [self.generator.submit(prompt, Sampling(**sampling)).id for _ in range(count)]

    def answer(self, *events: Event, **stats: Any) -> None:
        """Report events and statistics; fields of the statistics that are not given are 0."""
        self.instance._reply(Outputs(events, EngineStats(**stats)))

    def scrape(self) -> dict[str, float]:
        """Return the value of each sample, as :func:`metric_samples.scrape` does."""
        return scrape(self.requests, self.model)
