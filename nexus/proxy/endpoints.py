"""The proxied endpoints, one row each, and the ways in which clients write their paths.

Routes, the fast path, checks, metrics, OpenAPI, commands, and the demo backend follow from the
rows. A test compares the balancers' files and the documentation with them.
"""

from __future__ import annotations

from typing import Literal

from nexus.dialects import anthropic, media, openai, plain, responses
from nexus.dialects.anthropic.attribution import without_attribution
from nexus.dialects.anthropic.unsigned import without_unsigned
from nexus.dialects.base import IdReader, PromptField, RequestForm, UnitReader
from nexus.dialects.responses.plain_reasoning import without_plain_reasoning
from nexus.proxy.endpoint_table import Endpoint, EndpointTable

_CONVERSATION = (PromptField(name="messages", messages=True),)
_MESSAGES = RequestForm(prompts=_CONVERSATION, task="chat")


def _form(name: str, path: str, task: str, summary: str) -> Endpoint:
    """The row of an endpoint that takes a form with a file."""
    images = task == "images"
    return Endpoint(
        name=name,
        path=path,
        dialect=media,
        form=RequestForm(prompts=(), task=task),
        summary=summary,
        streams=True,
        content_types=("multipart/form-data",),
        body="multipart",
        binary=not images,
        units=UnitReader(
            "images" if images else "seconds",
            in_response=media.images if images else media.seconds,
        ),
    )


_NOTHING = RequestForm(prompts=(), task="")


def _files(
    name: str, path: str, summary: str, *methods: str, body: Literal["any", "none"] = "none"
) -> Endpoint:
    """The row of an endpoint whose requests all go to the backend of `[endpoints] files`."""
    return Endpoint(
        name=name,
        path=path,
        dialect=plain,
        form=_NOTHING,
        summary=summary,
        methods=methods,
        content_types=(),
        body=body,
        binary=path.endswith("/content"),
        backend_key="files",
    )


_STORED = IdReader(
    responses.named_ids, responses.stored_ids, responses.sealed, responses.background_state
)


def _stored(path: str, summary: str, *methods: str, streams: bool = False) -> Endpoint:
    """The row of an endpoint for a response that a backend stores; `path` follows its id."""
    return Endpoint(
        name="responses",
        path=f"/v1/responses/{{id}}{path}",
        dialect=responses,
        form=_NOTHING,
        summary=summary,
        streams=streams,
        methods=methods,
        body="none",
        ids=_STORED,
    )


ENDPOINTS = EndpointTable(
    (
        Endpoint(
            name="chat_completions",
            path="/v1/chat/completions",
            dialect=openai,
            form=RequestForm(
                prompts=_CONVERSATION,
                task="chat",
                translations=(("anthropic", "chat-to-messages"),),
            ),
            summary="Answer a conversation",
            streams=True,
        ),
        Endpoint(
            name="completions",
            path="/v1/completions",
            dialect=openai,
            form=RequestForm(
                prompts=(PromptField(name="prompt"), PromptField(name="prompt_embeds")), task="chat"
            ),
            summary="Go on with a text",
            streams=True,
        ),
        Endpoint(
            name="embeddings",
            path="/v1/embeddings",
            dialect=openai,
            form=RequestForm(
                prompts=(PromptField(name="input"), PromptField(name="messages", messages=True)),
                task="embeddings",
            ),
            summary="Embed texts",
        ),
        Endpoint(
            name="rerank",
            path="/v1/rerank",
            other_paths=("/v2/rerank",),
            dialect=openai,
            form=RequestForm(
                prompts=(PromptField(name="documents", beside=("query",)),), task="rerank"
            ),
            summary="Order documents by how well they answer a query",
        ),
        Endpoint(
            name="score",
            path="/v1/score",
            dialect=openai,
            form=RequestForm(
                prompts=(
                    PromptField(name="text_2", beside=("text_1",)),
                    PromptField(name="data_2", beside=("data_1",)),
                    PromptField(name="documents", beside=("queries",)),
                ),
                task="rerank",
            ),
            summary="Score pairs of texts",
        ),
        Endpoint(
            name="moderations",
            path="/v1/moderations",
            dialect=openai,
            form=RequestForm(prompts=(PromptField(name="input"),), task="moderation"),
            summary="Judge whether texts are harmful",
        ),
        Endpoint(
            name="images",
            path="/v1/images/generations",
            dialect=media,
            form=RequestForm(prompts=(PromptField(name="prompt"),), task="images"),
            summary="Make images from a text",
            streams=True,
            units=UnitReader("images", in_response=media.images),
        ),
        Endpoint(
            name="speech",
            path="/v1/audio/speech",
            dialect=media,
            form=RequestForm(prompts=(PromptField(name="input"),), task="speech"),
            summary="Speak a text",
            streams=True,
            binary=True,
            units=UnitReader("characters", in_request=media.characters),
        ),
        _form("transcriptions", "/v1/audio/transcriptions", "transcription", "Write down speech"),
        _form("translations", "/v1/audio/translations", "transcription", "Translate speech"),
        _form("image_edits", "/v1/images/edits", "images", "Change images as a text says"),
        _form("image_variations", "/v1/images/variations", "images", "Vary an image"),
        Endpoint(
            name="messages",
            path="/v1/messages",
            dialect=anthropic,
            form=RequestForm(
                prompts=_CONVERSATION,
                task="chat",
                translations=(("openai", "messages-to-chat"),),
            ),
            summary="Answer a conversation",
            streams=True,
            strip=without_attribution,
            strip_made=without_unsigned,
        ),
        Endpoint(
            name="count_tokens",
            path="/v1/messages/count_tokens",
            dialect=anthropic,
            form=_MESSAGES,
            summary="Count the tokens of a conversation",
            counts=True,
            strip=without_attribution,
            strip_made=without_unsigned,
        ),
        Endpoint(
            name="responses",
            path="/v1/responses",
            dialect=responses,
            form=RequestForm(
                prompts=(
                    PromptField(name="input", messages=True, text=True),
                    PromptField(name="previous_response_id"),
                    PromptField(name="conversation"),
                    PromptField(name="prompt"),
                ),
                task="chat",
                translations=(("openai", "responses-to-chat"),),
            ),
            summary="Answer a conversation, which the backend may store",
            streams=True,
            strip_plain=without_plain_reasoning,
            ids=_STORED,
        ),
        _stored("", "Get or delete a stored response", "GET", "DELETE", streams=True),
        _stored("/cancel", "Stop a response that is made in the background", "POST"),
        _stored("/input_items", "List the input of a stored response", "GET"),
        _files("files", "/v1/files", "List files, or store one", "GET", "POST", body="any"),
        _files("files", "/v1/files/{id}", "Describe or delete a file", "GET", "DELETE"),
        _files("files", "/v1/files/{id}/content", "Get the content of a file", "GET"),
        _files("batches", "/v1/batches", "List batches, or start one", "GET", "POST", body="any"),
        _files("batches", "/v1/batches/{id}", "Describe a batch", "GET"),
        _files("batches", "/v1/batches/{id}/cancel", "Stop a batch", "POST", body="any"),
    )
)
"""Every endpoint. Rows that are added before the application is made are served, too."""
