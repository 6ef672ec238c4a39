"""Chat templates and tools: conversations as text and as token ids."""

from .cover import Cover, encode_chat
from .sandbox import MAX_SECONDS, MAX_SIZE, ChatTemplateError
from .templates import (
    TEMPLATES,
    checked_messages,
    choose_template,
    file_templates,
    render_chat,
    stop_strings,
)
from .tools import tool_schema

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
