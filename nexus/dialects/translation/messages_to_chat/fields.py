"""What becomes of each field of a request for a message on its way to chat completions."""

from __future__ import annotations

from nexus.dialects.translation.rules import DECIDES_FORM, Rule, Rules

_CACHE = Rule("drop", "backends cache prompts by themselves")
_PARALLEL = Rule("map", "`parallel_tool_calls`, negated")
_UNUSED = Rule("drop", "it says nothing to the model")
_ANTHROPIC = Rule("drop", "it is a setting of Anthropic's service")
_SERVICE = Rule("refuse", "only Anthropic's service can do that")

RULES: Rules = {
    "model": Rule("map", "`model`"),
    "messages": Rule("map", "`messages`"),
    "max_tokens": Rule(
        "map",
        "`max_tokens`; `max_completion_tokens` for OpenAI and Azure; at most what the model is "
        "known to take",
    ),
    "system": Rule("map", "one system message; texts are joined by a blank line"),
    "temperature": Rule("map", "`temperature`"),
    "top_p": Rule("map", "`top_p`"),
    "top_k": Rule("map", "`top_k` for kinds that take it; dropped for others"),
    "stop_sequences": Rule("map", "`stop`"),
    "stream": Rule("map", "`stream`"),
    "tools": Rule("map", "`tools`"),
    "tool_choice": Rule("map", "`tool_choice`"),
    "thinking": Rule(
        "map",
        "`reasoning_effort` for kinds that take it, if `output_config.effort` is not given: a "
        "budget under 4096 tokens is `low`, under 16384 `medium`, else `high`; dropped otherwise",
    ),
    "thinking.display": Rule("drop", "reasoning is shown as it is"),
    "output_config": Rule("map", "see its fields"),
    "output_format": Rule("map", "`response_format`"),
    "cache_control": _CACHE,
    "context_management": Rule("drop", "the client keeps the context small by itself"),
    "metadata": _UNUSED,
    "diagnostics": _UNUSED,
    "betas": _ANTHROPIC,
    "billing_policy": _ANTHROPIC,
    "fallback_credit_token": _ANTHROPIC,
    "fallbacks": _ANTHROPIC,
    "inference_geo": Rule("refuse", "the gateway cannot promise where the backend computes"),
    "service_tier": _ANTHROPIC,
    "speed": _ANTHROPIC,
    "user_profile_id": _ANTHROPIC,
    "workspace_id": _ANTHROPIC,
    "compaction": _SERVICE,
    "container": _SERVICE,
    "mcp_servers": _SERVICE,
    "thread": _SERVICE,
    "messages.role": Rule("map", "`role`: user, assistant or system"),
    "messages.content": Rule("map", "`content`, `tool_calls`, and messages of the role tool"),
    "messages.clear_at": Rule("drop", "the client keeps the context small by itself"),
    "messages.output_config": Rule("refuse", "one conversation has one setting"),
    "system.text.type": DECIDES_FORM,
    "system.text.text": Rule(
        "map", "part of the system message; dropped if it begins `x-anthropic-billing-header:`"
    ),
    "system.text.cache_control": _CACHE,
    "system.text.citations": Rule("drop", "marks in a text that has been written"),
    "system.*": Rule("refuse", "a system message has only texts"),
    "content.text.type": DECIDES_FORM,
    "content.text.text": Rule("map", "`content`"),
    "content.text.cache_control": _CACHE,
    "content.text.citations": Rule("drop", "marks in a text that has been written"),
    "content.image.type": DECIDES_FORM,
    "content.image.source": Rule("map", "`image_url`: a data URL for base64, or the URL"),
    "content.image.cache_control": _CACHE,
    "content.image.transformations": Rule("drop", "the backend scales images itself"),
    "content.tool_use.type": DECIDES_FORM,
    "content.tool_use.id": Rule("map", "`tool_calls.id`"),
    "content.tool_use.name": Rule("map", "`tool_calls.function.name`"),
    "content.tool_use.input": Rule("map", "`tool_calls.function.arguments`, its own JSON text"),
    "content.tool_use.cache_control": _CACHE,
    "content.tool_use.caller": _UNUSED,
    "content.tool_use.toolset_name": _SERVICE,
    "content.tool_result.type": DECIDES_FORM,
    "content.tool_result.tool_use_id": Rule("map", "`tool_call_id`"),
    "content.tool_result.content": Rule(
        "map", "`content` of a tool message; images follow in the user message"
    ),
    "content.tool_result.is_error": Rule("drop", "the content says what went wrong"),
    "content.tool_result.cache_control": _CACHE,
    "content.tool_result.toolset_name": _SERVICE,
    "content.thinking": Rule(
        "drop",
        "earlier reasoning is not shown to the model again, unless it is the model's own, and its "
        "backend called it `reasoning_content`",
    ),
    "content.redacted_thinking": Rule("drop", "only Anthropic's service can read it"),
    "content.*": Rule("refuse", "chat completions have no such content"),
    "tools.custom.type": DECIDES_FORM,
    "tools.custom.name": Rule("map", "`function.name`"),
    "tools.custom.description": Rule("map", "`function.description`"),
    "tools.custom.input_schema": Rule("map", "`function.parameters`"),
    "tools.custom.strict": Rule("map", "`function.strict`"),
    "tools.custom.cache_control": _CACHE,
    "tools.custom.allowed_callers": _UNUSED,
    "tools.custom.defer_loading": Rule("drop", "all tools are sent at once"),
    "tools.custom.eager_input_streaming": Rule("drop", "arguments are sent as they come"),
    "tools.custom.input_examples": Rule("drop", "chat completions have no place for them"),
    "tools.*": Rule("refuse", "the backend has no tools of its own"),
    "tool_choice.auto.type": Rule("map", "`auto`"),
    "tool_choice.auto.disable_parallel_tool_use": _PARALLEL,
    "tool_choice.any.type": Rule("map", "`required`"),
    "tool_choice.any.disable_parallel_tool_use": _PARALLEL,
    "tool_choice.tool.type": Rule("map", "`function`"),
    "tool_choice.tool.name": Rule("map", "`function.name`"),
    "tool_choice.tool.disable_parallel_tool_use": _PARALLEL,
    "tool_choice.none.type": Rule("map", "`none`"),
    "tool_choice.*": Rule("refuse", "it is none of auto, any, tool, none"),
    "output_config.effort": Rule(
        "map", "`reasoning_effort` for kinds that take it, at most `high`; dropped for others"
    ),
    "output_config.format": Rule("map", "`response_format`"),
    "output_config.task_budget": Rule("drop", "the model does not see it"),
}
