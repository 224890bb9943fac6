"""An archive on disk: what an index is made of. A folder of Parquet that other tools can read.

    archive.json               the model, the settings and the widths; the same for every row
    parts.json                 the parts that count, and what tells whether their files are those that were written
    media/part-N.parquet       one row a medium
    frames/part-N.parquet      one row a frame: vision token and CLIP embedding
    features/part-N.parquet    one row a frame, with --features
    captions/part-N.parquet    one row a window, with --caption-every
    vectors/part-N.f16         the CLIP embeddings of frames/part-N once more, as plain numbers, to be scanned quickly

A part is a batch of media; it is there once `parts.json` names it, which is replaced as a whole. Rows of `frames` whose
medium is not in the `media` of the same part are left-overs. Knows no torch.
"""
