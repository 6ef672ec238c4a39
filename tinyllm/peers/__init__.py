"""Other engines on the same model, live: their inner values as traces.

`llama_cpp` needs llama-cpp-python, and `hugging_face` needs torch and transformers. Both are
imported when a function is called.
"""

from .callbacks import llama_cpp
from .hooks import hugging_face

__all__ = ["hugging_face", "llama_cpp"]
