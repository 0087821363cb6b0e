"""onnxruntime-genai's Generator: a static batch over the fp32 graph of its own builder."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime_genai as og

from benchmarks.generation.peers.child import serve, static
from benchmarks.generation.work import Setup, Trace, Work


class GenAi:
    """A model; every run makes a generator of its own."""

    def __init__(self, setup: Setup) -> None:
        """Load the folder that the builder wrote."""
        config = og.Config(setup.model)
        session = {"intra_op_num_threads": setup.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)
        self.title = f"onnxruntime-genai {og.__version__}"

    def run(self, work: Work) -> Trace:
        """Append the batch and generate until its length is reached."""
        static(work)
        prompts = np.asarray(work.prompts, np.int32)
        length = prompts.shape[1] + work.new_tokens[0]
        trace = Trace.empty(len(prompts))
        parameters = og.GeneratorParams(self._model)
        # A minimum length keeps the end of sequence from being chosen.
        parameters.set_search_options(
            batch_size=len(prompts), max_length=length, min_length=length, do_sample=False
        )
        generator = og.Generator(self._model, parameters)
        generator.append_tokens(prompts)
        for _ in range(work.new_tokens[0]):
            generator.generate_next_token()
            trace.step(generator.get_next_tokens().tolist())
        return trace


if __name__ == "__main__":
    serve(GenAi)
