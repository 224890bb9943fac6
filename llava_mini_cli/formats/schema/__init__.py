"""--schema: schemas as they are given, and what is asked for them."""
