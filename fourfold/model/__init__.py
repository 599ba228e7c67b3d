"""DeepSeek-V4, one definition for prefill, decode, verification, packed batches and training."""
