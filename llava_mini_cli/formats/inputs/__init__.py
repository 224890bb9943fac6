"""The media and tables that the user named -> a lazy stream of jobs, in the order given, duplicates and all.

    files, folders, globs, lists -> one job each        tables, shards -> one job for the rows about a medium

Arguments are checked at once and read only when they are reached. Opens no medium and knows nothing of decoding.
"""
