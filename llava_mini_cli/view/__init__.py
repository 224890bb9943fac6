"""The page over rows: `llava-mini view`, from disk or served, and what `search --html` writes."""
