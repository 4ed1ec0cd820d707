"""Route Replay: an LLM router that measures itself, and the engine that replays what it recorded."""

__version__ = "0.1.0"
