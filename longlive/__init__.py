"""LongLive: video that follows the prompts you type, block by block."""

__version__ = "0.1.0"
