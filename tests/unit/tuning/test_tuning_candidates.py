from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.policies import batching_policy, text_limits
from headrace.server.repository.preparation import prepare
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.tuning.application import apply
from headrace.server.tuning.candidates import (
    Candidate,
    Free,
    Layout,
    free_fields,
    groups,
    layouts,
    limits,
    present_layout,
)

Define = Any
TENSORS = """
max_batch_size: 64
input { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }
dynamic_batching { }
"""


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def test_the_present_layout_comes_first_and_the_extremes_before_the_middle(define: Define) -> None:
    found = layouts(define(TENSORS, cores=8), Machine(8))
    assert found[0] == present_layout(define(TENSORS)) == Layout(4, 2, 8)
    shapes = list(dict.fromkeys((layout.instances, layout.threads) for layout in found))
    assert shapes == [(4, 2), (8, 1), (1, 8), (2, 4)]


def test_two_cores_have_narrow_instances_with_and_without_a_wide_form_and_one_wide_one(
    define: Define,
) -> None:
    found = layouts(define(TENSORS, cores=2), Machine(2))
    assert found == (Layout(2, 1, 2), Layout(2, 1), Layout(1, 2))
    assert groups(found) == [(Layout(2, 1, 2), Layout(2, 1)), (Layout(1, 2),)]


def test_one_core_leaves_one_layout(define: Define) -> None:
    assert layouts(define(TENSORS, cores=1), Machine(1)) == (Layout(1, 1),)


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 16, 96])
def test_no_layout_has_more_threads_than_cores(define: Define, cores: int) -> None:
    found = layouts(define(TENSORS, cores=cores), Machine(cores))
    assert all(layout.instances * layout.threads <= cores for layout in found)
    assert len(set(found)) == len(found)


def test_a_given_number_of_instances_is_not_varied(define: Define) -> None:
    definition = define(TENSORS + "instance_group { count: 2 kind: KIND_CPU }", cores=8)
    assert free_fields(definition) == Free(instances=False, threads=True, lone_threads=True, limit=True)
    found = layouts(definition, Machine(8))
    assert found == (Layout(2, 4), Layout(2, 4, 8), Layout(2, 1), Layout(2, 1, 8))


def test_given_threads_are_not_varied(define: Define) -> None:
    definition = define(TENSORS + parameter("intra_op_thread_count", "2"), cores=8)
    assert {layout.threads for layout in layouts(definition, Machine(8))} == {2}
    definition = define(TENSORS + parameter("lone_threads", "0"), cores=8)
    assert {layout.lone_threads for layout in layouts(definition, Machine(8))} == {0}


def test_limits_of_rows_and_tokens(define: Define) -> None:
    tensors, texts = define(TENSORS), define(texts=True)
    rows = BatchingPolicy(max_rows=64, join=True)
    assert limits(tensors, rows, thorough=False) == (64, 32, 8)
    assert limits(tensors, rows, thorough=True) == (64, 32, 8, 16, 4)
    assert limits(tensors, dataclasses.replace(rows, max_rows=4), thorough=True) == (4,)
    tokens = BatchingPolicy(max_rows=32, max_tokens=256, join=True)
    assert limits(texts, tokens, thorough=False) == (256, 128, 512)
    assert limits(texts, tokens, thorough=True) == (256, 128, 512, 1024, 2048)


def test_limits_that_the_configuration_sets_are_not_varied(define: Define) -> None:
    rows = BatchingPolicy(max_rows=16, join=True)
    assert limits(define(TENSORS + parameter("max_batch_rows", "16")), rows, thorough=True) == (16,)
    by_hand = TENSORS.replace("{ }", "{ preferred_batch_size: [ 8 ] }")
    assert limits(define(by_hand), rows, thorough=True) == (16,)
    alone = TENSORS.replace("dynamic_batching { }", "")
    assert limits(define(alone), BatchingPolicy(max_rows=64, join=False), thorough=True) == (0,)


def test_a_configuration_that_says_everything_leaves_nothing(define: Define) -> None:
    everything = (
        TENSORS
        + "instance_group { count: 1 }"
        + parameter("intra_op_thread_count", "1")
        + parameter("lone_threads", "0")
        + parameter("max_batch_rows", "8")
    )
    assert not free_fields(define(everything))
    assert layouts(define(everything), Machine(8)) == (Layout(1, 1),)


def test_on_gpus_only_the_limit_is_open(define: Define) -> None:
    assert free_fields(define(TENSORS, gpus=1)) == Free(
        instances=False, threads=False, lone_threads=False, limit=True
    )


def test_models_that_generate_are_left_alone(demo_repository: Path) -> None:
    (definition,) = prepare(open_model("smollm2", [demo_repository.resolve()]), Machine(2))
    assert not free_fields(definition)


def test_the_choice_is_what_runs_and_what_the_configuration_shows(define: Define) -> None:
    definition = define(TENSORS, cores=8)
    tuned = apply(definition, Candidate(Layout(2, 4, 8), 16), Machine(8))
    assert [(spec.threads, spec.lone_threads) for spec in tuned.specs] == [(4, 8), (4, 0)]
    (group,) = tuned.config.instance_group
    assert (group.count, group.kind, group.name) == (2, group.KIND_CPU, "m_0")
    shown = {key: value.string_value for key, value in tuned.config.parameters.items()}
    assert shown == {"intra_op_thread_count": "4", "lone_threads": "8", "max_batch_rows": "16"}
    assert batching_policy(tuned.config, 100, None).max_rows == 16
    assert tuned.written == definition.written
    assert definition.config.instance_group[0].count == 4  # the one it came from has not changed


def test_the_choice_does_not_touch_what_is_given(define: Define) -> None:
    given = TENSORS + "instance_group { count: 3 name: 'mine' }" + parameter("max_batch_rows", "5")
    definition = define(given, cores=8)
    tuned = apply(definition, Candidate(Layout(3, 1, 8), 64), Machine(8))
    assert [(group.name, group.count) for group in tuned.config.instance_group] == [("mine", 3)]
    assert [(spec.threads, spec.lone_threads) for spec in tuned.specs] == [(1, 8), (1, 0), (1, 0)]
    assert tuned.parameters["max_batch_rows"] == "5"


def test_the_limit_of_a_text_model_is_its_tokens(define: Define) -> None:
    tuned = apply(define(texts=True, cores=8), Candidate(Layout(2, 4, 8), 512), Machine(8))
    limits = text_limits(tuned, "all")
    assert limits is not None
    assert limits.max_tokens == 512
    assert "max_batch_rows" not in tuned.parameters


def test_every_candidate_of_a_model_can_be_applied_and_read_back(define: Define) -> None:
    definition = define(TENSORS, cores=8)
    for layout in layouts(definition, Machine(8)):
        tuned = apply(definition, Candidate(layout, 8), Machine(8))
        assert present_layout(tuned) == layout
