"""Chat templates and tools: conversations as text and as token ids."""

from .cover import Cover, encode_chat
from .limits import MAX_MEMORY, MAX_SECONDS, MAX_SIZE, ChatTemplateError
from .messages import checked_messages
from .templates import (
    TEMPLATES,
    choose_template,
    file_templates,
    render_chat,
    stop_strings,
)
from .tools import plain_tool, tool_schema

__all__ = [
    "MAX_MEMORY",
    "MAX_SECONDS",
    "MAX_SIZE",
    "TEMPLATES",
    "ChatTemplateError",
    "Cover",
    "checked_messages",
    "choose_template",
    "encode_chat",
    "file_templates",
    "plain_tool",
    "render_chat",
    "stop_strings",
    "tool_schema",
]
