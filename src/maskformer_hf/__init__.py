"""The MaskFormer family for Hugging Face."""
