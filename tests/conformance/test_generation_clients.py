"""Chat over huggingface_hub and LangChain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient, InferenceClient, close_session
from huggingface_hub.errors import HfHubHTTPError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field, SecretStr

MODEL = "smollm2"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
NO_KEY = SecretStr("-")


@pytest.fixture
def url(server: Any) -> str:
    return f"{server.url}/models/{MODEL}/proxy"


@pytest.fixture(autouse=True)
def _closed_sessions() -> Iterator[None]:
    """Close the connections that huggingface_hub shares between its clients."""
    yield
    close_session()


class City(BaseModel):
    """A city; without further properties, which a small model would go on to make up."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    big: bool


def test_huggingface_chat(url: str) -> None:
    """Without a model the client sends the name ``dummy``; the base URL chooses."""
    client = InferenceClient(base_url=url, timeout=120)
    answer = client.chat_completion(QUESTION, max_tokens=16, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.system_fingerprint
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = client.chat_completion(QUESTION, max_tokens=16, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == answer.choices[0].message.content
    assert len(pieces) > 3


def test_huggingface_names_of_models(server: Any) -> None:
    named = InferenceClient(base_url=server.url, timeout=120)
    assert named.chat_completion(QUESTION, model=MODEL, max_tokens=2).model == MODEL
    assert named.chat_completion(QUESTION, max_tokens=2).choices  # the default model
    with pytest.raises(HfHubHTTPError):
        named.chat_completion(QUESTION, model="nope", max_tokens=2)


async def test_huggingface_chat_async(url: str) -> None:
    async with AsyncInferenceClient(base_url=url, timeout=120) as client:
        answer = await client.chat_completion(QUESTION, max_tokens=16, temperature=0)
        stream = await client.chat_completion(QUESTION, max_tokens=16, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == answer.choices[0].message.content


def test_huggingface_schema_and_logprobs(url: str) -> None:
    client = InferenceClient(base_url=url, timeout=120)
    form: Any = {"type": "json_schema", "json_schema": {"name": "City", "schema": City.model_json_schema()}}
    answer = client.chat_completion(
        QUESTION, max_tokens=64, temperature=0, response_format=form, logprobs=True, top_logprobs=2
    )
    assert City.model_validate_json(answer.choices[0].message.content or "").name
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_huggingface_tools(url: str) -> None:
    client = InferenceClient(base_url=url, timeout=120)
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": City.model_json_schema()}}
    answer = client.chat_completion(QUESTION, tools=[tool], tool_choice="required", max_tokens=80)
    (call, *_) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "look_up"


@pytest_asyncio.fixture
async def chat_model(server: Any) -> AsyncIterator[Callable[..., ChatOpenAI]]:
    """Models whose connections are closed: LangChain's own clients live as long as the process."""
    async with httpx.AsyncClient() as asynchronous:
        with httpx.Client() as synchronous:

            def make(**options: Any) -> ChatOpenAI:
                return ChatOpenAI(
                    base_url=f"{server.url}/v1",
                    api_key=NO_KEY,
                    model=MODEL,
                    temperature=0,
                    max_retries=0,
                    timeout=120,
                    http_client=synchronous,
                    http_async_client=asynchronous,
                    **options,
                )

            yield make


def test_langchain_chat(chat_model: Any) -> None:
    model = chat_model(max_completion_tokens=16)
    answer = model.invoke("What is the capital of France?")
    assert "Paris" in answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    chunks = list(model.stream("What is the capital of France?", stream_usage=True))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    counts = [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata]
    assert sum(counts) == answer.usage_metadata["output_tokens"]


async def test_langchain_chat_async(chat_model: Any) -> None:
    model = chat_model(max_completion_tokens=8)
    answers = await model.abatch(["Say one.", "Say two."])
    assert all(answer.text for answer in answers)
    pieces = [chunk.text async for chunk in model.astream("Say one.")]
    assert "".join(pieces) == answers[0].text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(chat_model: Any, method: Any) -> None:
    model = chat_model(max_completion_tokens=80).with_structured_output(City, method=method)
    assert isinstance(model.invoke("Describe Paris."), City)


def test_langchain_tools(chat_model: Any) -> None:
    model = chat_model(max_completion_tokens=80)
    asked = HumanMessage("How big is Paris?")
    forced = model.bind_tools([City], tool_choice="any").invoke([asked])
    call = forced.tool_calls[0]
    assert call["name"] == "City"
    answered = [asked, AIMessage("", tool_calls=[call]), ToolMessage("big", tool_call_id=call["id"])]
    assert isinstance(model.bind_tools([City]).invoke(answered), AIMessage)


def test_langchain_responses(chat_model: Any) -> None:
    model = chat_model(max_completion_tokens=16, use_responses_api=True)
    answer = model.invoke("What is the capital of France?")
    assert "Paris" in answer.text
    assert "".join(chunk.text for chunk in model.stream("What is the capital of France?")) == answer.text


def test_langchain_completions(server: Any) -> None:
    with httpx.Client() as http:
        model = OpenAI(
            base_url=f"{server.url}/v1",
            api_key=NO_KEY,
            model=MODEL,
            temperature=0,
            max_tokens=5,
            max_retries=0,
            http_client=http,
        )
        text = model.invoke("Hello, my name is")
        assert text
        assert "".join(model.stream("Hello, my name is")) == text
        assert [entry[0].text for entry in model.generate(["Hello, my name is"] * 2).generations] == [
            text
        ] * 2
