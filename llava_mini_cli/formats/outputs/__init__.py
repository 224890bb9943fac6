"""Rows on disk: JSONL, CSV, Parquet, text files and Hugging Face metadata, and which rows an output holds already."""
