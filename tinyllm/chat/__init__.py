"""Conversations as text: chat templates and tools."""

from .templates import (
    MAX_SECONDS,
    MAX_SIZE,
    TEMPLATES,
    ChatTemplateError,
    Cover,
    checked_messages,
    choose_template,
    encode_chat,
    file_templates,
    render_chat,
    stop_strings,
    tool_schema,
)

__all__ = [
    "MAX_SECONDS",
    "MAX_SIZE",
    "TEMPLATES",
    "ChatTemplateError",
    "Cover",
    "checked_messages",
    "choose_template",
    "encode_chat",
    "file_templates",
    "render_chat",
    "stop_strings",
    "tool_schema",
]
