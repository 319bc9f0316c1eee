"""Judge decoding: speculative decoding that accepts a draft token when it is *correct*,
not only when it is the target's own wording (Bachmann et al., ICLR 2025, arXiv 2501.19309).

The method is lossy by design. The library imports with numpy and torch alone; everything heavier
(transformers, tokenizers, a server) is imported where it is used.
"""

__version__ = "0.1.0"
